"""The encoder half of SwinUNETR v2 (Hatamizadeh, arXiv 2201.01266; He et al., MICCAI 2023), of MONAI's modules.

The names of the weights are those of ``monai.networks.nets.SwinUNETR(use_v2=True)``: ``swinViT.*`` and
``encoder1``, ``encoder2``, ``encoder3``, ``encoder4``, ``encoder10``. The order in which patches are merged is an
option, for weights mean only the one they were trained with (`lvmmed_monai.networks.patch_merging`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.contract import Encoder
from lvmmed_monai.networks.patch_merging import CURRENT_ORDER, merging_class, order_of_weights, set_patch_merging

__all__ = ["SwinUNETREncoder", "monai_name", "swinunetr_b", "swinunetr_h", "swinunetr_l", "swinunetr_tiny"]

logger = logging.getLogger(__name__)

_HEADS = (3, 6, 12, 24)
# ``swin_vit`` in files of the first SwinUNETR; ``encoder.`` before the encoder's part of a `SwinUNETRNet`.
_OLD_NAME = re.compile(r"(^|\.)swin_vit\.")
_ENCODER_PART = re.compile(r"(^|\.)encoder\.(?=swinViT\.|encoder\d)")


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
        patch_merging: ``monai_1.5`` for the order of MONAI 1.5 and later, ``monai_1.4`` for that of 1.4 and
            earlier. None: that of the weights that are loaded, ``monai_1.5`` without any.
        options: what else `lvmmed_monai.networks.build_encoder` needs to build this encoder again.

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
        patch_merging: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if stages not in (3, 4) or feature_size % 12:
            raise UserError(
                f"stages must be 3 or 4 and feature_size a multiple of 12, got {stages} and {feature_size}; "
                f"encoder {name}; correct its options"
            )
        self.stages = stages
        self._chosen_merging = patch_merging
        self.pooled_maps = (0, 1, 2, 3, 4) if stages == 3 else (0, 1, 2, 3, 5)
        self.swinViT = SwinTransformer(
            in_chans=in_channels,
            embed_dim=feature_size,
            window_size=(window_size,) * 3,
            patch_size=(2, 2, 2),
            depths=(2,) * stages,
            num_heads=_HEADS[:stages],
            use_checkpoint=use_checkpoint,
            downsample=merging_class(patch_merging or CURRENT_ORDER),
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
            options={**(options or {}), "patch_merging": patch_merging or CURRENT_ORDER},
            adjustable=("patch_merging",),
            in_channels=in_channels,
            spatial_dims=3,
            channels=[feature_size * width for width in (1, 1, 2, 4, 8, 16)[: stages + 2]],
            strides=[2**level for level in range(stages + 2)],
        )

    def adopt(self, origin: Mapping[str, Any]) -> None:
        """Merge patches in the order that the weights were trained in, and say so in ``options``.

        What the weights record holds even against the option ``patch_merging``: any other order gives wrong features.
        """
        order = order_of_weights(origin, self._chosen_merging)
        if self._chosen_merging not in (None, order):
            logger.warning(
                "encoder %s: patch_merging is set to %s, but the weights were made with %s, which is taken",
                self.name,
                self._chosen_merging,
                order,
            )
        if order != self.options["patch_merging"]:
            set_patch_merging(self.swinViT, order)
            self.options["patch_merging"] = order
            logger.info("encoder %s: patches are merged in the order of its weights, %s", self.name, order)

    def present_name(self, key: str) -> str:
        """As `monai_name`."""
        return monai_name(key)

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


def monai_name(key: str) -> str:
    """``swinViT.…`` for ``swin_vit.…``; the encoder's part of a `SwinUNETRNet` without ``encoder.``."""
    return _ENCODER_PART.sub(r"\1", _OLD_NAME.sub(r"\1swinViT.", key))


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


def swinunetr_tiny(
    in_channels: int = 1, *, feature_size: int = 12, window_size: int = 4, patch_merging: str | None = None
) -> SwinUNETREncoder:
    """Three stages, attention windows of 4: for crops of 16 voxels and more, and for tests on a CPU."""
    return SwinUNETREncoder(
        "swinunetr_tiny",
        in_channels,
        feature_size=feature_size,
        window_size=window_size,
        stages=3,
        patch_merging=patch_merging,
        options={"feature_size": feature_size, "window_size": window_size},
    )


def swinunetr_b(
    in_channels: int = 1, *, use_checkpoint: bool = False, patch_merging: str | None = None
) -> SwinUNETREncoder:
    """VoCo's B: feature size 48, 53 M parameters."""
    return SwinUNETREncoder(
        "swinunetr_b", in_channels, feature_size=48, use_checkpoint=use_checkpoint, patch_merging=patch_merging
    )


def swinunetr_l(
    in_channels: int = 1, *, use_checkpoint: bool = False, patch_merging: str | None = None
) -> SwinUNETREncoder:
    """VoCo's L: feature size 96, 212 M parameters."""
    return SwinUNETREncoder(
        "swinunetr_l", in_channels, feature_size=96, use_checkpoint=use_checkpoint, patch_merging=patch_merging
    )


def swinunetr_h(
    in_channels: int = 1, *, use_checkpoint: bool = False, patch_merging: str | None = None
) -> SwinUNETREncoder:
    """VoCo's H: feature size 192, 847 M parameters."""
    return SwinUNETREncoder(
        "swinunetr_h", in_channels, feature_size=192, use_checkpoint=use_checkpoint, patch_merging=patch_merging
    )
