"""What frozen features know: linear and nearest-neighbour probes, retrieval, and scores of classifiers.

Features are arrays (n, C) of any numbers; labels are class numbers 0 to K - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import rankdata

__all__ = [
    "LinearProbe",
    "area_under_curve",
    "balanced_accuracy",
    "knn_probe",
    "linear_probe",
    "logistic_regression",
    "retrieval_at_k",
    "standardised",
    "stratified_folds",
]

# From strong to weak: each fit starts from the one before.
_PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
# Where there are too few labels to choose.
_PENALTY_OF_FEW = 0.1
# Similarities held at once (8 bytes each).
_CHUNK = 4_000_000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression of standardised features.

    Attributes:
        mean, spread: (C,) of the training features.
        weights: (C + 1, K), the last row the offsets.
        penalty: the chosen strength.
    """

    mean: Array
    spread: Array
    weights: Array
    penalty: float

    def scores(self, features: ArrayLike) -> Array:
        """(n, K) logarithms of the probabilities of the classes."""
        return _log_probabilities((_array(features) - self.mean) / self.spread, self.weights)


def linear_probe(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    classes: int | None = None,
    penalties: Sequence[float] = _PENALTIES,
    folds: int = 5,
    balanced: bool = True,
    seed: int = 0,
) -> LinearProbe:
    """Logistic regression whose penalty has the least cross-entropy on left-out folds of the training labels.

    Args:
        features: (n, C) of the training images.
        labels: (n,) class numbers.
        classes: K; by default one more than the largest label.
        penalties: strengths to choose from, see `logistic_regression`.
        folds: stratified; fewer where a class has fewer images. With one image of a class nothing can be chosen, and
            the penalty is 0.1.
        balanced: every class weighs the same, however many images it has.
        seed: of the folds.

    Raises:
        ValueError: features are not finite, labels do not fit, or there is only one class.
    """
    raw, numbers, count = _checked(features, labels, classes)
    x, mean, spread = _standardised(raw)
    folds = min(folds, int(np.bincount(numbers)[np.unique(numbers)].min()))
    order = sorted(penalties, reverse=True)
    penalty = _PENALTY_OF_FEW
    if folds >= 2:
        parts = stratified_folds(numbers, folds, seed)
        losses = [_left_out_losses(x, numbers, count, parts == part, order, balanced) for part in range(folds)]
        penalty = order[int(np.argmin(np.mean(losses, axis=0)))]
    return LinearProbe(
        mean, spread, logistic_regression(x, numbers, penalty, classes=count, balanced=balanced), penalty
    )


def _left_out_losses(
    x: Array, labels: NDArray[np.intp], count: int, out: NDArray[np.bool_], penalties: Sequence[float], balanced: bool
) -> list[float]:
    """Cross-entropy of the left-out images for each penalty."""
    importance = _importance(labels[out], balanced)
    weights, losses = None, []
    for penalty in penalties:
        weights = logistic_regression(x[~out], labels[~out], penalty, classes=count, balanced=balanced, start=weights)
        found = _log_probabilities(x[out], weights)[np.arange(out.sum()), labels[out]]
        losses.append(-float(importance @ found))
    return losses


def logistic_regression(
    features: ArrayLike,
    labels: ArrayLike,
    penalty: float,
    *,
    classes: int | None = None,
    balanced: bool = True,
    start: Array | None = None,
) -> Array:
    """Weights (C + 1, K) that minimise mean cross-entropy + penalty * sum of squares; the last row is the offsets.

    The offsets are not penalised. For two classes the difference of the columns is the binary logistic regression with
    half the penalty. Solved by L-BFGS.

    Args:
        features: (n, C), best standardised.
        labels: (n,) class numbers.
        penalty: above 0.
        classes: K; by default one more than the largest label.
        balanced: every class weighs the same.
        start: weights to start from; by default zeros.

    Raises:
        ValueError: see `linear_probe`.
    """
    raw, numbers, count = _checked(features, labels, classes)
    x = np.column_stack([raw, np.ones(len(raw))])
    truth = np.eye(count)[numbers]
    importance = _importance(numbers, balanced)[:, None]
    shape = (x.shape[1], count)

    def loss(flat: Array) -> tuple[float, Array]:
        weights = flat.reshape(shape)
        found = log_softmax(x @ weights, axis=1)
        slope = x.T @ (importance * (np.exp(found) - truth))
        slope[:-1] += 2 * penalty * weights[:-1]
        value = -(importance * truth * found).sum() + penalty * np.square(weights[:-1]).sum()
        return float(value), slope.ravel()

    first = np.zeros(shape) if start is None else start
    settings = {"maxiter": 500, "gtol": 1e-6, "ftol": 1e-12}
    return minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=settings).x.reshape(shape)


def stratified_folds(labels: ArrayLike, folds: int, seed: int) -> NDArray[np.intp]:
    """(n,) number of the fold of each image; every class is dealt out evenly, in random order."""
    numbers = np.asarray(labels)
    rng = np.random.default_rng(seed)
    parts = np.empty(len(numbers), np.intp)
    dealt = 0
    for one in np.unique(numbers):
        members = rng.permutation(np.flatnonzero(numbers == one))
        # The next class goes on where this one ends, so that the folds are of equal size.
        parts[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return parts


def knn_probe(
    training: ArrayLike, labels: ArrayLike, features: ArrayLike, *, k: int = 20, classes: int | None = None
) -> Array:
    """Share of each class among the k nearest training images by cosine.

    Args:
        training: (n, C), labels (n,) of them.
        features: (m, C) of the images to classify.
        k: neighbours; all training images where there are fewer.
        classes: K; by default one more than the largest label.

    Returns:
        (m, K), rows add up to 1.

    Raises:
        ValueError: k below 1, features are not finite, or labels do not fit.
    """
    if k < 1:
        raise ValueError(f"knn_probe: k must be at least 1, got {k}")
    known, numbers, count = _checked(training, labels, classes)
    known, asked = _unit(known), _unit(_array(features))
    k = min(k, len(known))
    votes = np.eye(count)[numbers]
    rows = max(1, _CHUNK // len(known))
    parts = [np.argsort(-(asked[i : i + rows] @ known.T), axis=1, kind="stable") for i in range(0, len(asked), rows)]
    return votes[np.concatenate(parts)[:, :k]].mean(axis=1)


def retrieval_at_k(queries: ArrayLike, gallery: ArrayLike, k: int = 1) -> float:
    """How often the partner of a query, the gallery's row of the same number, is among its k nearest by cosine.

    Rows that are as near as the partner come before it, so that equal features find nothing.

    Args:
        queries: (m, C).
        gallery: (n, C) with n >= m; rows after the first m are only there to be mistaken for partners.
        k: neighbours.
    """
    asked, known = _unit(_array(queries)), _unit(_array(gallery))
    similarity = asked @ known.T
    own = np.diagonal(similarity)[:, None]
    return float((similarity.shape[1] - (similarity < own).sum(axis=1) <= k).mean())


def area_under_curve(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive has a higher score than a negative; ties count half.

    Args:
        scores: (n,) for two classes, high for class 1; or (n, K), then the mean over classes against the rest.
        labels: (n,) class numbers; classes that none or all images have are left out.

    Returns:
        0 to 1; NaN where no class can be told from the rest.
    """
    columns, numbers = np.asarray(scores, np.float64), np.asarray(labels)
    if columns.ndim == 1:
        return _binary_area(columns, numbers == 1)
    areas = [_binary_area(column, numbers == one) for one, column in enumerate(columns.T)]
    known = [area for area in areas if not np.isnan(area)]
    return float(np.mean(known)) if known else float("nan")


def _binary_area(scores: Array, positive: NDArray[np.bool_]) -> float:
    """By the sum of ranks (Mann and Whitney 1947)."""
    first, second = int(positive.sum()), int((~positive).sum())
    if not first or not second:
        return float("nan")
    return float((rankdata(scores)[positive].mean() - (first + 1) / 2) / second)


def balanced_accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Mean over the classes that occur of the share of their images that are predicted as theirs."""
    found, numbers = np.asarray(predicted), np.asarray(labels)
    return float(np.mean([(found[numbers == one] == one).mean() for one in np.unique(numbers)]))


def standardised(training: ArrayLike, *others: ArrayLike) -> list[Array]:
    """All of them, shifted and scaled so that the training features have mean 0 and spread 1."""
    x, mean, spread = _standardised(_array(training))
    return [x, *((_array(other) - mean) / spread for other in others)]


def _standardised(features: Array) -> tuple[Array, Array, Array]:
    mean, spread = features.mean(axis=0), features.std(axis=0)
    # What never changes stays 0.
    spread = np.where(spread > 1e-12 * np.abs(features).max(initial=0.0), spread, 1.0)
    return (features - mean) / spread, mean, spread


def _log_probabilities(x: Array, weights: Array) -> Array:
    return log_softmax(x @ weights[:-1] + weights[-1], axis=1)


def _importance(labels: NDArray[np.intp], balanced: bool) -> Array:
    """(n,) weights of the images, in all 1."""
    counts = np.bincount(labels)
    each = 1 / counts[labels] if balanced else np.ones(len(labels))
    return each / each.sum()


def _unit(features: Array) -> Array:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, np.finfo(np.float64).tiny)


def _array(features: Any) -> Array:
    return np.asarray(features, np.float64)


def _checked(features: ArrayLike, labels: ArrayLike, classes: int | None) -> tuple[Array, NDArray[np.intp], int]:
    x, numbers = _array(features), np.asarray(labels)
    if x.ndim != 2 or numbers.shape != x.shape[:1] or not np.isfinite(x).all():
        raise ValueError(f"probe: give finite features (n, C) and labels (n,), got {x.shape} and {numbers.shape}")
    if not np.issubdtype(numbers.dtype, np.integer) or len(np.unique(numbers)) < 2 or numbers.min() < 0:
        raise ValueError("probe: labels must be class numbers from 0 on, of at least two classes")
    count = int(numbers.max()) + 1 if classes is None else classes
    if count <= numbers.max():
        raise ValueError(f"probe: a label is {numbers.max()}, but there are {count} classes")
    return x, numbers.astype(np.intp), count
