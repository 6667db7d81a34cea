"""The image encoder of SAM (Kirillov et al., arXiv 2304.02643), a vision transformer, of transformers' modules.

The names of the weights are those of ``transformers.SamVisionEncoder``; files with SAM's own names (`original_name`),
which are those of LVM-Med's ViT too, are read as well. As in LVM-Med the map is taken before the neck, and absolute
positions are off: relative ones, in every block, are interpolated to the input and so fit any size.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lvmmed_monai._optional import optional_import
from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.contract import Encoder

__all__ = ["SAMEncoder", "original_name", "sam_vit_b", "sam_vit_h", "sam_vit_l", "transformers_name"]

_WINDOW = 14
_NECK_CHANNELS = 256
# Names in transformers, and SAM's own.
_NAMES = (
    ("patch_embed.projection", "patch_embed.proj"),
    (r"layers.(\d+).layer_norm1", r"blocks.(\d+).norm1"),
    (r"layers.(\d+).layer_norm2", r"blocks.(\d+).norm2"),
    (r"layers.(\d+)", r"blocks.(\d+)"),
    ("neck.conv1", "neck.0"),
    ("neck.layer_norm1", "neck.1"),
    ("neck.conv2", "neck.2"),
    ("neck.layer_norm2", "neck.3"),
)


def _renamed(key: str, names: Sequence[tuple[str, str]]) -> str:
    for old, new in names:
        pattern = r"(^|\.)" + old.replace(".", r"\.") + r"\."
        after = r"\g<1>" + new.replace(r"(\d+)", r"\g<2>") + "."
        changed = re.sub(pattern, after, key)
        if changed != key:
            return changed
    return key


def transformers_name(key: str) -> str:
    """The name of a tensor in transformers, from SAM's own: ``layers.0.layer_norm1.bias`` for ``blocks.0.norm1.bias``.

    Names of transformers, and what stands in front of a name, stay as they are.
    """
    return _renamed(key, [(original, present) for present, original in _NAMES])


def original_name(key: str) -> str:
    """SAM's own name of a tensor, from that in transformers: the inverse of `transformers_name`."""
    return _renamed(key, _NAMES)


class SAMEncoder(Encoder):
    """Patches, then blocks of attention in windows of 14 x 14 patches; some blocks attend to the whole map.

    One map, (B, width, H / patch_size, W / patch_size); with ``neck`` the image embedding that SAM's decoder takes,
    of 256 channels. Sides must be multiples of ``patch_size``; maps that windows do not fill are padded.

    Args:
        name: of the encoder, for encoder files.
        in_channels: of the image.
        width: of the tokens, a multiple of ``heads``.
        depth: number of blocks.
        heads: of the attention.
        global_blocks: numbers of the blocks that attend to the whole map; None: the last of each quarter, as in SAM.
            With maps smaller than a window, all blocks global is the same attention without padding.
        patch_size: side of a patch in pixels, and the stride of the map.
        image_size: side in pixels that the tables of positions are made for. Other inputs are welcome, and so are
            weights of another ``image_size``: their tables are interpolated.
        absolute_positions: add SAM's table of positions, interpolated to the input.
        neck: end with SAM's neck of two convolutions.
        use_checkpoint: recompute activations in the backward pass instead of keeping them.

    Raises:
        UserError: transformers is not installed, or the numbers do not go together.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 1,
        *,
        width: int,
        depth: int,
        heads: int,
        global_blocks: Sequence[int] | None = None,
        patch_size: int = 16,
        image_size: int = 1024,
        absolute_positions: bool = False,
        neck: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "width": width, "depth": depth, "heads": heads}
        _check(name, {**sizes, "patch_size": patch_size, "image_size": image_size})
        blocks = _last_of_quarters(depth) if global_blocks is None else sorted(global_blocks)
        if not set(blocks) <= set(range(depth)):
            raise UserError(
                f"{name}: global_blocks {blocks} are not all in 0..{depth - 1}; encoder_options; correct it"
            )
        vit = _vision_encoder(
            num_channels=in_channels,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            global_attn_indexes=blocks,
            patch_size=patch_size,
            image_size=image_size,
            window_size=_WINDOW,
            output_channels=_NECK_CHANNELS,
            use_abs_pos=absolute_positions,
        )
        self.patch_embed, self.layers = vit.patch_embed, vit.layers
        self.pos_embed = vit.pos_embed
        self.neck = vit.neck if neck else None
        self.use_checkpoint = use_checkpoint
        self.to_empty(device=torch.get_default_device())
        self._initialise()
        self.describe(
            name=name,
            options={
                **{key: value for key, value in sizes.items() if key != "in_channels"},
                "global_blocks": blocks,
                "patch_size": patch_size,
                "image_size": image_size,
                "absolute_positions": absolute_positions,
                "neck": neck,
            },
            adjustable=("image_size", "neck"),
            in_channels=in_channels,
            spatial_dims=2,
            channels=(_NECK_CHANNELS if neck else width,),
            strides=(patch_size,),
        )

    def _initialise(self) -> None:
        # Weights as in MAE (He et al., CVPR 2022), positions as in SAM. transformers draws all weights within 1e-10.
        for key, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.constant_(parameter, float("norm" in key and key.endswith("weight")))
            elif key.endswith("weight"):
                nn.init.xavier_uniform_(parameter.view(len(parameter), -1))
            else:
                nn.init.zeros_(parameter)

    def present_name(self, key: str) -> str:
        """As `transformers_name`."""
        return transformers_name(key)

    def fitted(self, key: str, value: Tensor, shape: torch.Size) -> Tensor | None:
        """Tables of positions of another image size, interpolated as `forward` does it."""
        if key == "pos_embed" and value.ndim == 4 and value.shape[-1] == shape[-1]:
            return _resized(value, shape[1:3])
        table = re.fullmatch(r"layers\.(\d+)\.attn\.rel_pos_[hw]", key)
        if table and int(table[1]) in self.options["global_blocks"] and value.ndim == 2 and value.shape[1] == shape[1]:
            return F.interpolate(value.T[None], size=shape[0], mode="linear")[0].T.contiguous()
        return None

    def forward(self, x: Tensor) -> list[Tensor]:
        """One map of ``x`` ``(B, in_channels, H, W)``.

        Raises:
            UserError: H or W is no multiple of the patch size.
        """
        if any(side % self.strides[0] for side in x.shape[2:]):
            raise UserError(
                f"images of {tuple(x.shape[2:])} pixels cannot be cut into patches of {self.strides[0]}; {self.name}; "
                f"use sides that are multiples of {self.strides[0]}"
            )
        x = self.patch_embed.projection(x).permute(0, 2, 3, 1)
        if self.pos_embed is not None:
            x = x + _resized(self.pos_embed, x.shape[1:3])
        for layer in self.layers:
            recompute = self.use_checkpoint and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return [self.neck(x) if self.neck is not None else x.permute(0, 3, 1, 2).contiguous()]


def _check(name: str, sizes: dict[str, int]) -> None:
    wrong = [f"{key} {value}" for key, value in sizes.items() if value < 1]
    for whole, part in (("width", "heads"), ("image_size", "patch_size")):
        if not wrong and sizes[whole] % sizes[part]:
            wrong.append(f"{whole} {sizes[whole]} with {part} {sizes[part]}")
    if wrong:
        raise UserError(
            f"{name}: {', '.join(wrong)}; encoder_options; all must be at least 1, width a multiple of heads, and "
            "image_size one of patch_size"
        )


def _last_of_quarters(depth: int) -> list[int]:
    return sorted({max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)})


def _vision_encoder(**config: Any) -> Any:
    """transformers' encoder without memory: its own initialisation is not used."""
    transformers = optional_import("transformers", extra="sam")
    modeling = importlib.import_module("transformers.models.sam.modeling_sam")
    with torch.device("meta"):
        return modeling.SamVisionEncoder(transformers.SamVisionConfig(**config))


def _resized(positions: Tensor, size: Sequence[int]) -> Tensor:
    """(1, H, W, C) positions on another grid; the same on their own."""
    if positions.shape[1:3] == tuple(size):
        return positions
    resized = F.interpolate(positions.permute(0, 3, 1, 2), size=tuple(size), mode="bicubic")
    return resized.permute(0, 2, 3, 1).contiguous()


# ViT-B, the one of LVM-Med: 85.7 M parameters; ViT-L: 303 M; ViT-H: 631 M.
sam_vit_b = partial(SAMEncoder, "sam_vit_b", width=768, depth=12, heads=12)
sam_vit_l = partial(SAMEncoder, "sam_vit_l", width=1024, depth=24, heads=16)
sam_vit_h = partial(SAMEncoder, "sam_vit_h", width=1280, depth=32, heads=16)
