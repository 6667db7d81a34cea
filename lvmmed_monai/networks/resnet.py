"""ResNet-18 and ResNet-50 in 2D (He et al. 2016), from MONAI's blocks, with torchvision's key names."""

from __future__ import annotations

import torch
from monai.networks.nets.resnet import ResNet

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.contract import Encoder

__all__ = ["ResNetEncoder", "resnet18", "resnet50"]


class ResNetEncoder(ResNet, Encoder):
    """A 2D ResNet that returns the map after its first convolution and after each of its four stages.

    The state dict has the names and shapes of a torchvision ResNet without ``fc``, so that released
    weights fit. Two of MONAI's defaults would load the same weights and compute something else:
    ``conv1_t_stride=1`` (here 2, the published network) and a bias in the shortcut convolutions.

    Args:
        name: name in the registry.
        block: "basic" or "bottleneck".
        layers: blocks of each of the four stages.
        in_channels: channels of the input.
        width: channels of the first stage (64 in the paper); the others are 2, 4 and 8 times it.
    """

    def __init__(self, name: str, block: str, layers: tuple[int, int, int, int], in_channels: int, width: int) -> None:
        if width < 1 or in_channels < 1:
            raise UserError(
                f"{name}: width and in_channels must be at least 1, got {width} and {in_channels}; encoder_options; "
                "use e.g. width=64"
            )
        planes = [width * factor for factor in (1, 2, 4, 8)]
        super().__init__(
            block=block,
            layers=list(layers),
            block_inplanes=planes,
            spatial_dims=2,
            n_input_channels=in_channels,
            conv1_t_stride=2,
            shortcut_type="B",
            bias_downsample=False,
            feed_forward=False,
        )
        expansion = 4 if block == "bottleneck" else 1
        self.describe(
            name=name,
            options={"width": width},
            in_channels=in_channels,
            spatial_dims=2,
            channels=(width, *(expansion * plane for plane in planes)),
            strides=(2, 4, 8, 16, 32),
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        """Maps at strides 2, 4, 8, 16, 32 of ``x`` ``(B, in_channels, H, W)``."""
        stem = self.act(self.bn1(self.conv1(x)))
        stage1 = self.layer1(self.maxpool(stem))
        stage2 = self.layer2(stage1)
        stage3 = self.layer3(stage2)
        return [stem, stage1, stage2, stage3, self.layer4(stage3)]


def resnet18(*, in_channels: int = 1, width: int = 64) -> ResNetEncoder:
    """ResNet-18: 11.2 M parameters at width 64, 0.7 M at width 16."""
    return ResNetEncoder("resnet18", "basic", (2, 2, 2, 2), in_channels, width)


def resnet50(*, in_channels: int = 1, width: int = 64) -> ResNetEncoder:
    """ResNet-50: 23.5 M parameters at width 64."""
    return ResNetEncoder("resnet50", "bottleneck", (3, 4, 6, 3), in_channels, width)
