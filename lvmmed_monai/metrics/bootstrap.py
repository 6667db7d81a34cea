"""Means with bootstrap intervals, as results files keep them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["bootstrap_interval", "summarise"]

# Values drawn at once: bounds the memory of a bootstrap over many cases (8 bytes each).
_CHUNK = 4_000_000


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: one number a case (a subject, not a slice: cases must be independent).
        level: coverage, between 0 and 1.
        resamples: number of resamples.
        seed: the same seed gives the same interval.

    Returns:
        Lower and upper bound, or None for fewer than two values.

    Raises:
        ValueError: a value is not finite, or level or resamples are out of range.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"bootstrap_interval: level must lie in (0, 1) and resamples be positive, got {level}, {resamples}"
        )
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("bootstrap_interval: values must be finite; leave out what could not be computed")
    if array.size < 2:
        return None
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // array.size)
    means = [
        array[generator.integers(0, array.size, size=(min(rows, resamples - start), array.size))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(
    values: Sequence[float | None], *, higher_is_better: bool = True, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """A metric of a results file: the mean over the cases that have a number.

    Args:
        values: one number a case; None where it could not be computed or nothing was to be found.
        higher_is_better: direction of the metric.
        level, seed: as for `bootstrap_interval`.

    Returns:
        ``{"value", "n", "interval", "higher_is_better"}``; the value is None when no case has a number.
    """
    numbers = [float(value) for value in values if value is not None]
    interval = bootstrap_interval(numbers, level=level, seed=seed)
    return {
        "value": math.fsum(numbers) / len(numbers) if numbers else None,
        "n": len(numbers),
        "interval": list(interval) if interval else None,
        "higher_is_better": higher_is_better,
    }
