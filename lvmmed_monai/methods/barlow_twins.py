"""Barlow Twins: the cross-correlation of both views' features is to be the identity (Zbontar et al., arXiv 2103.03230).

MONAI's `BarlowTwinsLoss` divides by the unbiased standard deviation but averages over all M pictures, so that its
correlations end at 1 - 1/M and its loss never reaches 0. Equation 2 of the paper gives 1: hence a loss of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from lvmmed_monai.methods._siamese import JointMethod, above_zero

__all__ = ["BarlowTwins", "barlow_twins_loss"]


def barlow_twins_loss(z1: Tensor, z2: Tensor, redundancy: float) -> tuple[Tensor, Tensor]:
    """Equation 1 of the paper of two (M, F): its invariance term, and ``redundancy`` times its redundancy term."""
    first, second = (functional.batch_norm(one, None, None, training=True) for one in (z1, z2))
    correlation = first.T @ second / len(first)
    on_diagonal = correlation.diagonal()
    redundant = correlation.square().sum() - on_diagonal.square().sum()
    return (1 - on_diagonal).square().sum(), redundancy * redundant


class BarlowTwins(JointMethod):
    """The method.

    Args:
        redundancy: weight of the redundancy term, lambda of the paper.
        projector: widths of the projector's layers; the paper's are (8192, 8192, 8192).
        **common: of `JointMethod`.

    Raises:
        UserError: an option that cannot be.
    """

    name = "barlow_twins"

    def __init__(self, *, redundancy: float = 0.005, projector: Sequence[int] = (512, 512, 512), **common: Any) -> None:
        super().__init__(projector=projector, **common)
        self.redundancy = above_zero(redundancy, "redundancy", self.name)

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """Both terms of embeddings (M, F)."""
        invariance, redundant = barlow_twins_loss(z1, z2, self.redundancy)
        return {"loss": invariance + redundant, "invariance": invariance, "redundancy": redundant}
