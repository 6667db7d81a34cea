"""SimCLR of places in volumes (Chen et al., arXiv 2002.05709).

Two views show the same place of a volume, each moved, turned and changed in its grey values on its own; all other
views of the batch are negatives, those of other places of the same volume too. So positives are views of one
sub-volume, as in the contrastive part of Tang et al. (arXiv 2111.14791), and a network must know places and not only
volumes. Axis order and zoom are common to both views, as to the crops of VoCo; grey values are not, for else a
histogram tells the partner (section 3.1 of the paper). Places are drawn at random: two of one volume may overlap and
still count as negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from monai.losses import ContrastiveLoss
from torch import Tensor, nn

from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.errors import UserError
from lvmmed_monai.methods._voco_network import Projector, standardise
from lvmmed_monai.methods._volume_features import (
    collapse_alarm,
    evaluating,
    grey_histograms,
    monitor_generators,
    pool,
    pooled_channels,
    pooled_rank,
)
from lvmmed_monai.methods._volume_method import VolumeMethod, last_monitors
from lvmmed_monai.methods._volumes import VolumeBlocks
from lvmmed_monai.networks import Encoder
from lvmmed_monai.transforms.crops_3d import (
    BlockAugmentation,
    augment_crop,
    draw_block_augmentation,
    draw_crop_augmentation,
    render_block,
)

__all__ = ["SimCLR3D"]

# Largest distance of a view from its place along an axis, as a share of the edge; that of two views is twice this.
# With 1/4 small crops of small volumes share too little: nothing is learnt in the time in which 1/8 learns well.
_SHIFT = 0.125
_MONITOR_PLACES = 4
_BATCH = 32


class ViewPairDataset(VolumeBlocks):
    """Pairs of views of places in volumes.

    A sample holds ``views`` (2, K, C, edge, edge, edge) and ``shows_body`` (K,), False for places in air.

    Args:
        items: datalist items with ``modality`` and ``flip_safe``.
        cache: their volumes. Volumes of air are left out.
        edge: of a view, in voxels.
        places_per_volume: places of a sample, K.
        seed: of all draws.
    """

    def __init__(
        self, items: Sequence[Mapping[str, Any]], cache: VolumeCache, *, edge: int, places_per_volume: int, seed: int
    ) -> None:
        super().__init__(items, cache, seed=seed)
        self.edge = edge
        self.places_per_volume = places_per_volume
        self.reach = round(_SHIFT * edge)

    def sample(self, random: np.random.Generator, index: int, *, places: int | None = None) -> dict[str, Tensor]:
        """One sample of volume ``index`` with everything random drawn from ``random``.

        Args:
            random: the generator.
            index: of the volume.
            places: when not ``places_per_volume``.
        """
        pairs, shows_body = [], []
        for _ in range(places or self.places_per_volume):
            region, mask = self.block(random, index, (self.edge + 2 * self.reach,) * 3)
            pairs.append(torch.stack([self._view(random, index, region) for _ in range(2)]))
            shows_body.append(mask)
        return {"views": torch.stack(pairs, 1), "shows_body": torch.cat(shows_body)}

    def _view(self, random: np.random.Generator, index: int, region: Tensor) -> Tensor:
        mirror = self.may_mirror(index)
        modality = self.data[index].get("modality", "OTHER")
        x, y, z = (slice(start, start + self.edge) for start in random.integers(2 * self.reach + 1, size=3).tolist())
        grey = draw_block_augmentation(random, modality=modality, mirror=mirror)
        grey = BlockAugmentation(window=grey.window, gamma=grey.gamma)
        view = render_block(region[:, x, y, z], (self.edge,) * 3, grey)
        return augment_crop(view, draw_crop_augmentation(random, mirror=mirror))


class SimCLRNetwork(nn.Module):
    """Encoder and projector. Features are standardised over all views of a process that show body.

    Args:
        encoder: any 3D encoder.
        hidden: width of the projector.
        out_features: of the embedding.
    """

    def __init__(self, encoder: Encoder, *, hidden: int, out_features: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Projector(pooled_channels(encoder), hidden, out_features)

    def project(self, pooled: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, F) to standardised ones (N, F) and embeddings (N, out_features)."""
        features = standardise(pooled[None], counted[None])
        return features[0], self.projector(features, counted[None])[0]

    def forward(self, views: Tensor, counted: Tensor) -> Tensor:
        """Views (N, C, X, Y, Z) and which of them count (N,) to embeddings (N, out_features)."""
        return self.project(pool(self.encoder, views), counted)[1]


def retrieval(first: Tensor, second: Tensor) -> float:
    """How often the nearest (cosine) of all second views (N, F) is the partner of a first view (N, F); NaN without."""
    if not len(first):
        return float("nan")
    similarity = nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T
    return float((similarity.argmax(1) == torch.arange(len(first), device=first.device)).double().mean())


class SimCLR3D(VolumeMethod):
    """The method: network, data, step and monitors.

    A step costs about as much as one of VoCo, whose nine bases and four crops hold 13 crop_size^3 voxels: two views of
    six places hold 12. Under DDP negatives and the projector's statistics are those of the process's own batch.

    Args:
        places_per_volume: places of a volume and step, two views each.
        temperature: of the softmax over similarities, above 0; 0.1 is the published one for large batches.
        projector: widths of the projector's hidden layers and of the embedding.
        **common: of `VolumeMethod`; a view has the edge ``crop_size``, and ``monitors`` draws 4 places in each of
            its blocks.

    Raises:
        UserError: an option that cannot be.
    """

    name = "simclr3d"
    metric_directions: Mapping[str, bool] = {
        "retrieval_at_1": True,
        "retrieval_at_1_features": True,
        "histogram_retrieval_at_1": True,
        "effective_rank": True,
    }

    def __init__(
        self,
        *,
        places_per_volume: int = 6,
        temperature: float = 0.2,
        projector: Sequence[int] = (256, 128),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if places_per_volume < 1:
            raise UserError(f"places_per_volume must be at least 1, got {places_per_volume}; simclr3d; correct it")
        if temperature <= 0:
            raise UserError(f"temperature must be above 0, got {temperature}; simclr3d; correct it")
        if len(projector) != 2 or min(projector) < 1:
            raise UserError(f"projector must be two widths, got {projector!r}; simclr3d; correct it")
        self.places_per_volume = places_per_volume
        self.temperature = temperature
        self.chance = {"retrieval_at_1": 1 / (_MONITOR_PLACES * self.monitor_blocks)}
        hidden, out_features = projector
        self._network = SimCLRNetwork(self._encoder, hidden=hidden, out_features=out_features)
        # NT-Xent, equation 1 of the paper.
        self._loss = ContrastiveLoss(temperature)
        self._histogram: WeakKeyDictionary[ViewPairDataset, float] = WeakKeyDictionary()

    def network(self) -> SimCLRNetwork:
        """The trained module: encoder and projector."""
        return self._network

    def dataset(
        self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path, seed: int
    ) -> ViewPairDataset:
        """Views of the volumes of a section of datalists; see `VolumeMethod.volumes` for the errors."""
        items, cache = self.volumes(datalists, section, cache_dir)
        return ViewPairDataset(items, cache, edge=self.crop_size, places_per_volume=self.places_per_volume, seed=seed)

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor | float]:
        """NT-Xent loss of a batch of `ViewPairDataset` samples over the places that show body, 0 with less than two.

        ``retrieval_at_1`` is measured on the batch.
        """
        views, counted = batch["views"].transpose(0, 1).flatten(1, 2), batch["shows_body"].flatten()
        first, second = network(views.flatten(0, 1), counted.repeat(2)).float().chunk(2)
        first, second = first[counted], second[counted]
        if len(first) < 2:
            return {"loss": first.sum() * 0, "retrieval_at_1": 0.0}
        with torch.autocast(first.device.type, enabled=False):
            loss = self._loss(first, second)
        return {"loss": loss, "retrieval_at_1": retrieval(first.detach(), second.detach())}

    def monitors(self, dataset: ViewPairDataset) -> dict[str, float]:
        """How often the second view of a place is told from those of all other held-out places.

        Always the same views. ``retrieval_at_1`` by the embeddings, ``…_features`` by the encoder's pooled features,
        ``histogram_…`` by grey values alone. ``effective_rank`` of pooled features of crops.
        """
        samples = [
            dataset.sample(random, index, places=_MONITOR_PLACES)
            for random, index in monitor_generators(dataset, self.monitor_blocks)
        ]
        views = torch.cat([sample["views"] for sample in samples], 1).flatten(0, 1)
        counted = torch.cat([sample["shows_body"] for sample in samples])
        device = next(self._network.parameters()).device
        with evaluating(self._network):
            pooled = torch.cat([pool(self._encoder, part.to(device)) for part in views.split(_BATCH)])
            features, embeddings = self._network.project(pooled, counted.repeat(2).to(device))
        if dataset not in self._histogram:
            self._histogram[dataset] = _pair_retrieval(grey_histograms(views), counted)
        return {
            "retrieval_at_1": _pair_retrieval(embeddings.cpu(), counted),
            "retrieval_at_1_features": _pair_retrieval(features.cpu(), counted),
            "histogram_retrieval_at_1": self._histogram[dataset],
            "effective_rank": pooled_rank(self._encoder, dataset, self.crop_size, self.monitor_blocks),
        }

    def alarms(self, history: Mapping[str, Any]) -> list[str]:
        """What is wrong with a run, in plain words; see `Pretrainer.history`."""
        last = last_monitors(history)
        if last is None:
            return []
        found = collapse_alarm(last["effective_rank"])
        reached, trivial = last["retrieval_at_1"], last["histogram_retrieval_at_1"]
        if reached <= trivial:
            found.append(
                f"views of held-out places are told apart no better ({reached:.2f}) than by a grey-value histogram "
                f"({trivial:.2f}): nothing but grey values is learnt yet; train longer, or use a larger batch_size"
            )
        return found


def _pair_retrieval(views: Tensor, counted: Tensor) -> float:
    first, second = views.chunk(2)
    return retrieval(first[counted], second[counted])
