"""Bootstrap intervals and the metrics of results files."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lvmmed_monai.metrics import bootstrap_interval, summarise
from lvmmed_monai.results import new_results, validate_results

VALUES = list(np.random.default_rng(1).beta(8, 2, 40))


def test_against_scipy() -> None:
    low, high = bootstrap_interval(VALUES, resamples=20000) or (0, 0)
    theirs = stats.bootstrap((VALUES,), np.mean, n_resamples=20000, method="percentile", rng=7).confidence_interval
    assert low == pytest.approx(theirs.low, abs=2e-3)
    assert high == pytest.approx(theirs.high, abs=2e-3)
    assert low < np.mean(VALUES) < high


def test_seed_and_level() -> None:
    assert bootstrap_interval(VALUES) == bootstrap_interval(VALUES, seed=0)
    assert bootstrap_interval(VALUES) != bootstrap_interval(VALUES, seed=1)
    narrow, wide = bootstrap_interval(VALUES, level=0.5), bootstrap_interval(VALUES, level=0.99)
    assert narrow is not None
    assert wide is not None
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_coverage_of_a_known_mean() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for case in range(300):
        low, high = bootstrap_interval(generator.normal(0.5, 0.1, 30), resamples=400, seed=case) or (0, 0)
        hits += low <= 0.5 <= high
    assert 0.89 <= hits / 300 <= 0.99


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_values(values: list[float]) -> None:
    assert bootstrap_interval(values) is None


def test_equal_values() -> None:
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25)


def test_many_cases_are_drawn_in_parts() -> None:
    low, high = bootstrap_interval(np.linspace(0, 1, 50_000), resamples=200) or (0, 0)
    assert 0.495 < low < 0.5 < high < 0.505


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [([0.1, float("nan")], {}, "finite"), (VALUES, {"level": 1.0}, "level"), (VALUES, {"resamples": 0}, "resamples")],
)
def test_bad_arguments(values: list[float], settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **settings)  # type: ignore[arg-type]


class TestSummarise:
    def test_cases_without_a_number_are_left_out(self) -> None:
        metric = summarise([0.5, None, 1.0], higher_is_better=True)
        assert metric["value"] == pytest.approx(0.75)
        assert metric["n"] == 2
        assert metric["higher_is_better"] is True

    @pytest.mark.parametrize("values", [[], [None], [0.5], VALUES])
    def test_fits_a_results_file(self, values: list[float | None]) -> None:
        record = new_results("evaluation", "test", seed=0)
        record["metrics"]["dice"] = summarise(values, higher_is_better=False)
        assert validate_results(record) == []
