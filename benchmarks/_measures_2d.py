"""What benchmarks measure of 2D features: pairs of views, probes, and fine-tuning of the whole encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvmmed_monai.data.datalist import read_datalist
from lvmmed_monai.engines import warmup_cosine
from lvmmed_monai.losses import matching_accuracy
from lvmmed_monai.methods._picture_features import batch_features, pooled_features
from lvmmed_monai.methods._picture_method import effective_rank
from lvmmed_monai.methods._picture_probes import LabelledPictures, labelled_pictures
from lvmmed_monai.methods._pictures import ViewPairs
from lvmmed_monai.metrics import linear_probe, retrieval_at_k

# Images of a matching.
GROUP = 16
PAIR_MEASURES = ("r@1", "mixed", "set", "rank")
# Uint8 images (n, C, H, W) to features (n, D).
Features = Callable[[Tensor], Tensor]
Picture = tuple[ViewPairs, int]


def pixels(images: Tensor) -> Tensor:
    """(n, 64 C): the images at 8 x 8 pixels, as features."""
    return nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)


# -- pairs of views ---------------------------------------------------------------------------------------------------


def drawn_views(pictures: list[Picture], key: list[int]) -> Tensor:
    """(2, M, C, s, s) uint8: two views of each picture, always the same for a key."""
    samples = [pairs.draw(i, np.random.default_rng([*key, n])) for n, (pairs, i) in enumerate(pictures)]
    views = [torch.stack([sample[name] for sample in samples]) for name in ("view1", "view2")]
    return (255 * torch.stack(views)).round().to(torch.uint8)


def pair_measures(features: Features, views: Tensor, set_of: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """`PAIR_MEASURES` of pooled, centred features, means over the draws of the views.

    Args:
        features: of images.
        views: (draws, 2, M, C, s, s) uint8 views of M held-out images.
        set_of: (M,) number of each image's set.
        queries: numbers of the images that are measured, from 0 on; the others are only there to be mistaken for them.
    """
    rows: list[list[float]] = []
    for draw, pair in enumerate(views):
        both = torch.stack([features(side) for side in pair])
        first, second = both - both.mean(dim=(0, 1))
        of_sets: list[float] = []
        for number in np.unique(set_of):
            members = queries[set_of[queries] == number]
            if len(members) >= GROUP:
                accuracy = matching_accuracy(first[members], second[members], draws=2, seed=draw)
                of_sets += [accuracy] * len(members)
        rows.append(
            [
                retrieval_at_k(first[queries], second),
                matching_accuracy(first[queries], second[queries], seed=draw),
                float(np.mean(of_sets)) if of_sets else float("nan"),
                effective_rank(first),
            ]
        )
    return dict(zip(PAIR_MEASURES, np.mean(rows, axis=0).tolist(), strict=True))


def retrieval_of_sets(features: Features, views: Tensor, set_of: np.ndarray) -> dict[int, float]:
    """By set of `GROUP` images or more: how often the second view of one of its images is the nearest of all images.

    Args: as for `pair_measures`, whose r@1 is that of all sets together.
    """
    members = {int(number): np.flatnonzero(set_of == number) for number in np.unique(set_of)}
    found: dict[int, list[float]] = {number: [] for number, rows in members.items() if len(rows) >= GROUP}
    for pair in views:
        both = torch.stack([features(side) for side in pair])
        first, second = both - both.mean(dim=(0, 1))
        for number, values in found.items():
            others = np.setdiff1d(np.arange(len(set_of)), members[number])
            gallery = second[np.concatenate([members[number], others])]
            values.append(retrieval_at_k(first[members[number]], gallery))
    return {number: float(np.mean(values)) for number, values in found.items()}


# -- labels -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """A datalist with classes: pictures to learn from and pictures to measure on."""

    name: str
    training: LabelledPictures
    measured: LabelledPictures
    classes: int

    @classmethod
    def read(cls, datalist: Path, section: str, cache: Path, size: int) -> Labelled:
        """The training section and the one that is measured, as 3 channels."""
        content = read_datalist(datalist)
        form: dict[str, Any] = {"size": size, "in_channels": 3}
        parts = [labelled_pictures(datalist, one, cache, **form) for one in ("training", section)]
        return cls(content["name"], *parts, classes=len(content["labels"]))

    def some(self, count: int, key: list[int]) -> np.ndarray:
        """Numbers of ``count`` training pictures drawn at random, but two of each class at least."""
        labels = self.training.labels
        if count >= len(labels):
            return np.arange(len(labels))
        order = np.random.default_rng(key).permutation(len(labels))
        first = np.concatenate([order[labels[order] == one][:2] for one in np.unique(labels)])
        rest = order[~np.isin(order, first)]
        return np.concatenate([first, rest[: max(0, count - len(first))]])


def probe_scores(features: Features, data: Labelled, chosen: list[np.ndarray]) -> list[np.ndarray]:
    """Scores of the measured pictures by a linear probe of each choice of training pictures."""
    training, measured = (features(part.images).double().numpy() for part in (data.training, data.measured))
    return [
        scored(linear_probe(training[rows], data.training.labels[rows], classes=data.classes).scores(measured))
        for rows in chosen
    ]


def scored(log_probabilities: np.ndarray) -> np.ndarray:
    """(n,) log odds for two classes, else as they are."""
    if log_probabilities.shape[1] != 2:
        return log_probabilities
    return log_probabilities[:, 1] - log_probabilities[:, 0]


def fine_tuned_scores(
    encoder: nn.Module, data: Labelled, rows: np.ndarray, *, steps: int, batch: int, rate: float, key: list[int]
) -> np.ndarray:
    """Scores of the measured pictures after training a copy of the encoder with a linear head, from zeros, on ``rows``.

    AdamW, warm-up and cosine, cross-entropy in which classes weigh the same, light changes of the pictures; the last
    weights count. Batches are drawn with replacement, in an order that ``key`` decides.
    """
    encoder = copy.deepcopy(encoder)
    with torch.no_grad():
        width = batch_features(encoder, data.measured.images[:2]).shape[1]
    head = nn.Linear(width, data.classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    labels = data.training.labels[rows]
    counts = np.bincount(labels, minlength=data.classes)
    balance = torch.from_numpy(np.where(counts, len(rows) / np.maximum(counts, 1), 0.0)).float()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], rate, weight_decay=0.05)
    scheduler = warmup_cosine(optimizer, warmup_steps=min(20, steps // 4), total_steps=steps)
    rng = np.random.default_rng([*key, len(rows)])
    mirrored = bool(data.training.pairs.data[0].get("flip_safe", False))
    encoder.train()
    for _ in range(steps):
        picked = rng.integers(0, len(rows), batch)
        images = light_views(data.training.images[rows[picked]], mirrored, rng)
        logits = head(pooled_features(encoder, images))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[picked]), balance)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        return scored(head(batch_features(encoder, data.measured.images)).log_softmax(dim=1).double().numpy())


def light_views(images: Tensor, mirrored: bool, rng: np.random.Generator) -> Tensor:
    """Slightly changed pictures (B, C, s, s), 0 to 1: a crop of 70 % of the area or more, brightness, contrast.

    Args:
        images: (B, C, s, s) uint8.
        mirrored: whether left and right may change places.
        rng: source of all randomness.
    """
    count = len(images)
    side = np.sqrt(rng.uniform(0.7, 1.0, count))
    shift = rng.uniform(-1, 1, (2, count)) * (1 - side)
    flip = np.where(rng.random(count) < 0.5 * mirrored, -1.0, 1.0)
    rows = [[side * flip, 0 * side, shift[0]], [0 * side, side, shift[1]]]
    grid = nn.functional.affine_grid(
        torch.from_numpy(np.array(rows)).permute(2, 0, 1).float(), list(images.shape), align_corners=False
    )
    views = nn.functional.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
    brightness, contrast = torch.from_numpy(rng.uniform(0.8, 1.2, (2, count, 1, 1, 1))).float()
    mean = views.mean(dim=(1, 2, 3), keepdim=True)
    return (((views - mean) * contrast + mean) * brightness).clamp(0, 1)
