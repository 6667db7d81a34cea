"""A folder of result files as a whole small project leaves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvmmed_monai.files import write_json
from lvmmed_monai.results import new_results, write_results

ORGANS = ("lung", "liver", "spleen", "kidney_right", "kidney_left", "bone", "lesion")


def _picture(path: Path, seed: int) -> None:
    """A grey blob with a coloured rim, so that a page of them can be looked at."""
    rows, columns = np.mgrid[-1:1:90j, -3:3:270j]
    distance = np.hypot(rows, (columns + 1) % 2 - 1) + 0.05 * np.sin(seed + 4 * np.arctan2(rows, columns))
    grey = np.clip(200 * (distance < 0.8) * (0.6 + 0.4 * np.cos(6 * distance + seed)), 0, 255)
    colour = np.repeat(grey[..., None], 3, axis=2)
    colour[np.abs(distance - 0.5) < 0.02] = (213, 94, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colour.astype(np.uint8)).save(path)


def _finding(code: str, severity: str) -> dict[str, Any]:
    return {
        "code": code,
        "severity": severity,
        "measured": "gap of 7.5 mm after slice 12",
        "expected": "one spacing, within 1 %",
        "remedy": "export the series again, complete",
    }


def ingest_summary(folder: Path) -> dict[str, Any]:
    """24 accepted series and one refused."""
    series = []
    for index in range(25):
        identity = f"{index * 7919 + 4660:016x}"
        accepted = index != 20
        if accepted:
            _picture(folder / "previews" / f"{identity}.png", index)
        series.append(
            {
                "id": identity,
                "modality": "CT",
                "accepted": accepted,
                "shape": [96, 96, 48],
                "spacing_mm": [3.5, 3.5, 5.0],
                "value_range": [-1024, 1800],
                "labels": list(ORGANS) if accepted else None,
                "preview": f"previews/{identity}.png" if accepted else None,
                "findings": [] if accepted else [_finding("GEO-004", "error")],
            }
        )
    return {
        "format": "lvmmed-qc/1",
        "source": {"files": 1216},
        "series": series,
        "files": [{"code": "FILE-001", "count": 3, "remedy": "not DICOM; nothing to do"}],
        "datalists": ["datalist.json"],
        "timings": {"total": 12.4},
    }


def _metric(value: float | None, *, n: int, interval: list[float] | None = None) -> dict[str, Any]:
    return {"value": value, "n": n, "interval": interval, "higher_is_better": True}


def pretraining_record(seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    record = new_results("pretraining", "lvmmed_pretrain", seed=0)
    record["command"] = (
        "lvmmed run lvmmed_pretrain train datalist=demo/data/datalist.json output_dir=demo/runs/pretrain_2d"
    )
    steps = np.arange(400)
    loss = 0.2 + 0.7 * np.exp(-steps / 90) + generator.normal(0, 0.04, 400)
    record["curves"]["loss"] = [[int(step), float(value)] for step, value in zip(steps, loss, strict=True)]
    record["curves"]["matching_accuracy"] = [[0, 0.18], [100, 0.31], [200, 0.44], [300, 0.52], [400, 0.55]]
    record["curves"]["learning_rate"] = [[int(step), float(1e-3 * (1 - step / 400))] for step in steps]
    record["metrics"]["matching_accuracy"] = _metric(0.55, n=256)
    record["metrics"]["matching_accuracy_untrained"] = _metric(0.18, n=256)
    record["metrics"]["matching_accuracy_chance"] = _metric(0.0625, n=256)
    record["metrics"]["feature_rank"] = _metric(8.1, n=256)
    record["timings"] = {"setup": 4.2, "training": 61.0, "monitors": 5.5}
    record["peak_memory_mb"] = 1432.0
    record["data"]["datalists"] = [
        {"name": "torso", "sha256": "ab12" * 16, "counts": {"training": 16, "validation": 4, "test": 4}}
    ]
    return record


def evaluation_record(folder: Path, name: str = "lvmmed_segmentation_2d", shift: float = 0.0) -> dict[str, Any]:
    generator = np.random.default_rng(len(name))
    record = new_results("evaluation", name, seed=0)
    record["data"] = {
        "datalists": [{"name": "torso", "sha256": "ab12" * 16, "counts": {"test": 4}}],
        "encoder": {
            "name": "resnet18",
            "options": {"width": 16},
            "sha256": "cd34" * 16,
            "input": {"spatial_dims": 2},
            "provenance": {
                "method": "lvm_med",
                "steps": 400,
                "seed": 0,
                "datalists": [{"name": "torso", "sha256": "ab12" * 16, "counts": {"training": 16}}],
                "subjects": ["a"] * 16,
                "versions": {},
                "licence": "the terms of the training data apply",
            },
        },
    }
    for index in range(4):
        values = {f"dice/{organ}": float(np.clip(generator.normal(0.85 - shift, 0.05), 0, 1)) for organ in ORGANS}
        values["dice/lesion"] = None if index % 2 else 0.31 + 0.1 * index
        mean = float(
            np.mean([value for organ, value in values.items() if organ != "dice/lesion" and value is not None])
        )
        case = f"{index * 104729 + 77:016x}"
        _picture(folder / "previews" / f"{case}.png", index)
        record["cases"].append(
            {"case": case, "metrics": {**values, "dice/mean": mean}, "preview": f"previews/{case}.png"}
        )
    for organ in (*(f"dice/{organ}" for organ in ORGANS), "dice/mean"):
        values = [case["metrics"][organ] for case in record["cases"] if case["metrics"][organ] is not None]
        record["metrics"][organ] = _metric(float(np.mean(values)), n=len(values), interval=[min(values), max(values)])
    record["timings"] = {"inference": 21.0, "total": 25.5}
    record["peak_memory_mb"] = 1880.0
    return record


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingest, pre-training and two evaluations, as files."""
    root = tmp_path_factory.mktemp("project")
    write_json(root / "data" / "qc.json", ingest_summary(root / "data"))
    write_results(root / "runs" / "pretrain_2d" / "results.json", pretraining_record())
    for name, shift in (("lvmmed_segmentation_2d", 0.0), ("voco_segmentation_3d", 0.1)):
        folder = root / "runs" / name
        write_results(folder / "results.json", evaluation_record(folder, name, shift))
    return root


@pytest.fixture
def write_record(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write one results record to a fresh folder and give the folder."""

    def write(record: dict[str, Any]) -> Path:
        write_results(tmp_path / "run" / "results.json", record)
        return tmp_path

    return write
