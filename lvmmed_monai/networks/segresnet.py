"""The encoder half of SegResNet (Myronenko, arXiv 1810.11654), of MONAI's residual blocks.

``segresnet_b`` has the names and shapes of the encoder of ``monai.networks.nets.SegResNet(init_filters=32)``, so
weights pass between the two. ``segresnet_tiny`` halves the resolution in its first layer and is small enough for
pre-training on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.blocks.segresnet_block import ResBlock, get_conv_layer
from torch import Tensor, nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.contract import Encoder

__all__ = ["SegResNetEncoder", "segresnet_b", "segresnet_tiny"]


class SegResNetEncoder(Encoder):
    """Residual 3D encoder; each stage after the first halves the resolution and doubles the channels.

    Args:
        name: of the encoder, for encoder files.
        in_channels: of the image.
        init_filters: channels of the first stage; a multiple of 8 (group normalisation has 8 groups).
        blocks_down: residual blocks of each stage.
        stem_stride: of the first layer.
        options: what `lvmmed_monai.networks.build_encoder` needs to build this encoder again.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 1,
        *,
        init_filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        stem_stride: int = 1,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if init_filters < 8 or init_filters % 8:
            raise UserError(f"init_filters must be a multiple of 8, got {init_filters}; encoder {name}; correct it")
        channels = [init_filters * 2**stage for stage in range(len(blocks_down))]
        self.convInit = get_conv_layer(3, in_channels, init_filters, stride=stem_stride)
        self.down_layers = nn.ModuleList(
            self._stage(stage, width, blocks)
            for stage, (width, blocks) in enumerate(zip(channels, blocks_down, strict=True))
        )
        self.describe(
            name=name,
            options=options or {},
            in_channels=in_channels,
            spatial_dims=3,
            channels=channels,
            strides=[stem_stride * 2**stage for stage in range(len(blocks_down))],
        )

    @staticmethod
    def _stage(stage: int, width: int, blocks: int) -> nn.Sequential:
        halve = get_conv_layer(3, width // 2, width, stride=2) if stage else nn.Identity()
        norm = ("GROUP", {"num_groups": 8})
        return nn.Sequential(halve, *(ResBlock(3, width, norm=norm) for _ in range(blocks)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of (B, in_channels, X, Y, Z), fine to coarse."""
        x = self.convInit(x)
        maps = []
        for stage in self.down_layers:
            x = stage(x)
            maps.append(x)
        return maps


def segresnet_tiny(in_channels: int = 1, *, init_filters: int = 16) -> SegResNetEncoder:
    """Three stages of one block from half resolution on: strides 2, 4, 8; 0.36 M parameters with 16 filters."""
    return SegResNetEncoder(
        "segresnet_tiny",
        in_channels,
        init_filters=init_filters,
        blocks_down=(1, 1, 1),
        stem_stride=2,
        options={"init_filters": init_filters},
    )


def segresnet_b(in_channels: int = 1, *, init_filters: int = 32) -> SegResNetEncoder:
    """MONAI's encoder of 1, 2, 2, 4 blocks from full resolution on: strides 1, 2, 4, 8."""
    options = {"init_filters": init_filters}
    return SegResNetEncoder("segresnet_b", in_channels, init_filters=init_filters, options=options)
