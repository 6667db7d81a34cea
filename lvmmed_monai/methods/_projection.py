"""Heads on pooled features that 2D methods share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvmmed_monai.errors import UserError

__all__ = ["Prototypes", "checked_widths", "mlp"]


def mlp(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear layers (M, channels) to (M, widths[-1]), with batch normalisation and ReLU between them.

    Args:
        channels: of the input.
        widths: of the layers; a single one makes a linear projection.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *widths[:-1])):
        # No bias before a normalisation, which would take it away again.
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear((channels, *widths)[-2], widths[-1]))


def checked_widths(widths: Sequence[int], name: str, method: str) -> tuple[int, ...]:
    """The widths of a head.

    Raises:
        UserError: none, or one below 1.
    """
    if not widths or min(widths) < 1:
        raise UserError(f"{name} must be one or more widths from 1 up, got {widths!r}; {method}; correct it")
    return tuple(widths)


class Prototypes(nn.Module):
    """Cosines of features with ``count`` learnt directions: a linear layer without bias whose rows have length 1.

    Args:
        features: width of the input.
        count: number of directions.
    """

    def __init__(self, features: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(functional.normalize(torch.randn(count, features), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """(..., features) to (..., count), float32, -1 to 1."""
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(self.weight, dim=1)
            return functional.linear(functional.normalize(features.float(), dim=-1), directions)
