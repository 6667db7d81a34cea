"""How often pictures of several datalists and modalities are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvmmed_monai.errors import UserError

__all__ = ["check_shares", "repeats_of"]

# More would make a pass that has no end, and an encoder that knows one picture by heart.
_MOST_REPEATS = 1000


def check_shares(weights: Sequence[float] | None, balance: float) -> None:
    """Refuse weights and a balance that `repeats_of` cannot use.

    Raises:
        UserError: a weight that is not positive, or a balance out of its range.
    """
    if not 0 <= balance <= 1:
        raise UserError(f"balance = {balance}; pictures; give a number from 0 to 1")
    if any(not isinstance(weight, int | float) or not 0 < weight < np.inf for weight in weights or ()):
        raise UserError(f"weights = {weights}; pictures; give positive numbers, and leave a datalist out for 0")


def repeats_of(
    items: Sequence[Mapping[str, Any]], weights: Sequence[float] | None = None, balance: float = 0.0
) -> np.ndarray | None:
    """How often each picture comes in a pass, the most seldom one once, for `data.StepBatchSampler`.

    Args:
        items: the datalist item of each picture, with ``datalist``, the number of its datalist, and ``modality``.
        weights: relative share of each datalist in what is drawn; None goes by their numbers of pictures.
        balance: what is done to the shares of the modalities: 0 leaves them, 1 makes them equal, and between them
            the share s becomes s to the power of 1 - ``balance``.

    Returns:
        (len(items),) from 1 up, or None where each picture comes once.

    Raises:
        UserError: as `check_shares`, or a picture that would be drawn more than a thousand times as often as another.
    """
    check_shares(weights, balance)
    chances = np.ones(len(items))
    if weights is not None:
        chances = _weighted(np.array([item["datalist"] for item in items]), weights)
    _, modality = np.unique([item["modality"] for item in items], return_inverse=True)
    chances *= np.bincount(modality, weights=chances)[modality] ** -balance
    repeats = chances / chances.min()
    if repeats.max() > _MOST_REPEATS:
        raise UserError(
            f"some pictures would be drawn {repeats.max():.0f} times as often as others; weights and balance; "
            f"choose them so that it is at most {_MOST_REPEATS} times"
        )
    return None if np.allclose(repeats, 1) else repeats


def _weighted(datalist: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The chance of each picture, of datalist number ``datalist``."""
    return np.asarray(weights, dtype=float)[datalist] / np.bincount(datalist)[datalist]
