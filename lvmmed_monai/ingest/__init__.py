"""The pipeline from DICOM studies to volumes, labels and datalists.

`ingest` is imported at first use; nothing here needs torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Finding", "IngestSummary", "ingest"]

_MODULES = {"Finding": "findings", "IngestSummary": "pipeline", "ingest": "pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
