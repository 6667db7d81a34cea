"""Dice of label maps, class by class, with a policy for empty targets.

`monai.metrics.MeanDice` leaves out every class whose target is empty, so a model that invents a lesion in a
healthy subject keeps a perfect score. Here:

    target    prediction    Dice
    some      some          2 |P and T| / (|P| + |T|)
    some      none          0
    none      some          0: a false positive counts
    none      none          None: there was nothing to find and nothing was claimed; not part of a mean
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["dice_per_class"]


def _array(value: Any) -> np.ndarray:
    """A NumPy array of an array or of a tensor on any device."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def dice_per_class(pred: Any, target: Any, labels: Mapping[Any, str]) -> dict[str, float | None]:
    """Dice of each class but the background.

    Args:
        pred: label map, any shape, whole numbers; array or tensor.
        target: label map of the same shape.
        labels: names by number (int or text); 0 is background and left out.

    Returns:
        Dice in [0, 1], or None where both are empty, by class name in the order of the numbers.

    Raises:
        ValueError: the shapes differ.
    """
    predicted, expected = _array(pred), _array(target)
    if predicted.shape != expected.shape:
        raise ValueError(f"dice_per_class: pred {predicted.shape} and target {expected.shape} must have one shape")
    scores: dict[str, float | None] = {}
    for number, name in sorted((int(key), name) for key, name in labels.items()):
        if number == 0:
            continue
        in_pred, in_target = predicted == number, expected == number
        total = int(in_pred.sum()) + int(in_target.sum())
        scores[name] = 2 * int((in_pred & in_target).sum()) / total if total else None
    return scores
