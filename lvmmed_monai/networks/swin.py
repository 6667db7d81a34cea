"""The encoder half of SwinUNETR v2 (Hatamizadeh, arXiv 2201.01266; He et al., MICCAI 2023), of MONAI's modules.

The names of the weights are those of ``monai.networks.nets.SwinUNETR(use_v2=True)``: ``swinViT.*`` and
``encoder1``, ``encoder2``, ``encoder3``, ``encoder4``, ``encoder10``. Patches are merged in MONAI's present order.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.contract import Encoder

__all__ = ["SwinUNETREncoder", "swinunetr_b", "swinunetr_h", "swinunetr_l", "swinunetr_tiny"]

_HEADS = (3, 6, 12, 24)


class SwinUNETREncoder(Encoder):
    """Swin transformer with a residual block before each stage, and a residual block on its maps.

    Maps, F being ``feature_size``: F at full resolution, F at 1/2, 2F at 1/4, 4F at 1/8, 8F at 1/16 (the
    transformer's own map, which the decoder of SwinUNETR takes), and with four stages 16F at 1/32.

    Args:
        name: of the encoder, for encoder files.
        in_channels: of the image.
        feature_size: F, a multiple of 12.
        window_size: of the attention, in tokens of the stage. Cost grows with its cube: 4 suits small crops.
        stages: 4, or 3 for crops smaller than 64 voxels.
        use_checkpoint: recompute activations in the backward pass instead of keeping them.
        options: what `lvmmed_monai.networks.build_encoder` needs to build this encoder again.

    Attributes:
        pooled_maps: the maps that VoCo pools for its embedding: all but the 8F map where there is a deeper one.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 1,
        *,
        feature_size: int = 48,
        window_size: int = 7,
        stages: int = 4,
        use_checkpoint: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if stages not in (3, 4) or feature_size % 12:
            raise UserError(
                f"stages must be 3 or 4 and feature_size a multiple of 12, got {stages} and {feature_size}; "
                f"encoder {name}; correct its options"
            )
        self.stages = stages
        self.pooled_maps = (0, 1, 2, 3, 4) if stages == 3 else (0, 1, 2, 3, 5)
        self.swinViT = SwinTransformer(
            in_chans=in_channels,
            embed_dim=feature_size,
            window_size=(window_size,) * 3,
            patch_size=(2, 2, 2),
            depths=(2,) * stages,
            num_heads=_HEADS[:stages],
            use_checkpoint=use_checkpoint,
            use_v2=True,
        )
        self.encoder1 = _residual_block(in_channels, feature_size)
        self.encoder2 = _residual_block(feature_size, feature_size)
        self.encoder3 = _residual_block(2 * feature_size, 2 * feature_size)
        self.encoder4 = _residual_block(4 * feature_size, 4 * feature_size)
        if stages == 4:
            self.encoder10 = _residual_block(16 * feature_size, 16 * feature_size)
        self.describe(
            name=name,
            options=options or {},
            in_channels=in_channels,
            spatial_dims=3,
            channels=[feature_size * width for width in (1, 1, 2, 4, 8, 16)[: stages + 2]],
            strides=[2**level for level in range(stages + 2)],
        )

    def _hidden_states(self, x: Tensor) -> list[Tensor]:
        # MONAI's own forward always runs four stages.
        vit = self.swinViT
        x = vit.pos_drop(vit.patch_embed(x))
        hidden = [vit.proj_out(x, True)]
        for stage in range(1, self.stages + 1):
            x = getattr(vit, f"layers{stage}c")[0](x.contiguous())
            x = getattr(vit, f"layers{stage}")[0](x.contiguous())
            hidden.append(vit.proj_out(x, True))
        return hidden

    def _check_size(self, size: torch.Size) -> None:
        # Instance normalisation needs more than one voxel in the deepest map that has it.
        stride = 32 if self.stages == 4 else 8
        if max(size) <= stride:
            remedy = "" if stride == 8 else ", or swinunetr_tiny"
            raise UserError(
                f"crops of {tuple(size)} voxels are too small for the encoder {self.name}; pre-training or inference; "
                f"use crops of more than {stride} voxels along one axis{remedy}"
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of (B, in_channels, X, Y, Z), fine to coarse."""
        if not torch.jit.is_tracing():
            self._check_size(x.shape[2:])
        hidden = self._hidden_states(x)
        maps = [self.encoder1(x), self.encoder2(hidden[0]), self.encoder3(hidden[1]), self.encoder4(hidden[2])]
        maps.append(hidden[3])
        if self.stages == 4:
            maps.append(self.encoder10(hidden[4]))
        return maps


def _residual_block(in_channels: int, out_channels: int) -> UnetrBasicBlock:
    return UnetrBasicBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=3,
        stride=1,
        norm_name="instance",
        res_block=True,
    )


def swinunetr_tiny(in_channels: int = 1, *, feature_size: int = 12, window_size: int = 4) -> SwinUNETREncoder:
    """Three stages, attention windows of 4: for crops of 16 voxels and more, and for tests on a CPU."""
    return SwinUNETREncoder(
        "swinunetr_tiny",
        in_channels,
        feature_size=feature_size,
        window_size=window_size,
        stages=3,
        options={"feature_size": feature_size, "window_size": window_size},
    )


def _published(name: str, in_channels: int, feature_size: int, use_checkpoint: bool) -> SwinUNETREncoder:
    return SwinUNETREncoder(
        name,
        in_channels,
        feature_size=feature_size,
        use_checkpoint=use_checkpoint,
        options={"use_checkpoint": use_checkpoint},
    )


def swinunetr_b(in_channels: int = 1, *, use_checkpoint: bool = False) -> SwinUNETREncoder:
    """VoCo's B: feature size 48, 53 M parameters."""
    return _published("swinunetr_b", in_channels, 48, use_checkpoint)


def swinunetr_l(in_channels: int = 1, *, use_checkpoint: bool = False) -> SwinUNETREncoder:
    """VoCo's L: feature size 96, 212 M parameters."""
    return _published("swinunetr_l", in_channels, 96, use_checkpoint)


def swinunetr_h(in_channels: int = 1, *, use_checkpoint: bool = False) -> SwinUNETREncoder:
    """VoCo's H: feature size 192, 847 M parameters."""
    return _published("swinunetr_h", in_channels, 192, use_checkpoint)
