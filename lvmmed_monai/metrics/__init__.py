"""Measures that MONAI lacks: Dice with a stated policy for empty targets, and bootstrap intervals."""

from __future__ import annotations

from lvmmed_monai.metrics.bootstrap import bootstrap_interval, summarise
from lvmmed_monai.metrics.dice import dice_per_class

__all__ = ["bootstrap_interval", "dice_per_class", "summarise"]
