"""The settings that `learning_2d.py` compares: the graph matching loss in many forms, and InfoNCE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lvmmed_monai.graph_matching import GraphMatchingProblem, patch_pairs
from lvmmed_monai.losses import GraphMatchingLoss
from lvmmed_monai.losses._graph_matching_options import GraphMatchingOptions

__all__ = ["SETTINGS", "GrowingMargin", "InfoNCE", "Setting", "SpreadMargin"]


class InfoNCE(nn.Module):
    """Contrast of an image's two views with all other views of the batch (Chen et al. 2020), as a baseline.

    Args:
        temperature: of the softmax over cosines.
        standardise, patches: as the preset "recommended" does.
    """

    def __init__(self, temperature: float, standardise: bool = False, patches: int = 0) -> None:
        super().__init__()
        self.temperature, self.standardise, self.patches = temperature, standardise, patches
        self.uses_maps = patches > 0

    def forward(self, z1: Tensor, z2: Tensor, maps: Any = None, grids: Any = None) -> dict[str, Tensor]:
        loss = self.contrast(z1, z2)
        if self.patches:
            pairs = zip(*patch_pairs(maps, grids, self.patches), strict=True)
            loss = (loss + torch.stack([self.contrast(*pair) for pair in pairs]).mean()) / 2
        return {"loss": loss}

    def contrast(self, z1: Tensor, z2: Tensor) -> Tensor:
        both = torch.cat([z1, z2])
        if self.standardise:
            both = nn.functional.batch_norm(both, None, None, training=True)
        unit = nn.functional.normalize(both, dim=1)
        similarity = unit @ unit.T / self.temperature
        similarity.fill_diagonal_(-torch.inf)
        partner = torch.arange(len(both)).roll(len(z1))
        return nn.functional.cross_entropy(similarity, partner)


class SpreadMargin(GraphMatchingLoss):
    """The loss with a margin of ``spreads`` standard deviations of the vertex affinities of wrong pairs."""

    options: GraphMatchingOptions

    def __init__(self, spreads: float, preset: str, **options: Any) -> None:
        super().__init__(preset, 128, **options)
        self.spreads = spreads

    def _distance(self, problem: GraphMatchingProblem, gold: Tensor, mode: str) -> tuple[Tensor, float]:
        affinity = problem.vertex_affinity.detach()
        wrong = ~nn.functional.one_hot(gold, problem.nodes).bool()
        if self.options.both_views:
            # A node is kept from matching itself by one affinity far below all others.
            wrong &= affinity > affinity.amin()
        self.options = replace(self.options, margin=self.spreads * float(affinity[wrong].std()))
        return super()._distance(problem, gold, mode)


class GrowingMargin(GraphMatchingLoss):
    """The loss with a margin that grows evenly from 0 to ``highest`` in ``steps`` and stays there."""

    options: GraphMatchingOptions

    def __init__(self, highest: float, steps: int, preset: str, **options: Any) -> None:
        super().__init__(preset, 128, **options)
        self.highest, self.steps, self.done = highest, steps, 0

    def forward(self, *views: Any, **more: Any) -> dict[str, Any]:
        self.done += 1
        self.options = replace(self.options, margin=self.highest * min(1.0, self.done / self.steps))
        return super().forward(*views, **more)


@dataclass(frozen=True)
class Setting:
    """A loss, the projector before it, and the map it looks at; None goes by `LVMMedNetwork.chosen_map`."""

    loss: Callable[[], nn.Module]
    projector: str = "mlp"
    map_level: int | None = -1


def matching(preset: str, projector: str, **options: Any) -> Setting:
    """A setting of the graph matching loss."""
    return Setting(lambda: GraphMatchingLoss(preset, 128, **options), projector)


def recommended(projector: str = "none", map_level: int | None = None, **options: Any) -> Setting:
    """The preset "recommended" with some options changed."""
    return Setting(lambda: GraphMatchingLoss("recommended", 128, **options), projector, map_level)


def spread_margin(spreads: float, **options: Any) -> Setting:
    """The preset "recommended" with a margin that follows the spread."""
    return Setting(lambda: SpreadMargin(spreads, "recommended", **options), "none", None)


def contrast(temperature: float, patches: int) -> Setting:
    """InfoNCE in the form of the preset "recommended"."""
    return Setting(lambda: InfoNCE(temperature, standardise=True, patches=patches), "none", None)


PLAIN: dict[str, Any] = {"alpha": 1.0, "message_passing": None, "noise_scale_vertex": 0.0, "noise_scale_edge": 0.0}
MARGIN_5: dict[str, Any] = {**PLAIN, "margin": 5.0, "mode": "fast"}
SECOND: dict[str, Any] = {
    "nodes_per_graph": 16,
    "both_views": False,
    "edge_weight": 1.0,
    "margin": 5.0,
    "noise_scale_vertex": 0.0,
    "samples": 1,
    "regroup": 8,
    "mode": "fast",
    "patch_mode": "fast",
}
EDGES: dict[str, Any] = {"mode": "fast", "edge_weight": 0.05}
QUIET: dict[str, Any] = {"noise_scale_vertex": 0.0, "samples": 1}
CUTS: dict[str, Any] = {**MARGIN_5, "regroup": 8}
SETTINGS: dict[str, Setting | None] = {
    "random weights": None,
    "InfoNCE .1": Setting(lambda: InfoNCE(0.1)),
    "InfoNCE .2": Setting(lambda: InfoNCE(0.2)),
    "InfoNCE .5": Setting(lambda: InfoNCE(0.5)),
    "recommended": recommended(),
    "InfoNCE .1, patches": contrast(0.1, 4),
    "InfoNCE .15, patches": contrast(0.15, 4),
    "recommended, edges .05": recommended(**EDGES, patch_mode="fast"),
    "recommended, edges .05 of images only": recommended(**EDGES),
    "recommended, 16 samples": recommended(samples=16),
    "recommended, one view a side": recommended(both_views=False),
    "recommended, coarser patches": recommended(map_level=-2),
    "recommended, no patches": recommended(patch_graphs=0),
    "InfoNCE .1, no projector": contrast(0.1, 0),
    "recommended, MLP projector": recommended("mlp", standardise=False),
    "recommended, margin 5": recommended(**SECOND),
    "linear, margin 1": matching("paper", "mlp", **{**PLAIN, "margin": 1.0, "mode": "linear"}),
    "linear, noise .2 x 16": matching(
        "paper", "mlp", **{**PLAIN, "noise_scale_vertex": 0.2, "samples": 16, "mode": "linear", "nodes_per_graph": None}
    ),
    "second order, margin 5": matching("paper", "mlp", **MARGIN_5),
    "second order, margin 5, 8 cuts": matching("paper", "mlp", **MARGIN_5, regroup=8),
    "second order, margin 10, symmetric, 8 cuts": matching(
        "paper", "mlp", **{**CUTS, "margin": 10.0, "symmetric": True}
    ),
    "second order, margin 20 spreads, 8 cuts": Setting(lambda: SpreadMargin(20.0, "paper", **CUTS)),
    "second order, margin growing to 8, 8 cuts": Setting(lambda: GrowingMargin(8.0, 350, "paper", **CUTS)),
    "recommended, margin of 1 spread for noise": spread_margin(1.0, **QUIET),
    "recommended, margin of 2 spreads for noise": spread_margin(2.0, **QUIET),
    "recommended, margin of 3 spreads for noise": spread_margin(3.0, **QUIET),
    "recommended, noise and margin of half a spread": spread_margin(0.5),
    "recommended, noise and margin growing to .3": Setting(
        lambda: GrowingMargin(0.3, 350, "recommended"), "none", None
    ),
    "recommended, symmetric edges .05": recommended(**EDGES, symmetric=True, patch_mode="fast"),
    "linear, margin of 2 spreads": Setting(lambda: SpreadMargin(2.0, "paper", **{**PLAIN, "mode": "linear"})),
    "paper": matching("paper", "linear"),
    "paper, MLP projector": matching("paper", "mlp"),
    "paper, no message passing": matching("paper", "linear", message_passing=None),
    "paper, residual message passing": matching("paper", "linear", message_passing="residual"),
    "paper, margin 5": matching("paper", "linear", noise_scale_vertex=0.0, noise_scale_edge=0.0, margin=5.0),
    "paper, 16 noise samples": matching("paper", "linear", samples=16, mode="fast"),
}
