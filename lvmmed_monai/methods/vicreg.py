"""VICReg: views agree, features vary, and say different things (Bardes et al., arXiv 2105.04906)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lvmmed_monai.errors import UserError
from lvmmed_monai.methods._siamese import JointMethod

__all__ = ["VICReg", "WeightedVICReg", "vicreg_terms"]

# Constant in the root of equation 2.
_EPS = 1e-4


def vicreg_terms(z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """The three terms of the paper, scaled as in the authors' code, to which the published weights belong.

    Args:
        z1, z2: (..., M, F); statistics are taken over the M, and the terms are means over what stands before.

    Returns:
        "invariance": equation 5 divided by F; "variance": equation 1, the mean of both views; "covariance": equation
        4, the sum of both views.
    """
    variance = covariance = z1.new_zeros(())
    for features in (z1, z2):
        centred = features - features.mean(dim=-2, keepdim=True)
        products = centred.transpose(-1, -2) @ centred / (features.shape[-2] - 1)
        variances = products.diagonal(dim1=-2, dim2=-1)
        variance = variance + (1 - (variances + _EPS).sqrt()).relu().mean() / 2
        others = products.square().sum(dim=(-1, -2)) - variances.square().sum(dim=-1)
        covariance = covariance + (others / features.shape[-1]).mean()
    return {"invariance": (z1 - z2).square().mean(), "variance": variance, "covariance": covariance}


class WeightedVICReg:
    """Equation 6 of the paper.

    Args:
        coefficients: of invariance, variance and covariance.
        method: whose option it is.

    Raises:
        UserError: not three numbers above 0.
    """

    def __init__(self, coefficients: Sequence[float], method: str) -> None:
        if len(coefficients) != 3 or min(coefficients) <= 0:
            raise UserError(f"coefficients must be three numbers above 0, got {coefficients!r}; {method}; correct them")
        self.coefficients = dict(zip(("invariance", "variance", "covariance"), coefficients, strict=True))

    def __call__(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """ "loss" and its terms of two (..., M, F)."""
        terms = vicreg_terms(z1, z2)
        total = z1.new_zeros(())
        for name, weight in self.coefficients.items():
            total = total + weight * terms[name]
        return {"loss": total, **terms}


class VICReg(JointMethod):
    """The method.

    Args:
        coefficients: of invariance, variance and covariance: lambda, mu and nu of the paper.
        projector: widths of the projector's layers; the paper's are (8192, 8192, 8192).
        **common: of `JointMethod`.

    Raises:
        UserError: an option that cannot be.
    """

    name = "vicreg"

    def __init__(
        self,
        *,
        coefficients: Sequence[float] = (25.0, 25.0, 1.0),
        projector: Sequence[int] = (512, 512, 512),
        **common: Any,
    ) -> None:
        super().__init__(projector=projector, **common)
        self._loss = WeightedVICReg(coefficients, self.name)
        self.coefficients = tuple(coefficients)

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """The weighted sum of the terms, and the terms."""
        return self._loss(z1, z2)
