"""Means with bootstrap intervals, as results files keep them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["bootstrap_area_under_curve", "bootstrap_interval", "summarise"]

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


def bootstrap_area_under_curve(
    scores: Sequence[ArrayLike],
    labels: ArrayLike,
    *,
    minus: Sequence[ArrayLike] = (),
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval over images of the mean area under the ROC curve of several classifiers.

    Images of each class are drawn apart, so that every resample has both classes. The classifiers share the draws: with
    ``minus`` the interval is that of the difference of two means, paired by image.

    Args:
        scores: for each classifier (of another seed, say) (n,) scores, high for class 1.
        labels: (n,), 0 or 1; one number a case.
        minus: scores of the classifiers to compare with.
        level, resamples, seed: as for `bootstrap_interval`.

    Returns:
        Lower and upper bound, or None where a class has fewer than two images.
    """
    positive = np.asarray(labels) == 1
    counts = int(positive.sum()), int((~positive).sum())
    if min(counts) < 2:
        return None
    wins = _wins(scores, positive) - (_wins(minus, positive) if len(minus) else 0.0)
    generator = np.random.default_rng(seed)
    first, second = (generator.multinomial(count, np.full(count, 1 / count), size=resamples) for count in counts)
    areas = ((first @ wins) * second).sum(axis=1) / (counts[0] * counts[1])
    low, high = np.quantile(areas, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _wins(scores: Sequence[ArrayLike], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(positives, negatives) share of the classifiers that score the positive higher; a tie is half a win."""
    differences = [np.subtract.outer(one[positive], one[~positive]) for one in map(np.asarray, scores)]
    return np.mean([(np.sign(one) + 1) / 2 for one in differences], axis=0)


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
