"""The DICOM format: headers, geometry, pixels, label objects, privacy. Knows nothing of the pipeline around it.

Names are imported at first use, so that one part does not pay for another.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "DicomError",
    "Header",
    "Segmentation",
    "SliceGrid",
    "Source",
    "SourceReader",
    "StructureSet",
    "decode_slice",
    "load_site_key",
    "pseudonym",
    "read_header",
    "read_segmentation",
    "read_sources",
    "read_structure_set",
    "rescale_stack",
    "volume_affine",
    "write_segmentation",
    "write_sources",
]

_MODULES = {
    "DicomError": "problems",
    "Header": "headers",
    "Segmentation": "seg_reader",
    "SliceGrid": "geometry",
    "Source": "archive",
    "SourceReader": "archive",
    "StructureSet": "rtstruct_reader",
    "decode_slice": "pixels",
    "load_site_key": "privacy",
    "pseudonym": "privacy",
    "read_header": "headers",
    "read_segmentation": "seg_reader",
    "read_sources": "sources",
    "read_structure_set": "rtstruct_reader",
    "rescale_stack": "pixels",
    "volume_affine": "geometry",
    "write_segmentation": "seg_writer",
    "write_sources": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
