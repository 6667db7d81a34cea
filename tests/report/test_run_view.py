"""Numbers of the report against values counted by hand."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmmed_monai.report import words
from lvmmed_monai.report.collect import Source
from lvmmed_monai.report.figures import Curve, _running_mean, curve_figure, picture, strip_figure
from lvmmed_monai.report.run_view import key_metric, run_view
from lvmmed_monai.results import new_results


def _metric(value: float | None) -> dict[str, Any]:
    return {"value": value, "n": 2, "interval": None, "higher_is_better": True}


def _svg(address: str) -> str:
    return base64.b64decode(address.split(",", 1)[1]).decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.number(0.8744), "0.874"),
        (words.number(None), "–"),
        (words.number(0.0), "0.000"),
        (words.number(0.00002), "2.0e-05"),
        (words.number(1200000), "1 200 000"),
        (words.interval([0.8, 0.9]), "0.800 to 0.900"),
        (words.interval(None), ""),
        (words.duration(0.25), "250 ms"),
        (words.duration(59.94), "59.9 s"),
        (words.duration(185), "3 min 05 s"),
        (words.duration(7620), "2 h 07 min"),
        (words.memory(512), "512 MB"),
        (words.memory(2048), "2.0 GB"),
        (words.readable("held_out/matching_accuracy"), "Held out: matching accuracy"),
        (words.readable("lvmmed_segmentation_2d"), "LVM-Med segmentation 2D"),
        (words.readable("validation/val_mean_dice"), "Validation: mean Dice"),
        (words.readable("argmax_accuracy_aug"), "Argmax accuracy (augmented crops)"),
        (words.amount(1, "run"), "1 run"),
        (words.amount(2, "series", "series"), "2 series"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert text == expected


def test_running_mean_equals_a_loop() -> None:
    values = np.random.default_rng(0).normal(size=95)
    half = 95 // 30
    expected = [values[max(0, index - half) : index + half + 1].mean() for index in range(95)]
    np.testing.assert_allclose(_running_mean(values), expected, rtol=1e-12)


def test_a_curve_that_chance_is_known_for_stands_first_also_without_held_out_images() -> None:
    record = new_results("pretraining", "x", seed=0)
    record["metrics"] = {"accuracy_chance": _metric(0.25)}
    record["curves"] = {"loss": [[0, 1.0], [1, 1.0]], "accuracy": [[0, 0.2], [1, 0.4]], "skipped": [[0, 1], [1, 1]]}
    view = run_view(Source(Path("x"), "x", record))
    assert [curve["title"] for curve in view["curves"]["first"]] == ["Loss", "Accuracy"]
    assert [curve["title"] for curve in view["curves"]["others"]] == ["Skipped"]
    assert not view["measures"]["first"]
    assert key_metric(record) is None


def test_key_metric_is_the_mean_over_classes() -> None:
    record = new_results("evaluation", "x", seed=0)
    assert key_metric(record) is None
    record["metrics"] = {"rank": _metric(8.0), "matching_accuracy": _metric(0.9)}
    assert key_metric(record) == "matching_accuracy"
    record["metrics"] = {"dice/liver": _metric(0.9), "dice/mean": _metric(0.8)}
    assert key_metric(record) == "dice/mean"


def test_gallery_orders_cases_by_score(tmp_path: Path) -> None:
    record = new_results("evaluation", "x", seed=0)
    for score in (0.3, 0.9, 0.5, 0.7, 0.1):
        (tmp_path / f"{score}.png").write_bytes(b"\x89PNG")
        record["cases"].append({"case": str(score), "metrics": {"dice/mean": score}, "preview": f"{score}.png"})
    shown = run_view(Source(tmp_path, "x", record))["gallery"]
    assert [(item["rank"], item["case"]) for item in shown] == [("best", "0.9"), ("median", "0.5"), ("worst", "0.1")]


def test_one_case_is_shown_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    record = new_results("evaluation", "x", seed=0)
    record["cases"] = [{"case": "a", "metrics": {"dice/mean": 0.5}, "preview": "a.png"}]
    (item,) = run_view(Source(tmp_path, "x", record))["gallery"]
    assert item["rank"] == "the only case"


def test_class_table_counts_what_could_not_be_computed(tmp_path: Path) -> None:
    record = new_results("evaluation", "x", seed=0)
    record["cases"] = [
        {"case": name, "metrics": {"dice/liver": value}} for name, value in (("a", 0.2), ("b", None), ("c", 0.6))
    ]
    (row,) = run_view(Source(tmp_path, "x", record))["classes"]["rows"]
    assert row == {
        "label": "Liver",
        "mean": "0.400",
        "interval": "",
        "n": 2,
        "lowest": "0.200",
        "highest": "0.600",
        "absent": 1,
    }


def test_comparisons_stand_in_the_row_of_their_measure(tmp_path: Path) -> None:
    record = new_results("pretraining", "x", seed=0)
    names = {"accuracy": 0.9, "accuracy_untrained": 0.2, "accuracy_chance": 0.0625, "histogram_accuracy": 0.4}
    record["metrics"] = {name: _metric(value) for name, value in {**names, "histogram_accuracy_untrained": 0.4}.items()}
    (row,) = run_view(Source(tmp_path, "x", record))["measures"]["first"]
    assert row["text"] == "0.900"
    assert row["beside"] == {"chance": "0.062", "untrained": "0.200", "grey histogram": "0.400"}


def test_curves_without_a_measure_to_hold_them_against_come_second(tmp_path: Path) -> None:
    record = new_results("pretraining", "x", seed=0)
    record["metrics"] = {"accuracy": _metric(0.9), "accuracy_chance": _metric(0.1), "rank": _metric(8.0)}
    record["curves"] = {
        name: [[0, 1.0], [1, 0.5]] for name in ("loss", "intra", "accuracy", "rank", "histogram_accuracy")
    }
    record["metrics"]["histogram_accuracy"] = _metric(0.3)
    curves = run_view(Source(tmp_path, "x", record))["curves"]
    assert [plot["title"] for plot in curves["first"]] == ["Loss", "Accuracy"]
    assert [plot["title"] for plot in curves["others"]] == ["Intra", "Rank"]


def test_curves_hold_their_comparison_lines() -> None:
    text = _svg(
        curve_figure(
            Curve(
                {"accuracy": [[0, 0.2], [10, None], [20, 0.9]]}, {"untrained": 0.2, "chance": 0.0625}, unit_range=True
            )
        )
    )
    assert "untrained 0.2" in text
    assert "chance 0.0625" in text


def test_figures_bear_empty_and_constant_values() -> None:
    curve_figure(Curve({"loss": [[0, 1.0]]}))
    curve_figure(Curve({"loss": [[step, 1.0] for step in range(5000)]}))
    assert "Lesion" in _svg(strip_figure({"Lesion": [], "Liver": [0.5]}, {"Liver": (0.5, None)}, "Dice"))


def test_a_file_that_is_no_picture_gives_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert picture(tmp_path / "a.txt") is None
    assert picture(tmp_path / "missing.png") is None


def test_record_without_anything_is_shown(write_record: Callable[[dict[str, Any]], Path], tmp_path: Path) -> None:
    from lvmmed_monai.report import build_report

    folder = write_record(new_results("inference", "empty", seed=None))
    assert "Empty" in build_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
