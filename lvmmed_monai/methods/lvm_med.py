"""LVM-Med: 2D encoders by second-order graph matching of two views (Nguyen et al., NeurIPS 2023)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import solver_seconds
from lvmmed_monai.losses.graph_matching import GraphMatchingLoss
from lvmmed_monai.methods._lvm_med_alarms import lvm_med_alarms
from lvmmed_monai.methods._picture_features import embedding_spread
from lvmmed_monai.methods._picture_method import PictureMethod
from lvmmed_monai.methods._pictures import ViewPairs
from lvmmed_monai.methods._projection import mlp
from lvmmed_monai.networks import Encoder
from lvmmed_monai.transforms.views_2d import location_grids

__all__ = ["LVMMed", "LVMMedNetwork", "make_projector"]

# The local term compares all positions of all images: tables grow with the fourth power of a map's side.
_LARGEST_MAP = 14
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

    def forward(self, view1: Tensor, view2: Tensor, location1: Tensor, location2: Tensor) -> dict[str, Any]:
        """Loss and numbers of a batch.

        Args:
            view1, view2: (M, in_channels, H, W) views of the same M images.
            location1, location2: (M, 5) places of the views.
        """
        # Both views in one pass: batch normalisation sees one common distribution.
        maps = self.encoder(torch.cat([view1, view2]))
        embeddings = self.projector(maps[-1].mean(dim=(2, 3)))
        z1, z2 = embeddings.chunk(2)
        spread = {"embedding_spread": embedding_spread(embeddings.detach())}
        if not self.loss.uses_maps:
            return {**self.loss(z1, z2), **spread}
        map1, map2 = _reduced(self.chosen_map(maps)).chunk(2)
        shape = map1.shape[2:]
        grids = location_grids(location1, *shape), location_grids(location2, *shape)
        return {**self.loss(z1, z2, (map1, map2), grids), **spread}

    def chosen_map(self, maps: Sequence[Tensor]) -> Tensor:
        """The map that the loss gets, of all maps of the encoder, the finest first.

        Without a level: the coarsest of the last three with 8 or more positions a side, else the finest of these.
        """
        if self.map_level is not None:
            return maps[self.map_level]
        last = maps[-3:]
        return next((one for one in reversed(last) if min(one.shape[2:]) >= _PATCHES_A_SIDE), last[0])


class LVMMed(PictureMethod):
    """Self-supervised method: see `engines.Pretrainer` for how it is run.

    Args:
        preset: of `GraphMatchingLoss`. "recommended" learns from random weights within minutes; "paper" is the
            published form, for long runs or released weights.
        loss_options: single options that differ from the preset.
        projector: "linear", the published form, "mlp" (256 units, batch norm, ReLU), or "none": the pooled features
            themselves are matched; None goes by the preset.
        map_level: feature map for the local term and for patch graphs, -1 the coarsest, -2 twice as fine; None goes
            by the preset: the coarsest, or for "recommended" `LVMMedNetwork.chosen_map`.
        features: width of the embeddings of a projector.
        **common: of `PictureMethod`.

    Raises:
        UserError: an unknown option.
    """

    name = "lvm_med"

    def __init__(
        self,
        *,
        preset: str = "recommended",
        loss_options: Mapping[str, Any] | None = None,
        projector: str | None = None,
        map_level: int | None = None,
        features: int = 128,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self._loss = GraphMatchingLoss(preset, features, **dict(loss_options or {}))
        form = _FORM_OF_PRESET[preset]
        projector = form[0] if projector is None else projector
        if projector not in ("linear", "mlp", "none"):
            raise UserError(f"unknown projector {projector!r}; lvm_med; choose 'linear', 'mlp' or 'none'")
        self._map_level: int | None = form[1] if map_level is None else map_level
        nodes = self._loss.options.nodes_per_graph
        if nodes:
            others = 2 * nodes - 1 if self._loss.options.both_views else nodes
            self.chance["matching_accuracy_in_training"] = 1 / others
        self._pictures, self._images_of_step = 0, 0
        self.preset, self.loss_options = preset, dict(loss_options or {})
        self.projector, self.features = projector, features

    def build(self, encoder: Encoder) -> LVMMedNetwork:
        """Encoder, projector and loss."""
        channels = encoder.channels[-1]
        if self._loss.options.message_passing and self.projector == "none" and channels != self.features:
            raise UserError(
                f"features = {self.features} but the encoder gives {channels}; lvm_med; "
                "message passing without a projector needs them equal"
            )
        return LVMMedNetwork(
            encoder, make_projector(self.projector, channels, self.features), self._loss, self._map_level
        )

    def batch_problem(self, batch_size: int) -> str | None:
        """Why a batch cannot be cut into graphs; see `PictureMethod`."""
        return self._loss.options.batch_problem(batch_size)

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Any]:
        """ "loss" and named numbers of one batch, "matching_share" is the solver's part of the step's time."""
        share = _SolverShare()
        result = network(batch["view1"], batch["view2"], batch["location1"], batch["location2"])
        nodes, both_views = result["nodes"], self._loss.options.both_views
        self.chance["matching_accuracy_in_training"] = 1 / (nodes - 1 if both_views else nodes)
        self._images_of_step = nodes * result["graphs"] // (self._loss.options.regroup * (1 + both_views))
        return {
            **{name: value for name, value in result.items() if name not in ("graphs", "nodes")},
            "matching_share": share,
        }

    def dataset(self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path, seed: int) -> ViewPairs:
        """View pairs of one section of datalists; see `PictureMethod.dataset`."""
        found = super().dataset(datalists, section, cache_dir, seed)
        if section == "training":
            self._pictures = len(found)
        return found

    def alarms(self, history: Mapping[str, Any]) -> list[str]:
        """`PictureMethod.alarms` and those of the matching: see `methods._lvm_med_alarms`."""
        chance = self.chance.get("matching_accuracy_in_training", 0.0)
        own = lvm_med_alarms(history, chance=chance, pictures=self._pictures, batch=self._images_of_step)
        return [*super().alarms(history), *own]


class _SolverShare:
    """Part of the time since its making that this process has spent in solvers; a number when it is asked for one.

    The backward pass solves, too, after a step's numbers have been given. On a GPU it is the host's time (see
    `graph_matching.solver_seconds`), which nothing is waited for to measure.
    """

    def __init__(self) -> None:
        self._start, self._before = time.perf_counter(), solver_seconds()

    def __float__(self) -> float:
        return (solver_seconds() - self._before) / max(1e-9, time.perf_counter() - self._start)


def _reduced(maps: Tensor) -> Tensor:
    """(M, C, H, W) maps averaged to at most `_LARGEST_MAP` positions a side."""
    size = (min(maps.shape[2], _LARGEST_MAP), min(maps.shape[3], _LARGEST_MAP))
    return maps if size == maps.shape[2:] else nn.functional.adaptive_avg_pool2d(maps, size)


def make_projector(kind: str, channels: int, features: int) -> nn.Module:
    """A projector (M, channels) to (M, features): "none", "linear" or "mlp"."""
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(channels, features)
    return mlp(channels, (256, features))
