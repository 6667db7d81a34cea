"""Masked autoencoding of pictures (He et al., arXiv 2111.06377), in the dense form of SimMIM (Xie et al., 2111.09886).

The published autoencoder leaves masked patches out of its transformer. Convolutions cannot, nor can transformers that
attend within windows (SAM's). So the encoder sees the whole picture with a learnt patch in place of each masked one,
and a linear layer predicts the pixels from its coarsest map, as in SimMIM. From the first paper come the targets that
are normalised per patch, and that only masked patches count. It is thus not that paper's asymmetric design, and a step
does not cost less than one that sees everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvmmed_monai.errors import UserError
from lvmmed_monai.methods._picture_method import PictureMethod
from lvmmed_monai.networks import Encoder

__all__ = ["MAE", "MAENetwork", "draw_masks", "masked_error"]

# Added to the variance of a patch.
_EPS = 1e-6
_GREY = 0.5


def draw_masks(pictures: int, patches: int, mask_ratio: float) -> Tensor:
    """(pictures, patches, patches) bool, True for masked: the same number in each, at least one, never all."""
    count = patches**2
    masked = min(max(1, round(mask_ratio * count)), count - 1)
    order = torch.rand(pictures, count).argsort(dim=1).argsort(dim=1)
    return (order < masked).view(pictures, patches, patches)


def masked_error(painted: Tensor, images: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error over masked patches, whose pixels are to have mean 0 and variance 1 in each.

    Args:
        painted, images: (M, C, H, W).
        masked: (M, p, p), bool.
    """
    patch = images.shape[-1] // masked.shape[-1]
    given, wanted = (functional.pixel_unshuffle(one, patch) for one in (painted, images))
    variance, mean = torch.var_mean(wanted, dim=1, correction=0, keepdim=True)
    error = (given - (wanted - mean) * (variance + _EPS).rsqrt()).square().mean(dim=1)
    return (error * masked).sum() / masked.sum()


class MAENetwork(nn.Module):
    """Encoder, the learnt patch, and the linear layer to pixels.

    Args:
        encoder: 2D encoder.
        patch: side of a patch in pixels.
    """

    def __init__(self, encoder: Encoder, patch: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_patch = nn.Parameter(torch.full((encoder.in_channels, patch, patch), _GREY))
        stride = encoder.strides[-1]
        self.head = nn.Sequential(
            nn.Conv2d(encoder.channels[-1], encoder.in_channels * stride**2, 1), nn.PixelShuffle(stride)
        )

    def forward(self, images: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """ "loss" of (M, in_channels, H, W) with patches masked by (M, p, p)."""
        patches = masked.shape[-1]
        hidden = functional.interpolate(masked[:, None].to(images.dtype), images.shape[2:]).bool()
        seen = torch.where(hidden, self.mask_patch.repeat(1, patches, patches), images)
        painted = self.head(self.encoder(seen)[-1])
        with torch.autocast(images.device.type, enabled=False):
            return {"loss": masked_error(painted.float(), images.float(), masked)}


class MAE(PictureMethod):
    """The method. Both views are used, as two pictures.

    Args:
        patch_size: side of a patch in pixels; views must be whole patches, and more than one.
        mask_ratio: share of the patches that are masked, between 0 and 1: 0.75 in the first paper, 0.6 in SimMIM.
        **common: of `PictureMethod`.

    Raises:
        UserError: an option that cannot be.
    """

    name = "mae"

    def __init__(self, *, patch_size: int = 16, mask_ratio: float = 0.6, **common: Any) -> None:
        super().__init__(**common)
        size = self._view_settings.size
        if patch_size < 1 or size % patch_size or size == patch_size:
            raise UserError(
                f"views of {size} pixels are not two or more whole patches of {patch_size} a side; mae; "
                "choose a patch_size that divides image_size"
            )
        if not 0 < mask_ratio < 1:
            raise UserError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}; mae; correct it")
        self.patch_size, self.mask_ratio = patch_size, mask_ratio

    def build(self, encoder: Encoder) -> MAENetwork:
        """Encoder, learnt patch and head."""
        size, stride = self._view_settings.size, encoder.strides[-1]
        if size % stride:
            raise UserError(
                f"views of {size} pixels are no multiple of the encoder's stride {stride}; mae; change image_size"
            )
        return MAENetwork(encoder, self.patch_size)

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Any]:
        """ "loss" of one batch."""
        images = torch.cat([batch["view1"], batch["view2"]])
        masked = draw_masks(len(images), self._view_settings.size // self.patch_size, self.mask_ratio)
        return network(images, masked.to(images.device))
