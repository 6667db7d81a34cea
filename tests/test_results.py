"""The results file: a good example, and each way to be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import write_json
from lvmmed_monai.results import KINDS, new_results, peak_memory_mb, read_results, validate_results, write_results


def _good() -> dict[str, Any]:
    record = new_results("evaluation", "voco_segmentation_3d", seed=3)
    record["cases"] = [{"case": "a1", "metrics": {"liver": 0.9, "lesion": None}, "preview": "previews/a1.png"}]
    record["metrics"] = {"liver": {"value": 0.9, "n": 1, "interval": None, "higher_is_better": True}}
    record["curves"] = {"loss": [[0, 1.5], [1, 1.0]]}
    record["timings"] = {"train": 3.5}
    record["peak_memory_mb"] = peak_memory_mb()
    return record


@pytest.mark.parametrize("kind", KINDS)
def test_new_record_is_valid(kind: str) -> None:
    record = new_results(kind, "x", seed=None)
    assert validate_results(record) == []
    assert record["environment"]["packages"]["torch"] is not None
    assert record["created"].endswith("+00:00")


def test_round_trip(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", _good())
    assert read_results(tmp_path / "results.json") == _good() | {
        key: read_results(tmp_path / "results.json")[key] for key in ("created", "peak_memory_mb")
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "lvmmed-results/9"}, "format"),
        ({"kind": "guess"}, "kind: expected one of"),
        ({"cases": {}}, "cases: expected"),
        ({"metrics": {"liver": {"value": 1.0}}}, "metrics.liver: expected value, n, interval"),
        ({"metrics": {"liver": {"value": "1", "n": 1, "interval": None, "higher_is_better": True}}}, "liver.value"),
        ({"metrics": {"a": {"value": 1, "n": 1, "interval": [2, 1], "higher_is_better": True}}}, "a.interval"),
        ({"metrics": {"a": {"value": float("nan"), "n": 1, "interval": None, "higher_is_better": True}}}, "a.value"),
        ({"cases": [{"metrics": {}}]}, "cases: expected {case, metrics}"),
        ({"cases": [{"case": "a", "metrics": {"x": float("inf")}}]}, "cases.a"),
        ({"curves": {"loss": [[0, float("nan")]]}}, "curves.loss"),
    ],
)
def test_bad_examples(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    record = {**_good(), **change}
    assert any(problem in text for text in validate_results(record)), validate_results(record)
    with pytest.raises(ValueError, match="results record"):
        write_results(tmp_path / "results.json", record)
    assert not (tmp_path / "results.json").exists()


def test_missing_keys_and_other_types() -> None:
    assert validate_results([]) == ["expected an object, got list"]
    record = _good()
    del record["timings"]
    assert validate_results(record) == ["timings: expected <class 'dict'>, got NoneType"]


def test_reading_names_the_problem(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {**_good(), "kind": "guess"})
    with pytest.raises(UserError, match=r"not a valid results file \(kind: .*; .*r.json; "):
        read_results(tmp_path / "r.json")
