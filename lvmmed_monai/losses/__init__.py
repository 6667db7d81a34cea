"""Losses of the two methods, imported at first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["BalancedDiceCELoss", "GraphMatchingLoss", "VoCoLoss", "matching_accuracy", "position_loss"]

_MODULES = {
    "BalancedDiceCELoss": "segmentation",
    "GraphMatchingLoss": "graph_matching",
    "matching_accuracy": "graph_matching",
    "VoCoLoss": "volume_contrast",
    "position_loss": "volume_contrast",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
