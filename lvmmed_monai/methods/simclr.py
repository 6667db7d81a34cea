"""SimCLR: the second view of a picture is told from all other views of the batch (Chen et al., arXiv 2002.05709)."""

from __future__ import annotations

from typing import Any

from monai.losses import ContrastiveLoss
from torch import Tensor

from lvmmed_monai.methods._siamese import JointMethod, above_zero

__all__ = ["SimCLR"]


class SimCLR(JointMethod):
    """The loss is NT-Xent, equation 1 of the paper, by MONAI's `ContrastiveLoss`.

    MONAI's form holds (2 M)^2 F numbers for M pairs of F features: 8 MB at 64 pairs, 2 GB at 1024.

    Args:
        temperature: of the softmax over cosines. The paper takes 0.1 for batches of thousands.
        **common: of `JointMethod`. The paper's projector is (2048, 128).

    Raises:
        UserError: an option that cannot be.
    """

    name = "simclr"

    def __init__(self, *, temperature: float = 0.2, **common: Any) -> None:
        super().__init__(**common)
        self.temperature = above_zero(temperature, "temperature", self.name)
        self._loss = ContrastiveLoss(temperature)

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """NT-Xent of embeddings (M, F)."""
        return {"loss": self._loss(z1, z2)}
