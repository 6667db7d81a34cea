"""What is measured while VoCo learns: on each training batch, and on held-out volumes beside grey values alone.

Names, in curves and results:

==================================  ====================================================================================
``intra``, ``inter``, ``base``      terms of the loss
``argmax_accuracy``                 how often the most similar base is the one that a crop lies in most
``positive_logit``, ``zero_logit``  mean similarity of crops to bases that they overlap, and to those that they do not
``embedding_spread``                standard deviation of the unit embeddings by dimension * sqrt(C): 1 spread, 0 equal
``teacher_distance``                1 - cosine of student and teacher on the same crops; at step 1, the teacher being a
                                    copy, what dropout alone does
``empty_bases``                     share of base crops that show air and are left out
``…_clean``, ``…_aug``              held out, on crops as they are and on crops augmented each on its own
``…_features``, ``histogram_…``     the same of the encoder's pooled features, and of grey values alone
``embedding_rank``                  held out, of the unit embeddings' matrix: exp of the entropy of the singular values
==================================  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lvmmed_monai.losses.volume_contrast import mask_overlap, overlap_similarity, position_loss
from lvmmed_monai.methods._voco_data import VolumeCropDataset, labels_of
from lvmmed_monai.methods._voco_network import VoCoNetwork
from lvmmed_monai.methods._volume_features import MONITOR_SEED, grey_histograms

__all__ = [
    "counted_crops",
    "embedding_rank",
    "histogram_scores",
    "network_scores",
    "position_scores",
    "training_numbers",
]

# Similarity of two histograms at Hellinger distance h: max(0, a - b * h), with (a, b) by whether crops are augmented:
# fitted once, on real CT and MR volumes of training sets, to the least loss. Accuracy hardly depends on them.
_HISTOGRAM_LINE = {False: (0.85, 2.8), True: (0.6, 1.2)}
_BATCH = 8


def counted_crops(overlap: Tensor, base_mask: Tensor) -> Tensor:
    """Which crops show something, (B, n + S), bool: the bases that do, and the random crops that meet one."""
    _, valid = mask_overlap(overlap, base_mask)
    return torch.cat((base_mask, valid.any(-1)), 1)


def position_scores(overlap: Tensor, similarity: Tensor, base_mask: Tensor) -> dict[str, float]:
    """Loss (form ``v2``), correlation, and how often the most similar base is the one that a crop lies in most.

    Args:
        overlap: (B, S, n).
        similarity: (B, S, n), 0 to 1.
        base_mask: (B, n), bool.

    Returns:
        ``loss``, ``correlation`` (0 where it is undefined), ``argmax_accuracy`` (ties of labels count as right).
    """
    target, valid = mask_overlap(overlap, base_mask)
    loss = position_loss(target, similarity, "v2", valid=valid)
    x, y = target[valid].double(), similarity[valid].double()
    spread = x.std() * y.std()
    correlation = ((x - x.mean()) * (y - y.mean())).sum() / (len(x) - 1) / spread if spread > 0 else 0.0
    best = torch.where(valid, similarity, -1.0).argmax(-1, keepdim=True)
    right = target.gather(-1, best)[..., 0] >= target.amax(-1) - 1e-6
    return {
        "loss": float(loss),
        "correlation": float(correlation),
        "argmax_accuracy": float(right[valid.any(-1)].double().mean()),
    }


def _unit(embeddings: Tensor) -> Tensor:
    return functional.normalize(embeddings.float(), dim=-1)


@torch.no_grad()
def training_numbers(student: Tensor, teacher: Tensor, overlap: Tensor, base_mask: Tensor) -> dict[str, Tensor | float]:
    """What to log of a training batch beside the loss; the names are explained at the top of this file.

    Args:
        student: (B, n + S, C) embeddings, the base crops first.
        teacher: (B, n + S, C).
        overlap: (B, S, n) labels.
        base_mask: (B, n), bool.
    """
    count = base_mask.shape[1]
    similarity = overlap_similarity(student[:, count:], teacher[:, :count])
    target, valid = mask_overlap(overlap, base_mask)
    counted = torch.cat((base_mask, valid.any(-1)), 1)
    unit = _unit(student)[counted]
    return {
        "argmax_accuracy": position_scores(overlap, similarity, base_mask)["argmax_accuracy"],
        "positive_logit": similarity[valid & (target > 0)].mean(),
        "zero_logit": similarity[valid & (target == 0)].mean(),
        "embedding_spread": unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5,
        "teacher_distance": 1 - (unit * _unit(teacher)[counted]).sum(-1).mean(),
        "empty_bases": 1 - base_mask.float().mean(),
    }


def embedding_rank(embeddings: Tensor) -> float:
    """Exp of the entropy of the singular values of the unit embeddings, 1 (all on one line) to min(N, C).

    Args:
        embeddings: (N, C).
    """
    values = torch.linalg.svdvals(_unit(embeddings).double())
    return float(torch.special.entr(values / values.sum().clamp_min(1e-12)).sum().exp())


def _batches(dataset: VolumeCropDataset, blocks: int, crops: int, augmented: bool) -> Iterator[dict[str, Tensor]]:
    """The monitors' samples: always the same blocks and crops, unaugmented or with each crop augmented on its own."""
    samples = []
    for block in range(blocks):
        random = np.random.default_rng([*MONITOR_SEED, block])
        index = block % len(dataset)
        samples.append(dataset.sample(random, index, augment_block=False, augment_crops=augmented, crops=crops))
        if len(samples) == _BATCH or block == blocks - 1:
            yield {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
            samples = []


def _gathered(parts: list[dict[str, Tensor]], name: str) -> dict[str, float]:
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return position_scores(joined["overlap"], joined[name], joined["base_mask"])


@torch.no_grad()
def network_scores(
    network: VoCoNetwork, dataset: VolumeCropDataset, *, blocks: int, crops: int, augmented: bool
) -> tuple[dict[str, float], dict[str, float], float]:
    """`position_scores` of the embeddings, as trained (student's crops, teacher's bases), and of the pooled features.

    The third is the `embedding_rank` of the student's embeddings of all crops that show something.

    The network's mode is put back afterwards; it has no buffers that a forward pass changes.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    parts, embeddings = [], []
    for batch in _batches(dataset, blocks, crops, augmented):
        count = batch["base_mask"].shape[1]
        counted = counted_crops(labels_of(batch), batch["base_mask"]).to(device)
        views = batch["crops"].to(device)
        features = network.features(views, counted)
        student, teacher = network.projector(features, counted), network.teach(views, counted, features)
        embeddings.append(student[counted].cpu())
        embedded = overlap_similarity(student[:, count:], teacher[:, :count])
        pooled = overlap_similarity(features[:, count:], features[:, :count])
        kept = {"overlap": labels_of(batch), "base_mask": batch["base_mask"]}
        parts.append({**kept, "embedded": embedded.cpu(), "pooled": pooled.cpu()})
    network.train(training)
    rank = embedding_rank(torch.cat(embeddings))
    return _gathered(parts, "embedded"), _gathered(parts, "pooled"), rank


def histogram_scores(dataset: VolumeCropDataset, *, blocks: int, crops: int, augmented: bool) -> dict[str, float]:
    """`position_scores` of grey-value histograms (32 bins, Hellinger distance): what needs no learning at all."""
    at_zero, slope = _HISTOGRAM_LINE[augmented]
    parts = []
    for batch in _batches(dataset, blocks, crops, augmented):
        count = batch["base_mask"].shape[1]
        roots = grey_histograms(batch["crops"].flatten(0, 1)).unflatten(0, batch["crops"].shape[:2])
        affinity = roots[:, count:] @ roots[:, :count].transpose(-1, -2)
        distance = (1 - affinity.clamp(0, 1)).sqrt()
        # No similarity is exactly 0, so that the nearest of far histograms still wins.
        similarity = (at_zero - slope * distance).clamp_min(0) + 1e-4 * (1 - distance)
        parts.append({"overlap": labels_of(batch), "base_mask": batch["base_mask"], "histogram": similarity})
    return _gathered(parts, "histogram")
