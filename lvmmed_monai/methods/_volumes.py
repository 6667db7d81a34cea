"""Prepared volumes, and blocks drawn from them: what every 3D method here begins with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation, Spacing
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lvmmed_monai.data.volume_cache import VolumeCache, foreground_box
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.transforms.crops_3d import (
    BlockAugmentation,
    body_shares,
    draw_block_augmentation,
    orient_block,
    render_block,
    source_size,
)
from lvmmed_monai.transforms.intensity import DEFAULT_CT_WINDOW, scale_intensity

__all__ = ["MIN_BODY_SHARE", "VolumeBlocks", "VolumePreparation"]

_LOG = logging.getLogger(__name__)

# A cell of a block with less body than this shows air: it looks like its neighbours.
MIN_BODY_SHARE = 0.25
# Blocks are drawn again this often in search of one without such cells.
_ATTEMPTS = 12


class VolumePreparation:
    """The deterministic part: read, turn to RAS, scale the intensity, resample, crop to the body.

    The intensity comes before the resampling, so that a padding value such as -3024 HU does not bleed into the body.

    Args:
        spacing_mm: voxel size along R, A and S.
        in_channels: channels that an image must have.
        ct_window: HU that become 0 and 1; None for the package's window, which is left aside where a CT is not in HU.
    """

    def __init__(
        self, spacing_mm: tuple[float, float, float], in_channels: int, ct_window: tuple[float, float] | None = None
    ) -> None:
        self.spacing_mm = spacing_mm
        self.in_channels = in_channels
        self.ct_window = ct_window
        self._load = LoadImage(image_only=True, ensure_channel_first=True)
        self._orient = Orientation(axcodes="RAS", labels=None)
        self._resample = Spacing(pixdim=spacing_mm, mode="bilinear", padding_mode="border")

    @property
    def settings(self) -> dict[str, Any]:
        """All that a prepared array depends on beside its files and modality; ``version`` stands for this code."""
        return {
            "spacing_mm": list(self.spacing_mm),
            "in_channels": self.in_channels,
            "ct_window": list(self.ct_window) if self.ct_window else ["unless not in HU", *DEFAULT_CT_WINDOW],
            "version": 1,
        }

    def __call__(self, item: Mapping[str, Any]) -> NDArray[np.floating]:
        """The prepared array of a datalist item, (C, X, Y, Z), 0 to 1; without voxels where all is air.

        Raises:
            DataError, UserError: as `resampled`.
        """
        return self.cropped(self.resampled(item))

    def cropped(self, image: MetaTensor) -> NDArray[np.floating]:
        """What `resampled` gave, cropped to the body."""
        array = image.cpu().numpy()
        box = foreground_box(array)
        return array[(slice(None), *box)] if box else array[:, :0, :0, :0]

    def resampled(self, item: Mapping[str, Any]) -> MetaTensor:
        """The whole image of a datalist item, (C, X, Y, Z), 0 to 1, with the place of its voxels.

        Raises:
            DataError: the image cannot be read.
            UserError: it has another number of channels.
        """
        try:
            image = self._load(item["image"])
        except Exception as error:
            raise DataError(
                f"an image cannot be read ({type(error).__name__}); {item['image']}; "
                "repair it or leave it out of the datalist"
            ) from error
        if image.ndim != 4 or image.shape[0] != self.in_channels:
            raise UserError(
                f"a volume of {self.in_channels} channel(s) is needed, got an image of shape {tuple(image.shape)}; "
                "volume pre-training; change in_channels or leave the image out of the datalist"
            )
        image = self._orient(image)
        modality = item.get("modality", "OTHER")
        window = self.ct_window if modality == "CT" else None
        for channel in range(self.in_channels):
            image[channel] = scale_intensity(image[channel], modality, window)
        return cast(MetaTensor, self._resample(image).clamp(0, 1))


class VolumeBlocks(Dataset):
    """Blocks of prepared volumes. All randomness of a sample comes from the seed and the key, none from elsewhere.

    A key is ``(draw, index)`` or an index (draw 0). A subclass defines `sample`.

    Args:
        items: datalist items with ``modality`` and ``flip_safe``.
        cache: their volumes. Volumes of air are left out.
        seed: of all draws.

    Attributes:
        data: the items that are used.
        skipped: how many volumes were left out because they show only air.

    Raises:
        DataError: no volume is left.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], cache: VolumeCache, *, seed: int) -> None:
        self.cache = cache
        self.seed = seed
        empty = set(cache.empty)
        self._indices = [index for index in range(len(items)) if index not in empty]
        self.data = [items[index] for index in self._indices]
        self.skipped = len(empty)
        if self.skipped:
            _LOG.warning("%d of %d volumes show only air and are skipped", self.skipped, len(items))
        if not self.data:
            raise DataError(
                "no volume shows anything but air; 3D pre-training; check the intensity window and the images"
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        draw, index = key if isinstance(key, tuple) else (0, key)
        return self.sample(np.random.default_rng([self.seed, draw, index]), index)

    def sample(self, random: np.random.Generator, index: int) -> dict[str, Tensor]:
        """One sample of volume ``index`` with everything random drawn from ``random``."""
        raise NotImplementedError(f"{type(self).__name__} must define sample(random, index)")

    def may_mirror(self, index: int) -> bool:
        """Whether left and right of volume ``index`` may be exchanged."""
        return bool(self.data[index].get("flip_safe", False))

    def block(
        self,
        random: np.random.Generator,
        index: int,
        size: Sequence[int],
        *,
        cells: Sequence[int] = (1, 1),
        augment: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """A block of volume ``index``: of some draws the one whose emptiest cell shows most body.

        Args:
            random: the generator.
            index: of the volume.
            size: (X, Y, Z) of the block.
            cells: into how many along x and y the block is divided.
            augment: axis order, flips, zoom and grey values of the whole block.

        Returns:
            (C, X, Y, Z), 0 to 1, padded with 0 where the volume is smaller; which cells show body, (cells,), bool.
        """
        best: tuple[float, Tensor, Tensor, BlockAugmentation] | None = None
        for _ in range(_ATTEMPTS):
            augmentation = self._augmentation(random, index) if augment else BlockAugmentation()
            piece = orient_block(self._piece(random, index, size, augmentation), augmentation)
            shares = body_shares(piece, cells)
            least = float(shares.min())
            if best is None or least > best[0]:
                best = (least, piece, shares >= MIN_BODY_SHARE, augmentation)
            if least >= MIN_BODY_SHARE:
                break
        if best is None:
            raise RuntimeError("no block was drawn")
        _, piece, mask, augmentation = best
        return render_block(piece, size, augmentation), mask

    def _augmentation(self, random: np.random.Generator, index: int) -> BlockAugmentation:
        modality = self.data[index].get("modality", "OTHER")
        return draw_block_augmentation(random, modality=modality, mirror=self.may_mirror(index))

    def _piece(
        self, random: np.random.Generator, index: int, block_size: Sequence[int], augmentation: BlockAugmentation
    ) -> Tensor:
        size = source_size(block_size, augmentation)
        volume = self._indices[index]
        start = []
        for length, extent in zip(size, self.cache.shape(volume), strict=True):
            # A volume smaller than the block lies anywhere in it; the rest is padding.
            low, high = min(0, extent - length), max(0, extent - length)
            start.append(int(random.integers(low, high + 1)))
        return torch.from_numpy(self.cache.read_window(volume, start, size))
