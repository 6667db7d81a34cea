"""SwinUNETR v2 as a segmentation network on our encoder (Hatamizadeh, arXiv 2201.01266; He et al., MICCAI 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.networks.blocks import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock
from torch import Tensor, nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.registry import build_encoder
from lvmmed_monai.networks.swin import SwinUNETREncoder
from lvmmed_monai.networks.unet import pad_to_multiple

__all__ = ["SwinUNETRNet"]


class SwinUNETRNet(nn.Module):
    """An encoder of the family ``swinunetr_*`` under the decoder of ``monai.networks.nets.SwinUNETR``.

    With four stages it is MONAI's ``SwinUNETR(use_v2=True)`` tensor for tensor, and `monai_state_dict` fills that.
    With three stages (``swinunetr_tiny``) the decoder begins one step higher: no ``encoder10``, no ``decoder5``.
    The input may have any size: it is padded with zeros to a multiple of the encoder's largest stride and the
    logits are cropped back.

    Args:
        encoder_name: one of ``swinunetr_tiny|b|l|h``.
        in_channels: channels of the input.
        out_channels: number of classes, background included; 21 in the published VoComni networks.
        encoder_options: options of the encoder.

    Raises:
        UserError: unknown encoder or option, or an encoder of another family.
    """

    def __init__(
        self,
        encoder_name: str = "swinunetr_b",
        in_channels: int = 1,
        out_channels: int = 21,
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        encoder = build_encoder(encoder_name, in_channels=in_channels, **(encoder_options or {}))
        if not isinstance(encoder, SwinUNETREncoder):
            raise UserError(
                f"the decoder of SwinUNETR does not fit the encoder {encoder_name!r}; encoder_name; "
                "choose one of swinunetr_tiny, swinunetr_b, swinunetr_l, swinunetr_h, or the network SegmentationNet"
            )
        self.encoder: SwinUNETREncoder = encoder
        width = encoder.channels
        self.decoder1 = _up_block(width[1], width[0])
        self.decoder2 = _up_block(width[2], width[1])
        self.decoder3 = _up_block(width[3], width[2])
        self.decoder4 = _up_block(width[4], width[3])
        if encoder.stages == 4:
            self.decoder5 = _up_block(width[5], width[4])
        self.out = UnetOutBlock(spatial_dims=3, in_channels=width[0], out_channels=out_channels)

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits ``(B, out_channels, X, Y, Z)`` on the grid of the finest of the encoder's ``maps``.

        Nothing but ``maps`` connects the decoder with the encoder: detach all of them, and no gradient passes.
        """
        x = maps[-1]
        if self.encoder.stages == 4:
            x = self.decoder5(x, maps[4])
        x = self.decoder4(x, maps[3])
        x = self.decoder3(x, maps[2])
        x = self.decoder2(x, maps[1])
        return self.out(self.decoder1(x, maps[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, out_channels, X, Y, Z)`` of ``x`` ``(B, in_channels, X, Y, Z)``."""
        logits = self.decode(self.encoder(pad_to_multiple(x, self.encoder.strides[-1])))
        return logits[..., : x.shape[2], : x.shape[3], : x.shape[4]]

    def monai_state_dict(self) -> dict[str, Tensor]:
        """The weights under the names of ``monai.networks.nets.SwinUNETR(use_v2=True)``: 167 tensors.

        Raises:
            UserError: the encoder has three stages, which MONAI's network cannot have.
        """
        if self.encoder.stages != 4:
            raise UserError(
                f"MONAI's SwinUNETR has four stages, {self.encoder.name} has three; monai_state_dict; "
                "use swinunetr_b, swinunetr_l or swinunetr_h for weights that MONAI's class is to read"
            )
        return {key.removeprefix("encoder."): value for key, value in self.state_dict().items()}


def _up_block(in_channels: int, out_channels: int) -> UnetrUpBlock:
    return UnetrUpBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=3,
        upsample_kernel_size=2,
        norm_name="instance",
        res_block=True,
    )
