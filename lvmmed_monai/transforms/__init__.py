"""Transforms that MONAI lacks; each dictionary form (``…d``) shares one implementation with its array form."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Name -> module. Loaded at first use, so that a bundle which resamples volumes does not import a DICOM writer.
_EXPORTS = {
    "DEFAULT_CT_WINDOW": "intensity",
    "MODALITIES": "intensity",
    "LoadImageUprightd": "loading",
    "RepeatGrey": "slices",
    "RepeatGreyd": "slices",
    "SaveDicomSegd": "dicom_output",
    "SaveEmbeddingd": "embeddings",
    "SaveImageMaskd": "saving",
    "ScaleIntensityByModalityd": "intensity",
    "SpacingIgnoringSiblingsd": "spacing",
    "ToSlices": "slices",
    "ToSlicesd": "slices",
    "intensity_rules": "intensity",
    "scale_intensity": "intensity",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
