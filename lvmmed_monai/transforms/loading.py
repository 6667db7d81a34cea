"""Reading images with rows first and in their own data type."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import PILReader, is_supported_format
from monai.transforms import LoadImaged

__all__ = ["LoadImageUprightd"]

_COLOUR_MODES = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")


def _to_rgb(picture: Any) -> Any:
    """Palette and print colours as RGB, black and white as 8-bit grey; grey, RGB and RGBA as they are."""
    if picture.mode == "1":
        return picture.convert("L")
    return picture.convert("RGB") if picture.mode in _COLOUR_MODES else picture


class _UprightPILReader(PILReader):
    def verify_suffix(self, filename: Any) -> bool:
        # MONAI leaves TIFF to its ITK reader, which gives columns first.
        return bool(super().verify_suffix(filename) or is_supported_format(filename, ["tif", "tiff"]))

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        array, meta = super().get_data(img)
        # Pillow lends its own memory, read-only; a tensor on it must not be written to.
        return array.copy(), meta


class LoadImageUprightd(LoadImaged):
    """LoadImaged that reads pictures (PNG, JPEG, BMP, TIFF) as (rows, columns) and keeps the data type of the file.

    MONAI's reader swaps rows and columns of pictures, and networks pre-trained on upright pictures would see them
    lying on their side. The data type matters to `scale_intensity`, whose rule for 8-bit pictures would not be found
    behind float32. All other formats are read by MONAI's own readers.

    Args:
        keys: what to load.
        labels: the files are label maps: a palette picture gives its class numbers, not its colours.
        allow_missing_keys: leave absent keys alone instead of raising.
    """

    def __init__(self, keys: KeysCollection, labels: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, dtype=None, image_only=True, allow_missing_keys=allow_missing_keys)
        # The reader registered last is asked first, and is chosen by the file's ending.
        self._loader.register(_UprightPILReader(converter=None if labels else _to_rgb, reverse_indexing=False))
