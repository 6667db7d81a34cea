"""The settings that `learning_2d.py` compares: the graph matching loss in many forms, and InfoNCE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lvmmed_monai.graph_matching import patch_pairs
from lvmmed_monai.losses import GraphMatchingLoss

__all__ = ["SETTINGS", "InfoNCE", "Setting"]


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
    "paper": matching("paper", "linear"),
    "paper, MLP projector": matching("paper", "mlp"),
    "paper, no message passing": matching("paper", "linear", message_passing=None),
    "paper, residual message passing": matching("paper", "linear", message_passing="residual"),
    "paper, margin 5": matching("paper", "linear", noise_scale_vertex=0.0, noise_scale_edge=0.0, margin=5.0),
    "paper, 16 noise samples": matching("paper", "linear", samples=16, mode="fast"),
}
