"""LVM-Med: 2D encoders by second-order graph matching of two views (Nguyen et al., NeurIPS 2023)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.losses.graph_matching import GraphMatchingLoss, matching_accuracy
from lvmmed_monai.methods._pictures import ViewPairs, view_pairs
from lvmmed_monai.networks import build_encoder
from lvmmed_monai.transforms.views_2d import ViewSettings, location_grids

__all__ = ["LVMMed", "LVMMedNetwork"]

_LOG = logging.getLogger(__name__)
# Monitors draw the same views, groups and node orders at every step of every run.
_MONITOR_SEED = 20230619
_MONITOR_BATCH = 64
_MONITOR_NODES = 16
# The local term compares all positions of all images: tables grow with the fourth power of a map's side.
_LARGEST_MAP = 14
# A rank below this share of the untrained network's is a collapse.
_COLLAPSED = 0.5
# Patches of a coarser map show most of a view each.
_PATCHES_A_SIDE = 8
# Projector, and feature map (from the coarsest backwards) for the local term and the patch graphs.
_FORM_OF_PRESET = {"paper": ("linear", -1), "draft": ("mlp", -1), "recommended": ("none", None)}


class LVMMedNetwork(nn.Module):
    """Encoder, projector and loss; one forward pass gives the loss, so that every weight is used within it.

    Args:
        encoder: 2D encoder.
        projector: pooled coarsest features (M, C) to embeddings.
        loss: the matching loss; its message passing may have weights.
        map_level: which of the encoder's feature maps the loss gets, -1 is the coarsest; None goes by `chosen_map`.
    """

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, loss: GraphMatchingLoss, map_level: int | None = -1
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.loss = loss
        self.map_level = map_level

    def features(self, images: Tensor) -> Tensor:
        """(M, C) averages of the coarsest feature map."""
        return self.encoder(images)[-1].mean(dim=(2, 3))

    def forward(self, view1: Tensor, view2: Tensor, location1: Tensor, location2: Tensor) -> dict[str, Any]:
        """Loss and numbers of a batch.

        Args:
            view1, view2: (M, in_channels, H, W) views of the same M images.
            location1, location2: (M, 5) places of the views.
        """
        # Both views in one pass: batch normalisation sees one common distribution.
        maps = self.encoder(torch.cat([view1, view2]))
        z1, z2 = self.projector(maps[-1].mean(dim=(2, 3))).chunk(2)
        if not self.loss.uses_maps:
            return self.loss(z1, z2)
        map1, map2 = _reduced(self.chosen_map(maps)).chunk(2)
        shape = map1.shape[2:]
        grids = location_grids(location1, *shape), location_grids(location2, *shape)
        return self.loss(z1, z2, (map1, map2), grids)

    def chosen_map(self, maps: Sequence[Tensor]) -> Tensor:
        """The map that the loss gets, of all maps of the encoder, the finest first.

        Without a level: the coarsest of the last three with 8 or more positions a side, else the finest of these.
        """
        if self.map_level is not None:
            return maps[self.map_level]
        last = maps[-3:]
        return next((one for one in reversed(last) if min(one.shape[2:]) >= _PATCHES_A_SIDE), last[0])


class LVMMed:
    """Self-supervised method: see `engines.Pretrainer` for how it is run.

    Args:
        encoder_name: a 2D encoder of `networks.ENCODERS`.
        in_channels: 3 or 1; grey images are repeated.
        encoder_options: of `networks.build_encoder`.
        preset: of `GraphMatchingLoss`. "recommended" learns from random weights within minutes; "paper" is the
            published form, for long runs or released weights.
        loss_options: single options that differ from the preset.
        projector: "linear", the published form, "mlp" (256 units, batch norm, ReLU), or "none": the pooled features
            themselves are matched; None goes by the preset.
        map_level: feature map for the local term and for patch graphs, -1 the coarsest, -2 twice as fine; None goes
            by the preset: the coarsest, or for "recommended" `LVMMedNetwork.chosen_map`.
        features: width of the embeddings of a projector.
        views: options of `transforms.views_2d.ViewSettings`; ``size`` is the side of the views in pixels.
        planes: anatomical planes in which volumes are cut.
        cache_size: longer side of the cached pictures.
        monitor_images: held-out pictures that `monitors` looks at, at most.

    Raises:
        UserError: an unknown option.
    """

    name = "lvm_med"
    metric_directions: Mapping[str, bool] = {
        "matching_accuracy": True,
        "linear_matching_accuracy": True,
        "retrieval_at_1": True,
        "effective_rank": True,
    }

    def __init__(
        self,
        *,
        encoder_name: str = "resnet50",
        in_channels: int = 3,
        encoder_options: Mapping[str, Any] | None = None,
        preset: str = "recommended",
        loss_options: Mapping[str, Any] | None = None,
        projector: str | None = None,
        map_level: int | None = None,
        features: int = 128,
        views: Mapping[str, Any] | None = None,
        planes: Sequence[str] = ("axial",),
        cache_size: int = 256,
        monitor_images: int = 512,
    ) -> None:
        try:
            self._view_settings = ViewSettings(**dict(views or {}))
        except TypeError as error:
            raise UserError(f"unknown option in views ({error}); lvm_med; see ViewSettings") from None
        self._loss = GraphMatchingLoss(preset, features, **dict(loss_options or {}))
        form = _FORM_OF_PRESET[preset]
        projector = form[0] if projector is None else projector
        if projector not in ("linear", "mlp", "none"):
            raise UserError(f"unknown projector {projector!r}; lvm_med; choose 'linear', 'mlp' or 'none'")
        self._map_level: int | None = form[1] if map_level is None else map_level
        nodes = self._loss.options.nodes_per_graph
        self.chance = dict.fromkeys(("matching_accuracy", "linear_matching_accuracy"), 1 / _MONITOR_NODES)
        if nodes:
            others = 2 * nodes - 1 if self._loss.options.both_views else nodes
            self.chance["matching_accuracy_in_training"] = 1 / others
        self.encoder_name, self.in_channels = encoder_name, in_channels
        self.encoder_options = dict(encoder_options or {})
        self.preset, self.loss_options = preset, dict(loss_options or {})
        self.projector, self.features = projector, features
        self.views, self.planes, self.cache_size = dict(views or {}), tuple(planes), cache_size
        self.monitor_images = monitor_images
        self._network: LVMMedNetwork | None = None

    def network(self) -> LVMMedNetwork:
        """The trained module, built at the first call from torch's global generator."""
        if self._network is None:
            encoder = build_encoder(self.encoder_name, self.in_channels, **self.encoder_options)
            if encoder.spatial_dims != 2:
                raise UserError(f"encoder {self.encoder_name!r} is 3D; lvm_med trains 2D encoders; choose a 2D encoder")
            if (
                self._loss.options.message_passing
                and self.projector == "none"
                and encoder.channels[-1] != self.features
            ):
                raise UserError(
                    f"features = {self.features} but the encoder gives {encoder.channels[-1]}; lvm_med; "
                    "message passing without a projector needs them equal"
                )
            projector = _projector(self.projector, encoder.channels[-1], self.features)
            self._network = LVMMedNetwork(encoder, projector, self._loss, self._map_level)
        return self._network

    def encoder(self) -> nn.Module:
        """The encoder of `network`."""
        return self.network().encoder

    def input_spec(self) -> dict[str, Any]:
        """What the encoder was trained on, for its file."""
        return {
            "spatial_dims": 2,
            "in_channels": self.in_channels,
            "spacing_mm": None,
            "intensity": "scale_intensity by modality, 0..1; grey repeated",
            "size": [self._view_settings.size] * 2,
        }

    def dataset(self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path, seed: int) -> ViewPairs:
        """View pairs of one section of datalists; see `methods._pictures.view_pairs`."""
        return view_pairs(
            datalists,
            section,
            cache_dir,
            planes=self.planes,
            cache_size=self.cache_size,
            views=self._view_settings,
            in_channels=self.in_channels,
            seed=seed,
        )

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Any]:
        """ "loss" and named numbers of one batch."""
        result = network(batch["view1"], batch["view2"], batch["location1"], batch["location2"])
        return {name: value for name, value in result.items() if name != "graphs"}

    def after_step(self, network: nn.Module) -> None:
        """Nothing moves but the weights."""

    @torch.no_grad()
    def monitors(self, dataset: ViewPairs) -> dict[str, float]:
        """Held-out measures of the encoder's pooled, centred features; fixed views, groups and node orders.

        Batch normalisation uses the statistics of the monitored batches, whatever the encoder has gone through: the
        running statistics of an untrained network are not those of any data, and it would look worse than it is.
        The network's mode and buffers are left as they were.

        Returns:
            "matching_accuracy": noise-free second-order matching in random groups of 16; "linear_matching_accuracy":
            the same without edges; "retrieval_at_1": fraction of images whose second view is the nearest of all;
            "effective_rank": exp entropy of the principal variances. NaN where there are too few images.
        """
        order = np.random.default_rng(_MONITOR_SEED).permutation(len(dataset))[: self.monitor_images]
        if len(order) < _MONITOR_NODES:
            _LOG.warning("%d held-out pictures are too few for graphs of %d: no monitors", len(order), _MONITOR_NODES)
            return dict.fromkeys(self.metric_directions, float("nan"))
        f1, f2 = self._centred_features(dataset, order)
        match = partial(matching_accuracy, f1, f2, _MONITOR_NODES, seed=_MONITOR_SEED)
        nearest = (nn.functional.normalize(f1) @ nn.functional.normalize(f2).T).argmax(dim=1)
        return {
            "matching_accuracy": match(),
            "linear_matching_accuracy": match(mode="linear"),
            "retrieval_at_1": float((nearest == torch.arange(len(f1))).double().mean()),
            "effective_rank": _effective_rank(f1),
        }

    def alarms(self, history: Mapping[str, Any]) -> list[str]:
        """Whether the features collapse: far fewer directions than without training, and no better at matching."""
        monitors = history["monitors"]
        if len(monitors) < 2:
            return []
        untrained, now = monitors[0][1], monitors[-1][1]
        rank, rank_before = now["effective_rank"], untrained["effective_rank"]
        matching, matching_before = now["matching_accuracy"], untrained["matching_accuracy"]
        if not (rank < _COLLAPSED * rank_before and matching <= matching_before):
            return []
        return [
            f"the features collapse: held-out pictures differ in {rank:.1f} directions, {rank_before:.1f} without "
            f"training, and matching is right in {matching:.0%}, {matching_before:.0%} without training; likely "
            "causes: a high learning rate, too few or too similar pictures in a batch; lower learning_rate or raise "
            "batch_size"
        ]

    def _centred_features(self, dataset: ViewPairs, order: np.ndarray) -> tuple[Tensor, Tensor]:
        network = self.network()
        device = next(network.parameters()).device
        parts = []
        with _batch_statistics(network):
            for chunk in np.array_split(order, max(1, len(order) // _MONITOR_BATCH)):
                rngs = ((int(i), np.random.default_rng([_MONITOR_SEED, int(i)])) for i in chunk)
                samples = [dataset.draw(i, rng) for i, rng in rngs]
                images = torch.stack([s["view1"] for s in samples] + [s["view2"] for s in samples]).to(device)
                parts.append(torch.stack(network.features(images).float().cpu().chunk(2)))
        features = torch.cat(parts, dim=1)
        f1, f2 = features - features.mean(dim=(0, 1))
        return f1, f2


def _reduced(maps: Tensor) -> Tensor:
    """(M, C, H, W) maps averaged to at most `_LARGEST_MAP` positions a side."""
    size = (min(maps.shape[2], _LARGEST_MAP), min(maps.shape[3], _LARGEST_MAP))
    return maps if size == maps.shape[2:] else nn.functional.adaptive_avg_pool2d(maps, size)


def _projector(kind: str, channels: int, features: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(channels, features)
    # No bias before a normalisation, which would take it away again.
    hidden = nn.Linear(channels, 256, bias=False)
    return nn.Sequential(hidden, nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Linear(256, features))


def _effective_rank(features: Tensor) -> float:
    variances = torch.linalg.svdvals(features.double()).square()
    share = variances / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.exp(torch.special.entr(share).sum()))


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[None]:
    """Training mode for the forward passes within; modes and buffers come back afterwards."""
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
