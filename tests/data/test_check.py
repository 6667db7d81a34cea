"""The check finds each planted fault and nothing in sound data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from lvmmed_monai.cli.check import check as check_command
from lvmmed_monai.data.check import check_datalist
from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.errors import DataError, UserError

RANDOM = np.random.default_rng(0)


def _volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def _volumes(folder: Path) -> Path:
    """A sound 3D segmentation datalist of two subjects."""
    items = []
    for name in ("a", "b"):
        _volume(folder / f"{name}.nii.gz", RANDOM.normal(size=(4, 5, 6)).astype(np.float32))
        _volume(folder / f"{name}_l.nii.gz", RANDOM.integers(0, 2, (4, 5, 6)).astype(np.uint8))
        items.append({"image": f"{name}.nii.gz", "label": f"{name}_l.nii.gz", "subject": name})
    datalist = {
        "format": "lvmmed-datalist/1",
        "name": "volumes",
        "task": "segmentation",
        "modality": "MR",
        "labels": {"0": "background", "1": "lesion"},
        "training": items[:1],
        "validation": items[1:],
    }
    write_datalist(folder / "datalist.json", datalist)
    return folder / "datalist.json"


def _codes(path: Path) -> list[tuple[str, str]]:
    return [(finding["code"], finding["item"]) for finding in check_datalist(path)["findings"]]


def _with_nan(folder: Path) -> None:
    array = RANDOM.normal(size=(4, 5, 6)).astype(np.float32)
    array[0, 0, 0] = np.nan
    _volume(folder / "a.nii.gz", array)


def _shifted(folder: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 0.5
    _volume(folder / "a_l.nii.gz", np.zeros((4, 5, 6), np.uint8), affine)


def _truncated(folder: Path) -> None:
    data = (folder / "a.nii.gz").read_bytes()
    (folder / "a.nii.gz").write_bytes(data[: len(data) // 2])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / "a.nii.gz").unlink(), "CHK-001"),
    "missing label": (lambda folder: (folder / "a_l.nii.gz").unlink(), "CHK-001"),
    "truncated": (_truncated, "CHK-002"),
    "shape": (lambda folder: _volume(folder / "a_l.nii.gz", np.zeros((4, 5, 7), np.uint8)), "CHK-003"),
    "affine": (_shifted, "CHK-004"),
    "value": (lambda folder: _volume(folder / "a_l.nii.gz", np.full((4, 5, 6), 7, np.uint8)), "CHK-005"),
    "fraction": (lambda folder: _volume(folder / "a_l.nii.gz", np.full((4, 5, 6), 0.5, np.float32)), "CHK-005"),
    "nan label": (lambda folder: _volume(folder / "a_l.nii.gz", np.full((4, 5, 6), np.nan, np.float32)), "CHK-006"),
    "nan": (_with_nan, "CHK-006"),
    "constant": (lambda folder: _volume(folder / "a.nii.gz", np.full((4, 5, 6), 3, np.int16)), "CHK-007"),
    "copy": (lambda folder: (folder / "a.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes()), "CHK-009"),
}


class TestVolumes:
    def test_sound_data(self, tmp_path: Path) -> None:
        report = check_datalist(_volumes(tmp_path))
        assert report["findings"] == []
        assert report["counts"] == {"training": 1, "validation": 1, "test": 0}
        assert (report["errors"], report["warnings"]) == (0, 0)

    @pytest.mark.parametrize("fault", sorted(FAULTS))
    def test_each_fault(self, tmp_path: Path, fault: str) -> None:
        path = _volumes(tmp_path)
        plant, code = FAULTS[fault]
        plant(tmp_path)
        found = _codes(path)
        assert [one for one, _ in found] == [code]
        assert found[0][1] == ("b.nii.gz" if fault == "copy" else "a.nii.gz")

    def test_an_empty_label_is_not_wrong(self, tmp_path: Path) -> None:
        path = _volumes(tmp_path)
        _volume(tmp_path / "a_l.nii.gz", np.zeros((4, 5, 6), np.float32))
        assert _codes(path) == []

    def test_a_rounded_affine_is_not_wrong(self, tmp_path: Path) -> None:
        path = _volumes(tmp_path)
        affine = np.eye(4)
        affine[0, 3] = 1e-5
        _volume(tmp_path / "a_l.nii.gz", np.zeros((4, 5, 6), np.uint8), affine)
        assert _codes(path) == []


def _pictures(folder: Path, arrays: dict[str, np.ndarray], **item: Any) -> Path:
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"{name}.png")
    datalist = {
        "format": "lvmmed-datalist/1",
        "name": "pictures",
        "task": "detection" if item else "unlabelled",
        "modality": "COLOR",
        "training": [{"image": f"{name}.png", "subject": name, **item} for name in arrays],
    }
    if item:
        datalist["labels"] = {"0": "cell"}
    write_datalist(folder / "datalist.json", datalist)
    return folder / "datalist.json"


class TestPictures:
    def test_stripes(self, tmp_path: Path) -> None:
        row = RANDOM.integers(0, 255, (1, 40, 3)).repeat(30, axis=0)
        noise = RANDOM.integers(0, 255, (30, 40, 3))
        arrays = {
            "picture": noise,
            "vertical": row,
            "nearly": (0.95 * row + 0.05 * noise),
            "smeared": (0.75 * row + 0.25 * noise),
            "horizontal": row.transpose(1, 0, 2),
            "flat": np.zeros((30, 40)),
        }
        path = _pictures(tmp_path, {name: array.astype(np.uint8) for name, array in arrays.items()})
        assert _codes(path) == [
            ("CHK-008", "vertical.png"),
            ("CHK-008", "nearly.png"),
            ("CHK-012", "smeared.png"),
            ("CHK-008", "horizontal.png"),
            ("CHK-007", "flat.png"),
        ]

    def test_a_copy_within_a_section_is_a_warning(self, tmp_path: Path) -> None:
        noise = RANDOM.integers(0, 255, (30, 40), dtype=np.uint8)
        report = check_datalist(_pictures(tmp_path, {"one": noise, "two": noise}))
        assert [finding["code"] for finding in report["findings"]] == ["CHK-010"]
        assert (report["errors"], report["warnings"]) == (0, 1)

    @pytest.mark.parametrize(("box", "codes"), [([0, 0, 40, 30], []), ([0, 0, 30, 40], ["CHK-011"])])
    def test_boxes_are_columns_by_rows(self, tmp_path: Path, box: list[int], codes: list[str]) -> None:
        noise = RANDOM.integers(0, 255, (30, 40), dtype=np.uint8)
        path = _pictures(tmp_path, {"one": noise}, box=[box], label=[0])
        assert [code for code, _ in _codes(path)] == codes


class TestCommand:
    def test_sound(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        check_command(_volumes(tmp_path), quiet=True)
        shown = capsys.readouterr().out
        assert "volumes (MR, segmentation): 1 training, 1 validation, 0 test" in shown
        assert "nothing wrong" in shown

    def test_faults_exit_with_3(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = _volumes(tmp_path)
        _with_nan(tmp_path)
        with pytest.raises(DataError, match="1 errors found") as caught:
            check_command(path, quiet=True)
        assert caught.value.exit_code == 3
        shown = capsys.readouterr().out
        assert "CHK-006" in shown
        assert "1 voxels" in shown

    def test_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = _volumes(tmp_path)
        (tmp_path / "b.nii.gz").unlink()
        with pytest.raises(DataError):
            check_command(path, json=True)
        report = json.loads(capsys.readouterr().out)
        assert report["format"] == "lvmmed-check/1"
        assert report["findings"][0]["code"] == "CHK-001"
        assert {"severity", "measured", "expected", "remedy", "section", "item"} <= report["findings"][0].keys()

    def test_no_datalist(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="datalist not found"):
            check_command(tmp_path / "none.json")
