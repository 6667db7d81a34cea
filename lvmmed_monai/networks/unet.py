"""A U-Net decoder on any encoder's feature maps (Ronneberger et al. 2015), in 2D and 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from monai.networks.blocks import Convolution, UpSample
from monai.networks.nets.basic_unet import TwoConv
from torch import nn
from torch.nn import functional as F

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.contract import Encoder
from lvmmed_monai.networks.registry import build_encoder

__all__ = ["SegmentationNet", "pad_to_multiple"]

# Channels of the decoder from coarse to fine are at most _WIDEST, halved at each step, and at least _NARROWEST.
_WIDEST = 256
_NARROWEST = 16
_ACTIVATION = ("leakyrelu", {"inplace": True, "negative_slope": 0.1})
# 3D batches are of one or two patches, too few for batch statistics.
_NORMALISATION: dict[int, tuple[str, dict[str, Any]]] = {2: ("batch", {}), 3: ("instance", {"affine": True})}


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Append zeros to every spatial axis of ``x`` ``(B, C, *spatial)`` up to a multiple of ``multiple``."""
    padding: list[int] = []
    for axis in range(x.dim() - 1, 1, -1):
        padding += [0, (multiple - x.shape[axis] % multiple) % multiple]
    return F.pad(x, padding)


class _UpBlock(nn.Module):
    """Enlarge by ``factor``, put the finer map beside, and convolve twice."""

    def __init__(self, spatial_dims: int, in_channels: int, skip_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        # A transposed convolution: its gradient is repeatable on GPUs, that of an interpolation is not.
        self.up = UpSample(spatial_dims, in_channels, out_channels, scale_factor=factor, mode="deconv")
        self.conv = TwoConv(
            spatial_dims,
            out_channels + skip_channels,
            out_channels,
            act=_ACTIVATION,
            norm=_NORMALISATION[spatial_dims],
            bias=False,
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([self.up(x), skip], dim=1))


def _halvings(stride: int) -> list[int]:
    """1, 2, 4, ... below ``stride``, each a divisor of it: [] of 1, [1] of 2, [1, 2, 4, 8] of 16, [1, 2] of 12."""
    return [2**step for step in range(stride.bit_length()) if 2**step < stride and stride % 2**step == 0]


def _image_skip(dims: int, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    normalisation = _NORMALISATION[dims]
    return Convolution(dims, in_channels, out_channels, stride, act=_ACTIVATION, norm=normalisation, bias=False)


def _default_channels(skip_channels: Sequence[int]) -> list[int]:
    return [max(_NARROWEST, min(skip, _WIDEST >> step)) for step, skip in enumerate(skip_channels)]


def _checked_channels(decoder_channels: Sequence[int] | None, skip_channels: Sequence[int]) -> list[int]:
    if decoder_channels is None:
        return _default_channels(skip_channels)
    if len(decoder_channels) != len(skip_channels) or min(decoder_channels) < 1:
        raise UserError(
            f"SegmentationNet: expected {len(skip_channels)} positive decoder_channels, coarse to fine, got "
            f"{list(decoder_channels)}; decoder_channels; give that many or leave it out"
        )
    return list(decoder_channels)


class SegmentationNet(nn.Module):
    """An encoder and a U-Net decoder: one logit map per class on the input's own grid.

    The input may have any size: it is padded with zeros to a multiple of the encoder's largest stride
    and the output is cropped back. Where the encoder's finest map is coarser than the input, convolutions of
    the image itself are the finer skip connections, one at full resolution and one at each halving above that map,
    so that small structures keep their edges; a vision transformer of one map gets a whole U-Net so.

    Args:
        encoder_name: name in the registry; the encoder decides between 2D and 3D.
        in_channels: channels of the input.
        out_channels: number of classes, background included.
        encoder_options: options of the encoder.
        decoder_channels: channels of each decoder block, coarse to fine; by default those of the skip
            connections, at most 256, 128, 64, ... and at least 16.

    Raises:
        UserError: unknown encoder or option, or a wrong number of decoder channels.
    """

    def __init__(
        self,
        encoder_name: str,
        in_channels: int,
        out_channels: int,
        encoder_options: Mapping[str, Any] | None = None,
        decoder_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Encoder = build_encoder(encoder_name, in_channels=in_channels, **(encoder_options or {}))
        dims = self.encoder.spatial_dims
        strides, maps = list(self.encoder.strides), list(self.encoder.channels)
        self.multiple: int = strides[-1]
        self.stem: nn.Module | None = None
        finer = _halvings(strides[0])
        widths = [_NARROWEST * stride for stride in finer]
        if finer:
            self.stem = _image_skip(dims, in_channels, widths[0], stride=1)
        self.halvings = nn.ModuleList(_image_skip(dims, *pair, stride=2) for pair in pairwise(widths))
        strides, maps = finer + strides, widths + maps
        skips = maps[-2::-1]
        outputs = _checked_channels(decoder_channels, skips)
        factors = [coarse // fine for fine, coarse in pairwise(strides)][::-1]
        inputs = [maps[-1], *outputs[:-1]]
        self.blocks = nn.ModuleList(
            _UpBlock(dims, *sizes) for sizes in zip(inputs, skips, outputs, factors, strict=True)
        )
        self.head = Convolution(dims, outputs[-1], out_channels, kernel_size=1, conv_only=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, out_channels, *spatial)`` of ``x`` ``(B, in_channels, *spatial)``."""
        padded = pad_to_multiple(x, self.multiple)
        maps = self.encoder(padded)
        if self.stem is not None:
            skips = [self.stem(padded)]
            for halve in self.halvings:
                skips.append(halve(skips[-1]))
            maps = skips + maps
        y = maps[-1]
        for step, block in enumerate(self.blocks):
            y = block(y, maps[len(maps) - 2 - step])
        y = self.head(y)
        for axis in range(2, x.dim()):
            y = y.narrow(axis, 0, x.shape[axis])
        return y
