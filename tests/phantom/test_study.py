"""Phantom studies on disk: valid DICOM, the same bytes again, and labels that read back exactly."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from lvmmed_monai.errors import UserError
from lvmmed_monai.phantom import generate, study, write_studies

SIZE = 48


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", params=["torso_ct", "brain_mr"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[Path]]:
    out = tmp_path_factory.mktemp("phantom") / request.param
    return request.param, out, write_studies(out, request.param, subjects=2, seed=1, size=SIZE)


def test_folders(written: tuple[str, Path, list[Path]]) -> None:
    kind, out, folders = written
    modality = "CT" if kind == "torso_ct" else "MR"
    assert [folder.name for folder in folders] == [f"PHANTOM-{modality}-001-000{i}" for i in range(2)]
    assert not list(out.glob(".partial*"))
    for folder in folders:
        assert len(list((folder / "SEG").iterdir())) == 1
        assert len(list((folder / modality).iterdir())) > 20


def test_series_holds_the_generated_volume(written: tuple[str, Path, list[Path]]) -> None:
    kind, _out, folders = written
    for subject, folder in enumerate(folders):
        volume = generate(kind, 1, subject, size=SIZE)
        instances = [pydicom.dcmread(path) for path in sorted(folder.glob("[CM][TR]/*.dcm"))]
        row, column = np.reshape(np.array(instances[0].ImageOrientationPatient, dtype=float), (2, 3))
        normal = np.cross(row, column)
        instances.sort(key=lambda item: float(np.dot(normal, np.array(item.ImagePositionPatient, dtype=float))))
        slope = float(instances[0].get("RescaleSlope", 1))
        intercept = float(instances[0].get("RescaleIntercept", 0))
        image = np.stack([item.pixel_array.T * slope + intercept for item in instances], axis=2)
        np.testing.assert_array_equal(image, volume.image)
        # Instance numbers run against the positions, as in many scans.
        assert instances[0].InstanceNumber == len(instances)
        # The affine, computed here once more from the header: columns are PixelSpacing[1] along the row direction.
        between_rows, between_columns = (float(value) for value in instances[0].PixelSpacing)
        first, last = (np.array(instances[i].ImagePositionPatient, dtype=float) for i in (0, -1))
        step = (last - first) / (len(instances) - 1)
        matrix = np.column_stack([row * between_columns, column * between_rows, step, first])
        np.testing.assert_allclose(np.diag([-1, -1, 1]) @ matrix, volume.affine[:3], atol=1e-3)


def test_segmentation_equals_the_labels(written: tuple[str, Path, list[Path]]) -> None:
    kind, _out, folders = written
    for subject, folder in enumerate(folders):
        volume = generate(kind, 1, subject, size=SIZE)
        instances = sorted(
            (pydicom.dcmread(path, stop_before_pixels=True) for path in folder.glob("[CM][TR]/*.dcm")),
            key=lambda item: -item.InstanceNumber,
        )
        segmentation = highdicom.seg.segread(next(folder.glob("SEG/*.dcm")))
        frames = segmentation.get_pixels_by_source_instance(
            [item.SOPInstanceUID for item in instances], combine_segments=True, assert_missing_frames_are_empty=True
        )
        names = {item.SegmentNumber: item.SegmentLabel for item in segmentation.SegmentSequence}
        index = {name: label for label, name in volume.names.items()}
        table = np.array([0] + [index[names[number]] for number in sorted(names)], dtype=np.uint8)
        np.testing.assert_array_equal(table[frames].transpose(2, 1, 0), volume.labels)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_dciodvfy_finds_no_errors(written: tuple[str, Path, list[Path]]) -> None:
    _kind, _out, folders = written
    for folder in folders:
        for path in (sorted(folder.glob("[CM][TR]/*.dcm"))[0], next(folder.glob("SEG/*.dcm"))):
            report = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
            assert "Error" not in report.stdout + report.stderr, report.stderr


def test_all_identifiers_are_synthetic(written: tuple[str, Path, list[Path]]) -> None:
    _kind, _out, folders = written
    uids = set()
    for folder in folders:
        paths = list(folder.rglob("*.dcm"))
        for path in paths:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            assert "PHANTOM" in str(header.PatientName)
            assert header.PatientID == folder.name
            assert header.SeriesDescription.startswith("PHANTOM")
            uids.add(header.SOPInstanceUID)
    assert len(uids) == sum(len(list(folder.rglob("*.dcm"))) for folder in folders)


def test_same_settings_same_bytes(written: tuple[str, Path, list[Path]], tmp_path: Path) -> None:
    kind, out, folders = written
    write_studies(tmp_path / "again", kind, subjects=2, seed=1, size=SIZE)
    assert digests(tmp_path / "again") == digests(out)
    # Running again in the same place keeps what is there and restores what is not.
    before = digests(out)
    shutil.rmtree(folders[1])
    stamp = next(folders[0].rglob("*.dcm")).stat().st_mtime_ns
    write_studies(out, kind, subjects=2, seed=1, size=SIZE)
    assert digests(out) == before
    assert next(folders[0].rglob("*.dcm")).stat().st_mtime_ns == stamp


def test_folders_that_are_not_ours_are_refused(written: tuple[str, Path, list[Path]], tmp_path: Path) -> None:
    kind, out, _folders = written
    before = digests(out)
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        write_studies(out, kind, subjects=2, seed=9, size=SIZE)
    assert digests(out) == before
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_studies(tmp_path, kind, subjects=1, size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "elbow"}, "unknown kind"),
        ({"subjects": 0}, "subjects must be"),
        ({"seed": -1}, "seed 0 or more"),
        ({"size": 8}, "32 to 1024"),
        ({"slice_mm": (6.0, 5.0)}, "range"),
    ],
)
def test_wrong_settings(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_studies(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_interrupted_subject_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(study, "write_segmentation", fail)
    with pytest.raises(OSError, match="No space"):
        write_studies(tmp_path / "out", subjects=1, size=32)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".phantom.json"]


@pytest.mark.parametrize("seed", range(6))
def test_two_fifths_have_a_lesion(seed: int) -> None:
    flags = [study._has_lesion(seed, subject) for subject in range(50)]
    assert sum(flags) == 20
    assert all(1 <= sum(flags[i : i + 5]) <= 3 for i in range(0, 50, 5))
