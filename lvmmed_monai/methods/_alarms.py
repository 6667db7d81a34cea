"""The last part of a run's training curves, as the alarms of the methods read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RecentCurves"]

# A verdict needs this many points of a curve, and looks back over a quarter of the run, but not further than this.
_LEAST_POINTS = 25
_LONGEST_STEPS = 5000
_FIRST_POINTS = 5


class RecentCurves:
    """Points of the training curves from the last quarter of a run's length (5000 steps at most, 25 points at least).

    The warm-up does not count: what hardly moves there is held by its learning rate.

    Args:
        history: of `engines.Pretrainer`: ``curves`` {name: [[step, value or None], ...]}, ``total_steps``.

    Attributes:
        enough: whether there are enough points for a verdict.
        steps: how many steps the points cover.
        last: the last step.
    """

    def __init__(self, history: Mapping[str, Any]) -> None:
        self._curves: Mapping[str, list[list[float | None]]] = history["curves"]
        steps = [point[0] for point in self._curves.get("loss", [])]
        rates = [point[1] for point in self._curves.get("learning_rate", [])]
        settled = int(np.argmax(rates)) if rates else 0
        span = min(history["total_steps"] // 4, _LONGEST_STEPS)
        inside = next((index for index, step in enumerate(steps) if step > steps[-1] - span), 0)
        self._start = max(settled, min(inside, len(steps) - _LEAST_POINTS))
        self.enough = len(steps) - self._start >= _LEAST_POINTS
        self.last = int(steps[-1]) if steps else 0
        self.steps = int(steps[-1] - steps[self._start]) if self.enough else 0

    def values(self, name: str) -> NDArray[np.float64]:
        """The finite values of a curve in this part; empty where there is no such curve."""
        points = np.array([value for _, value in self._curves.get(name, [])[self._start :]], dtype=float)
        return points[np.isfinite(points)]

    def mean(self, name: str) -> float:
        """Mean of `values`; NaN without any, with which no comparison holds."""
        values = self.values(name)
        return float(values.mean()) if len(values) else float("nan")

    def median(self, name: str) -> float:
        """Median of `values`, which a few steps far off do not move; NaN without any."""
        values = self.values(name)
        return float(np.median(values)) if len(values) else float("nan")

    def drift(self, name: str) -> float:
        """Median of the second half of `values` less that of the first; NaN without any."""
        values = self.values(name)
        half = len(values) // 2
        return float(np.median(values[half:]) - np.median(values[:half])) if half else float("nan")

    def first(self, name: str) -> float:
        """The first value of the whole run; NaN without any."""
        points = self._curves.get(name, [])
        return float("nan") if not points or points[0][1] is None else float(points[0][1])

    def beginning(self, name: str) -> float:
        """Median of the first points of the whole run; NaN without any."""
        points = [value for _, value in self._curves.get(name, [])[:_FIRST_POINTS] if value is not None]
        return float(np.median(points)) if points else float("nan")
