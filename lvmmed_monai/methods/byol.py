"""BYOL: one view predicts what a slow copy of the network says of the other (Grill et al., arXiv 2006.07733)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvmmed_monai.methods._projection import checked_widths, mlp
from lvmmed_monai.methods._siamese import MomentumMethod, MomentumNetwork, embedding_numbers
from lvmmed_monai.networks import Encoder

__all__ = ["BYOL", "BYOLNetwork", "byol_loss"]


def byol_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Equation 2 of the paper, summed over both directions, of (2, M, F): view 1's answer predicts view 2's target."""
    cosine = functional.cosine_similarity(predicted, target.flip(0), dim=-1)
    return (2 - 2 * cosine).mean(dim=1).sum()


class BYOLNetwork(MomentumNetwork):
    """Encoder, projector and predictor; the slow copy has no predictor."""

    def __init__(self, encoder: nn.Module, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__(encoder, projector)
        self.predictor = predictor

    def forward(self, view1: Tensor, view2: Tensor) -> dict[str, Tensor]:
        """ "loss" and numbers of two views (M, in_channels, H, W)."""
        z = self.embed_views(view1, view2)
        predicted = self.predictor(z.flatten(0, 1)).float().view_as(z)
        with torch.no_grad():
            target = self.target.embed_views(view1, view2)
        with torch.autocast(z.device.type, enabled=False):
            return {"loss": byol_loss(predicted, target), **embedding_numbers(*z)}


class BYOL(MomentumMethod):
    """The method. Nothing is compared between pictures but by batch normalisation, whose statistics are a process's.

    The paper lets the momentum grow from 0.996 to 1; here it stays.

    Args:
        predictor: width of the predictor's hidden layer.
        **common: of `MomentumMethod`. The paper's projector is (4096, 256), its predictor 4096.

    Raises:
        UserError: an option that cannot be.
    """

    name = "byol"

    def __init__(self, *, predictor: Sequence[int] = (512,), **common: Any) -> None:
        super().__init__(**common)
        self.predictor = checked_widths(predictor, "predictor", self.name)

    def build(self, encoder: Encoder) -> BYOLNetwork:
        """Encoder, projector, predictor and the slow copy."""
        projector = self.make_projector(encoder)
        return BYOLNetwork(encoder, projector, mlp(self.projector[-1], (*self.predictor, self.projector[-1])))
