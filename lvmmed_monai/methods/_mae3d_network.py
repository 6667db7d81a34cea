"""Masked autoencoding: patches are hidden from an encoder and painted by a light decoder."""

from __future__ import annotations

from itertools import pairwise

from monai.networks.blocks import ResidualUnit
from torch import Tensor, nn

from lvmmed_monai.networks import Encoder

__all__ = ["MaskedAutoencoder", "to_voxels"]

_GROUPS = 8


def to_voxels(patches: Tensor, patch: int) -> Tensor:
    """One value per patch, (N, px, py, pz), to one per voxel, (N, 1, X, Y, Z)."""
    for axis in (1, 2, 3):
        patches = patches.repeat_interleave(patch, axis)
    return patches.unsqueeze(1)


class LightDecoder(nn.Module):
    """All feature maps to an image: from coarse to fine, each map is added to what comes from below.

    At the finest map nothing is convolved, only projected to the image, for there the voxels are.

    Args:
        encoder: whose maps come.
        width: channels, a multiple of 8.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv3d(channels, width, 1) for channels in encoder.channels)
        self.blocks = nn.ModuleList(
            ResidualUnit(
                3, width, width, subunits=1, kernel_size=3, act="relu", norm=("group", {"num_groups": _GROUPS})
            )
            for _ in encoder.channels[1:]
        )
        # Transposed convolutions: their gradient is repeatable on GPUs, that of an interpolation is not.
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(width, width, coarse // fine, stride=coarse // fine)
            for fine, coarse in pairwise(encoder.strides)
        )
        finest = encoder.strides[0]
        self.image = nn.ConvTranspose3d(width, encoder.in_channels, finest, stride=finest)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Feature maps, fine to coarse, to (N, in_channels, X, Y, Z)."""
        x = self.lateral[-1](maps[-1])
        for level in reversed(range(len(maps) - 1)):
            x = self.lateral[level](maps[level]) + self.up[level](self.blocks[level](x))
        return self.image(x)


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder. Masked voxels are 0 for the encoder, which stays dense.

    Args:
        encoder: any 3D encoder.
        patch: edge of a masked patch in voxels.
        width: of the decoder.
    """

    def __init__(self, encoder: Encoder, *, patch: int, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = LightDecoder(encoder, width)
        self.patch = patch

    def forward(self, image: Tensor, masked: Tensor) -> Tensor:
        """The whole image, painted.

        Args:
            image: (N, C, X, Y, Z).
            masked: (N, X // patch, Y // patch, Z // patch), bool.

        Returns:
            As ``image``.
        """
        return self.decoder(self.encoder(image * ~to_voxels(masked, self.patch)))
