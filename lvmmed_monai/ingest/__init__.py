"""The pipeline from DICOM studies to volumes, images, labels and datalists.

Names are imported at first use; nothing here needs torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Finding", "IngestSummary", "RefusedSeriesError", "Volume", "ingest", "read_volume", "read_volumes"]

_MODULES = {
    "Finding": "findings",
    "IngestSummary": "pipeline",
    "RefusedSeriesError": "volume_reader",
    "Volume": "volume_reader",
    "ingest": "pipeline",
    "read_volume": "volume_reader",
    "read_volumes": "volume_reader",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
