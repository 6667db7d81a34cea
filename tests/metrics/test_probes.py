"""Probes of features against brute force, closed forms and scipy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from lvmmed_monai.metrics import (
    area_under_curve,
    balanced_accuracy,
    bootstrap_area_under_curve,
    knn_probe,
    linear_probe,
    logistic_regression,
    retrieval_at_k,
    standardised,
)
from lvmmed_monai.metrics.probes import stratified_folds

RNG = np.random.default_rng(3)
LABELS = np.repeat([0, 1], [40, 25])
# Three classifiers of the same images.
SCORES = [np.random.default_rng(seed).normal(size=65) + 0.8 * LABELS for seed in range(3)]


def clusters(counts: list[int], spread: float, features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds around fixed centres, in random order."""
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    centres = np.random.default_rng(0).normal(size=(len(counts), features))
    return centres[labels] + spread * rng.normal(size=(len(labels), features)), labels


class TestLogisticRegression:
    @pytest.mark.parametrize("balanced", [True, False])
    def test_two_classes_against_a_solver_without_gradients(self, balanced: bool) -> None:
        x, labels = clusters([30, 12], 1.5, features=2)
        weight = np.where(labels == 1, 0.5 / 12, 0.5 / 30) if balanced else np.full(42, 1 / 42)

        def loss(w: np.ndarray) -> float:
            margin = (x @ w[:2] + w[2]) * (2 * labels - 1)
            # Two columns of half the size each have half the sum of squares.
            return float(weight @ np.log1p(np.exp(-margin)) + 0.02 / 2 * (w[:2] ** 2).sum())

        theirs = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
        ours = logistic_regression(x, labels, 0.02, balanced=balanced)
        np.testing.assert_allclose(ours[:, 1] - ours[:, 0], theirs, atol=2e-4)

    def test_slope_vanishes_for_three_classes(self) -> None:
        x, labels = clusters([20, 10, 15], 1.0)
        weights = logistic_regression(x, labels, 0.05, balanced=False)
        logits = x @ weights[:-1] + weights[-1]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        wrong = probabilities - (labels[:, None] == np.arange(3))
        np.testing.assert_allclose(x.T @ wrong / len(x) + 0.1 * weights[:-1], 0, atol=1e-5)
        np.testing.assert_allclose(wrong.mean(axis=0), 0, atol=1e-5)

    def test_without_use_of_features_the_offsets_are_the_shares(self) -> None:
        labels = np.repeat([0, 1, 2], [5, 3, 2])
        weights = logistic_regression(np.zeros((10, 1)), labels, 1.0, balanced=False)
        shares = np.exp(weights[-1]) / np.exp(weights[-1]).sum()
        np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=1e-4)

    def test_start_changes_nothing(self) -> None:
        x, labels = clusters([20, 20], 1.0)
        start = np.random.default_rng(5).normal(size=(7, 2))
        warm = logistic_regression(x, labels, 0.1, start=start)
        np.testing.assert_allclose(warm[:-1], logistic_regression(x, labels, 0.1)[:-1], atol=1e-4)


class TestLinearProbe:
    def test_scale_and_shift_of_features_do_not_matter(self) -> None:
        x, labels = clusters([40, 40, 20], 0.8)
        scale = np.array([1e3, 1e-3, 1, 1, 2, 5])
        one, other = linear_probe(x, labels), linear_probe(x * scale + 7, labels)
        assert one.penalty == other.penalty
        np.testing.assert_allclose(one.scores(x), other.scores(x * scale + 7), atol=1e-3)
        np.testing.assert_allclose(np.exp(one.scores(x)).sum(axis=1), 1)

    def test_penalty_is_the_best_of_the_folds(self) -> None:
        x, labels = clusters([25, 15], 2.5)
        penalties = (1.0, 0.1, 0.001)
        probe = linear_probe(x, labels, penalties=penalties, folds=4, balanced=False, seed=2)
        z = (x - x.mean(axis=0)) / x.std(axis=0)
        parts = stratified_folds(labels, 4, 2)
        losses = []
        for penalty in penalties:
            loss = 0.0
            for part in range(4):
                kept = parts != part
                w = logistic_regression(z[kept], labels[kept], penalty, balanced=False)
                logits = np.column_stack([z, np.ones(len(z))])[~kept] @ w
                margin = (logits[:, 1] - logits[:, 0]) * (2 * labels[~kept] - 1)
                loss += np.log1p(np.exp(-margin)).mean() / 4
            losses.append(loss)
        assert probe.penalty == penalties[int(np.argmin(losses))]
        assert np.ptp(losses) > 0.01

    def test_noise_is_held_down_and_signal_is_not(self) -> None:
        rng = np.random.default_rng(0)
        labels = np.arange(60) % 2
        assert linear_probe(rng.normal(size=(60, 40)), labels).penalty >= 1
        assert linear_probe(labels[:, None] + 0.01 * rng.normal(size=(60, 3)), labels).penalty <= 1e-3

    def test_one_label_of_a_class_and_a_feature_that_never_changes(self) -> None:
        x, labels = clusters([1, 3], 0.1)
        probe = linear_probe(np.column_stack([x, np.full(4, 0.3)]), labels, classes=3)
        assert probe.penalty == 0.1
        scores = probe.scores(np.column_stack([x, np.full(4, 0.3)]))
        assert scores.shape == (4, 3)
        assert (scores[:, :2].argmax(axis=1) == labels).all()

    @pytest.mark.parametrize(
        ("features", "labels", "message"),
        [
            (np.zeros((3, 2)), [0, 1], "finite features"),
            ([[np.nan], [0.0]], [0, 1], "finite features"),
            (np.zeros((2, 1)), [1, 1], "at least two classes"),
            (np.zeros((2, 1)), [0.0, 1.0], "class numbers"),
            (np.zeros((2, 1)), [0, 5], "there are 3 classes"),
        ],
    )
    def test_what_does_not_fit(self, features: np.ndarray, labels: list[int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            linear_probe(features, np.array(labels), classes=3)


def test_folds_share_every_class() -> None:
    labels = np.repeat([0, 1, 2], [23, 11, 5])
    parts = stratified_folds(labels, 5, seed=0)
    assert np.ptp(np.bincount(parts)) <= 1
    for one in range(3):
        assert np.ptp(np.bincount(parts[labels == one], minlength=5)) <= 1
    assert (parts == stratified_folds(labels, 5, seed=0)).all()
    assert (parts != stratified_folds(labels, 5, seed=1)).any()


def test_knn_against_loops() -> None:
    x, labels = clusters([15, 10, 8], 1.5)
    asked = RNG.normal(size=(7, 6))
    shares = knn_probe(x, labels, asked, k=4)
    for row, query in zip(shares, asked, strict=True):
        cosines = [query @ one / np.linalg.norm(query) / np.linalg.norm(one) for one in x]
        nearest = np.argsort(cosines)[-4:]
        assert row.tolist() == [np.mean(labels[nearest] == one) for one in range(3)]
    np.testing.assert_allclose(knn_probe(x, labels, asked, k=500), np.tile([15 / 33, 10 / 33, 8 / 33], (7, 1)))
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn_probe(x, labels, asked, k=0)


@pytest.mark.parametrize("k", [1, 3])
def test_retrieval_against_loops(k: int) -> None:
    first = RNG.normal(size=(20, 5))
    gallery = np.concatenate([first + 0.7 * RNG.normal(size=(20, 5)), RNG.normal(size=(6, 5))])
    hits = 0
    for i, query in enumerate(first):
        cosines = [query @ one / np.linalg.norm(query) / np.linalg.norm(one) for one in gallery]
        hits += i in np.argsort(cosines)[-k:]
    assert retrieval_at_k(first, gallery, k) == hits / 20
    assert 0 < hits < 20


def test_equal_or_broken_features_find_nothing() -> None:
    assert retrieval_at_k(np.ones((4, 3)), np.ones((4, 3))) == 0
    assert retrieval_at_k(np.ones((4, 3)), np.ones((4, 3)), k=4) == 1
    assert retrieval_at_k(np.full((4, 3), np.nan), np.ones((4, 3))) == 0
    assert retrieval_at_k(np.zeros((4, 3)), np.zeros((4, 3))) == 0


class TestAreaUnderCurve:
    def test_against_pairs_and_scipy(self) -> None:
        scores, labels = RNG.integers(0, 6, 40).astype(float), RNG.integers(0, 2, 40)
        pairs = list(product(scores[labels == 1], scores[labels == 0]))
        expected = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
        assert area_under_curve(scores, labels) == pytest.approx(expected)
        statistic = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
        assert area_under_curve(scores, labels) == pytest.approx(statistic / len(pairs))

    def test_several_classes_are_each_held_against_the_rest(self) -> None:
        scores, labels = RNG.normal(size=(30, 4)), np.arange(30) % 3
        each = [area_under_curve(scores[:, one], (labels == one).astype(int)) for one in range(3)]
        # The fourth class has no image.
        assert area_under_curve(scores, labels) == pytest.approx(np.mean(each))
        binary = np.array([[0.2, 0.8], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]])
        assert area_under_curve(binary, [0, 0, 1, 1]) == area_under_curve(binary[:, 1], [0, 0, 1, 1])

    def test_one_class_cannot_be_told(self) -> None:
        assert np.isnan(area_under_curve([0.1, 0.2], [1, 1]))
        assert np.isnan(area_under_curve([[0.1], [0.2]], [0, 0]))


def test_balanced_accuracy() -> None:
    assert balanced_accuracy([0, 0, 0, 1, 2], [0, 0, 0, 0, 2]) == pytest.approx((0.75 + 1) / 2)
    assert balanced_accuracy([0] * 10, [0] * 9 + [1]) == 0.5


def test_standardised_by_the_training_features() -> None:
    training, other = RNG.normal(3, 2, (50, 4)), RNG.normal(3, 2, (5, 4))
    first, second = standardised(training, other)
    np.testing.assert_allclose(first.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(first.std(axis=0), 1)
    np.testing.assert_allclose(second * training.std(axis=0) + training.mean(axis=0), other)


class TestBootstrapOfTheArea:
    def test_against_scipy(self) -> None:
        scores = SCORES[0]
        low, high = bootstrap_area_under_curve([scores], LABELS, resamples=8000) or (0, 0)

        def area(positive: np.ndarray, negative: np.ndarray) -> float:
            both = np.concatenate([positive, negative])
            return area_under_curve(both, np.repeat([1, 0], [len(positive), len(negative)]))

        parts = (scores[LABELS == 1], scores[LABELS == 0])
        theirs = stats.bootstrap(
            parts, area, n_resamples=3000, method="percentile", vectorized=False, rng=1
        ).confidence_interval
        assert low == pytest.approx(theirs.low, abs=0.012)
        assert high == pytest.approx(theirs.high, abs=0.012)

    def test_means_and_differences_against_loops(self) -> None:
        low, high = bootstrap_area_under_curve(SCORES[:2], LABELS, minus=SCORES[2:], resamples=300, seed=4) or (0, 0)
        # The same draws, one resample after the other.
        rng = np.random.default_rng(4)
        draws = [rng.multinomial(n, np.full(n, 1 / n), size=300) for n in (25, 40)]
        values = []
        for first, second in zip(*draws, strict=True):
            rows = np.repeat(np.r_[40:65, 0:40], np.r_[first, second])
            areas = [area_under_curve(scores[rows], LABELS[rows]) for scores in SCORES]
            values.append((areas[0] + areas[1]) / 2 - areas[2])
        assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))

    def test_equal_classifiers_do_not_differ_and_few_images_say_nothing(self) -> None:
        same = bootstrap_area_under_curve(SCORES[:1], LABELS, minus=SCORES[:1])
        assert same == (0.0, 0.0)
        assert bootstrap_area_under_curve([np.arange(3.0)], [0, 0, 1]) is None
