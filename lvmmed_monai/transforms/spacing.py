"""Resampling to a voxel spacing, safe where other keys stand beside the image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Spacingd

__all__ = ["SpacingIgnoringSiblingsd"]


class SpacingIgnoringSiblingsd(Spacingd):
    """MONAI's Spacingd, leaving alone every entry that is not a dictionary of metadata.

    For images read from NIfTI, Spacingd of MONAI 1.6 calls ``update`` on each entry whose key begins with
    ``<key>_``, and fails where that entry is a string. MONAI Label puts ``image_path`` beside ``image``, and so do
    many datalists. Arguments and inverse are those of Spacingd.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample each key; all other entries come back unchanged."""
        siblings = {
            key: value for key, value in data.items() if key not in self.keys and not isinstance(value, Mapping)
        }
        visible = {key: value for key, value in data.items() if key not in siblings}
        return {**super().__call__(visible, lazy), **siblings}
