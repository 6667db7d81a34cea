"""The deterministic part of every 3D method: volumes as arrays of one spacing and scale, stored once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation, Spacing
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lvmmed_monai.data.datalist import image_paths, load_pool
from lvmmed_monai.data.images import volume_mm3
from lvmmed_monai.data.volume_cache import VolumeCache, foreground_box
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.transforms.body_parts import BODY_PART_PRESETS, BodyPartPreset, preset_of_body_part
from lvmmed_monai.transforms.intensity import DEFAULT_CT_WINDOW, scale_intensity

__all__ = ["VolumePreparation", "prepared_volumes"]

_LOG = logging.getLogger(__name__)

BY_BODY_PART = "by_body_part"
# What 16 bits can hold, whatever their sign.
_LARGEST_HU = 32768
# Some writers mark a few voxels as not a number; they become 0.
_MOST_BROKEN = 0.001


class VolumePreparation:
    """The deterministic part: read, turn to RAS, scale the intensity, resample, crop to the body.

    The intensity comes before the resampling, so that a padding value such as -3024 HU does not bleed into the body.

    Args:
        spacing_mm: voxel size along R, A and S.
        in_channels: channels that an image must have.
        ct_window: HU that become 0 and 1; None for the package's window, which is left aside where a CT is not in HU.
        preset: name of a `BODY_PART_PRESETS` that takes the place of both, or "by_body_part": each item by its own
            ``body_part``, and items of any other body part, or of none, by ``spacing_mm`` and ``ct_window``.
        block_size: (X, Y, Z), to which presets that resize a volume do so.

    Raises:
        UserError: no such preset, or one that resizes and no ``block_size``.
    """

    def __init__(
        self,
        spacing_mm: tuple[float, float, float],
        in_channels: int,
        ct_window: tuple[float, float] | None = None,
        *,
        preset: str | None = None,
        block_size: tuple[int, int, int] | None = None,
    ) -> None:
        self._preset = BODY_PART_PRESETS.get(preset or "")
        if preset not in (None, BY_BODY_PART) and self._preset is None:
            known = ", ".join([*BODY_PART_PRESETS, BY_BODY_PART])
            raise UserError(f"unknown preset {preset!r}; preparation of volumes; choose one of {known}")
        if block_size is None and (preset == BY_BODY_PART or (self._preset and self._preset.fit == "resize")):
            raise UserError(f"preset {preset!r} resizes volumes to a block; preparation of volumes; give block_size")
        self.spacing_mm = self._preset.spacing_mm if self._preset else spacing_mm
        self.in_channels = in_channels
        self.ct_window = self._preset.ct_window if self._preset else ct_window
        self.preset = preset
        self.block_size = block_size
        self._load = LoadImage(image_only=True, ensure_channel_first=True)
        self._orient = Orientation(axcodes="RAS", labels=None)

    @property
    def settings(self) -> dict[str, Any]:
        """All that a prepared array depends on beside its files, modality and body part.

        ``version`` stands for this code.
        """
        return {
            "spacing_mm": list(self.spacing_mm),
            "in_channels": self.in_channels,
            "ct_window": list(self.ct_window) if self.ct_window else ["unless not in HU", *DEFAULT_CT_WINDOW],
            "preset": self.preset,
            "block_size": list(self.block_size) if self.preset and self.block_size else None,
            "version": 2,
        }

    def _preset_of(self, item: Mapping[str, Any]) -> BodyPartPreset | None:
        return preset_of_body_part(item.get("body_part")) if self.preset == BY_BODY_PART else self._preset

    def expected_voxels(self, item: Mapping[str, Any]) -> float:
        """Voxels that the prepared array will have at most, from the image's header.

        Raises:
            DataError: the header cannot be read.
        """
        preset = self._preset_of(item)
        if preset and preset.fit == "resize" and self.block_size:
            return self.in_channels * float(np.prod(self.block_size))
        spacing = preset.spacing_mm if preset else self.spacing_mm
        return self.in_channels * volume_mm3(image_paths(item)[0]) / float(np.prod(spacing))

    def __call__(self, item: Mapping[str, Any]) -> NDArray[np.floating]:
        """The prepared array of a datalist item, (C, X, Y, Z), 0 to 1; without voxels where all is air.

        Raises:
            DataError: as `resampled`.
        """
        return self.cropped(self.resampled(item), item)

    def resampled(self, item: Mapping[str, Any]) -> MetaTensor:
        """The whole image of a datalist item, (C, X, Y, Z), 0 to 1, with the place of its voxels.

        Raises:
            DataError: the image cannot be read, has another number of channels, or values that cannot be.
        """
        image = self._orient(self._read(item))
        modality = item.get("modality", "OTHER")
        preset = self._preset_of(item)
        window = (preset.ct_window if preset else self.ct_window) if modality == "CT" else None
        for channel in range(self.in_channels):
            image[channel] = scale_intensity(image[channel], modality, window)
        resample = Spacing(preset.spacing_mm if preset else self.spacing_mm, mode="bilinear", padding_mode="border")
        return cast(MetaTensor, resample(image).clamp(0, 1))

    def cropped(self, image: MetaTensor, item: Mapping[str, Any]) -> NDArray[np.floating]:
        """What `resampled` gave, cropped to the body, and resized where the item's preset says so."""
        array = image.cpu().numpy()
        box = foreground_box(array)
        if box is None:
            return array[:, :0, :0, :0]
        array = array[(slice(None), *box)]
        preset = self._preset_of(item)
        return self._resized(array) if preset and preset.fit == "resize" else array

    def _read(self, item: Mapping[str, Any]) -> Any:
        name = Path(image_paths(item)[0]).name
        try:
            image = self._load(item["image"])
        except MemoryError:
            raise
        except Exception as error:
            raise DataError(
                f"cannot be read ({type(error).__name__}); {name}; repair it or leave it out of the datalist"
            ) from error
        if image.ndim != 4 or image.shape[0] != self.in_channels:
            raise DataError(
                f"has shape {tuple(image.shape)} instead of {self.in_channels} channel(s) of three dimensions; {name}; "
                "change in_channels or leave it out of the datalist"
            )
        problem = _impossible_values(image, item.get("modality", "OTHER"))
        if problem:
            raise DataError(f"{problem}; {name}; repair it or leave it out of the datalist")
        return image

    def _resized(self, array: NDArray[np.floating]) -> NDArray[np.floating]:
        volume = torch.from_numpy(array).unsqueeze(0)
        return F.interpolate(volume, self.block_size, mode="trilinear", align_corners=False)[0].numpy()


def _impossible_values(image: Tensor, modality: str) -> str | None:
    """What is wrong with the values of an image, in words."""
    finite = torch.isfinite(image)
    broken = 1 - float(finite.float().mean())
    if broken > _MOST_BROKEN:
        return f"{100 * broken:.1f} % of its values are not finite"
    values = image[finite]
    if modality == "CT" and values.numel() and float(values.abs().max()) > _LARGEST_HU:
        return f"values from {float(values.min()):.6g} to {float(values.max()):.6g} are no HU"
    return None


def prepared_volumes(
    datalists: Sequence[str | Path], section: str, cache_dir: str | Path, preparation: VolumePreparation
) -> tuple[list[dict[str, Any]], VolumeCache]:
    """Items of a section of datalists and their prepared volumes; volumes are prepared and stored at the first call.

    Images that are missing or cannot be used are left out with a warning; a datalist that is missing is an error.

    Args:
        datalists: paths.
        section: ``training``, ``validation`` or ``test``.
        cache_dir: folder of the prepared volumes.
        preparation: what is done with a volume.

    Raises:
        UserError: a datalist is missing or not valid.
        DataError: the section is empty, or no volume of it can be used.
    """
    items = load_pool(datalists, section, check_files=False)
    if not items:
        raise DataError(f"no volumes; section {section!r} of the datalists; add some or name another section")
    cache = VolumeCache(
        items, preparation, cache_dir, settings=preparation.settings, voxels=preparation.expected_voxels
    )
    for source in sorted({item["source"] for item in items}):
        own = [index for index, item in enumerate(items) if item["source"] == source]
        if cache.rejected.keys() >= set(own):
            _LOG.warning("data set %s is skipped: none of its %d images can be used", source, len(own))
    return items, cache
