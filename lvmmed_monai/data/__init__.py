"""What the data are: datalists, manifests of public sources, splits, checks, and the caches that training reads from.

The names that need torch are imported at first use, so that the rest works without it.
"""

from __future__ import annotations

import importlib
from typing import Any

from lvmmed_monai.data.datalist import (
    FORMAT,
    MODALITIES,
    SECTIONS,
    TASKS,
    datalist_labels,
    datalist_modality,
    load_items,
    load_pool,
    read_datalist,
    summarise,
    validate_datalist,
    write_datalist,
)
from lvmmed_monai.data.splits import split_subjects

__all__ = [
    "FORMAT",
    "MODALITIES",
    "SECTIONS",
    "TASKS",
    "SliceCache",
    "StepBatchSampler",
    "VolumeCache",
    "check_datalist",
    "datalist_labels",
    "datalist_modality",
    "find_manifests",
    "load_items",
    "load_pool",
    "read_datalist",
    "read_manifest",
    "split_subjects",
    "summarise",
    "validate_datalist",
    "validate_manifest",
    "write_datalist",
]

_LAZY = {
    "SliceCache": "slice_cache",
    "StepBatchSampler": "sampling",
    "VolumeCache": "volume_cache",
    "check_datalist": "check",
    "find_manifests": "manifest",
    "read_manifest": "manifest",
    "validate_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
