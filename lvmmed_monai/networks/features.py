"""A tensor in, a tensor out: an encoder as a network that MONAI's export and checks understand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lvmmed_monai.networks.registry import build_encoder

__all__ = ["FeatureExtractor"]


class FeatureExtractor(nn.Module):
    """The coarsest feature map of an encoder.

    Args:
        encoder_name: name in the registry.
        in_channels: channels of the input.
        encoder_options: options of the encoder.
    """

    def __init__(
        self, encoder_name: str, in_channels: int = 1, encoder_options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder_name, in_channels=in_channels, **(encoder_options or {}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, in_channels, *spatial)`` to ``(B, encoder.channels[-1], *spatial / encoder.strides[-1])``."""
        return self.encoder(x)[-1]
