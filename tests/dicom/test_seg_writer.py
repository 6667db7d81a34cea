"""DICOM SEG: written on the source's slices, read back by other software, equal voxel for voxel."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage

from lvmmed_monai.dicom import seg_writer
from lvmmed_monai.dicom.seg_writer import write_segmentation
from lvmmed_monai.dicom.segment_codes import display_colour, segment_code
from lvmmed_monai.dicom.uids import derived_uid
from lvmmed_monai.errors import UserError

SHAPE = (20, 16, 9)
LABELS = {"0": "background", "1": "liver", "2": "kidney_left", "5": "thing nobody coded"}
NOON = datetime.datetime(2024, 5, 17, 12, 0, 0)


def turned(angles: tuple[float, float, float]) -> np.ndarray:
    """A right-handed LPS frame as columns, from angles about x, y and z in degrees."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        result = step @ result
    return result


def series(directions: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, list[pydicom.Dataset]]:
    """RAS affine and source headers of a series with 1.5 x 2 x 3 mm voxels; directions are LPS unit columns."""
    spacing, origin = np.array([1.5, 2.0, 3.0]), np.array([-31.0, 12.5, 80.25])
    headers = []
    for k in range(shape[2]):
        header = pydicom.Dataset()
        header.SOPClassUID = CTImageStorage
        header.SOPInstanceUID = f"1.2.826.0.1.99.1.{k + 1}"
        header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.826.0.1.99.2", "1.2.826.0.1.99.3"
        header.FrameOfReferenceUID = "1.2.826.0.1.99.4"
        header.Modality = "CT"
        header.PatientName, header.PatientID, header.StudyDate = "PHANTOM^X", "PHANTOM", "20200101"
        header.Columns, header.Rows = shape[:2]
        header.PixelSpacing = [2.0, 1.5]
        header.SliceThickness = 3.0
        header.ImageOrientationPatient = [f"{v:.10f}" for v in (*directions[:, 0], *directions[:, 1])]
        header.ImagePositionPatient = [f"{v:.6f}" for v in origin + directions[:, 2] * spacing[2] * k]
        headers.append(header)
    to_lps = np.eye(4)
    to_lps[:3, :3], to_lps[:3, 3] = directions * spacing, origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ to_lps, headers


def random_mask(seed: int = 0) -> np.ndarray:
    mask = np.random.default_rng(seed).choice([0, 1, 2, 5], size=SHAPE).astype(np.uint8)
    mask[:, :, 3] = 0
    return mask


def read_by_highdicom(path: Path, headers: list[pydicom.Dataset]) -> tuple[np.ndarray, list[str]]:
    """(x, y, z) segment numbers on the source's slices and the segments' labels, read by another library."""
    segmentation = highdicom.seg.segread(path)
    frames = segmentation.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in headers], combine_segments=True, assert_missing_frames_are_empty=True
    )
    return frames.transpose(2, 1, 0), [item.SegmentLabel for item in segmentation.SegmentSequence]


PLAIN = np.eye(3)
FRAMES = {
    "plain": PLAIN,
    "slices downwards": np.diag([1.0, -1.0, -1.0]),
    "feet first": np.diag([-1.0, 1.0, -1.0]),
    "sagittal": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=float),
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=float),
    "oblique": turned((20.0, 17.0, -9.0)),
    "oblique, downwards": turned((-12.0, 33.0, 5.0)) @ np.diag([1.0, -1.0, -1.0]),
    # Slices against the normal of rows and columns: a left-handed grid.
    "mirrored": np.diag([1.0, 1.0, -1.0]),
}


@pytest.mark.parametrize("frame", FRAMES)
def test_round_trip_on_any_orientation(tmp_path: Path, frame: str) -> None:
    affine, headers = series(FRAMES[frame])
    mask = random_mask()
    path = write_segmentation(tmp_path / "a.dcm", mask, affine, headers, LABELS)
    assert path == tmp_path / "a.dcm"
    read, names = read_by_highdicom(path, headers)
    assert names == ["liver", "kidney_left", "thing nobody coded"]
    np.testing.assert_array_equal(np.array([0, 1, 2, 5])[read], mask)


def test_positions_of_frames_are_those_of_the_sources(tmp_path: Path) -> None:
    affine, headers = series(FRAMES["oblique"])
    write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers, LABELS)
    written = pydicom.dcmread(tmp_path / "a.dcm")
    by_uid = {header.SOPInstanceUID: header for header in headers}
    assert int(written.NumberOfFrames) == 3 * (SHAPE[2] - 1)
    for groups in written.PerFrameFunctionalGroupsSequence:
        uid = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert groups.PlanePositionSequence[0].ImagePositionPatient == by_uid[uid].ImagePositionPatient


def test_header_says_what_it_is(tmp_path: Path) -> None:
    affine, headers = series(PLAIN)
    write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers, LABELS, created=NOON)
    written = pydicom.dcmread(tmp_path / "a.dcm")
    assert written.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert written.SegmentationType == "BINARY"
    assert written.StudyInstanceUID == headers[0].StudyInstanceUID
    assert written.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert written.SeriesInstanceUID != headers[0].SeriesInstanceUID
    assert written.SeriesNumber >= 900
    assert "not for diagnosis" in written.SeriesDescription
    assert written.ContentCreatorName == ""
    assert (written.ContentDate, written.SeriesTime) == ("20240517", "120000")
    assert len(written.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SHAPE[2]
    first = written.SegmentSequence[0]
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert len(first.RecommendedDisplayCIELabValue) == 3


def test_same_result_is_the_same_object(tmp_path: Path) -> None:
    affine, headers = series(PLAIN)
    for name in "ab":
        write_segmentation(tmp_path / name, random_mask(), affine, headers, LABELS, created=NOON)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_segmentation(tmp_path / "later", random_mask(), affine, headers, LABELS)
    write_segmentation(tmp_path / "other", random_mask(1), affine, headers, LABELS)
    one, later, other = (pydicom.dcmread(tmp_path / name) for name in ("a", "later", "other"))
    assert one.SOPInstanceUID == later.SOPInstanceUID != other.SOPInstanceUID
    assert one.SeriesInstanceUID == later.SeriesInstanceUID != other.SeriesInstanceUID


def test_one_segment_one_voxel(tmp_path: Path) -> None:
    affine, headers = series(PLAIN)
    mask = np.zeros(SHAPE, np.uint8)
    mask[19, 0, 8] = 5
    write_segmentation(tmp_path / "a.dcm", mask, affine, headers, LABELS)
    read, names = read_by_highdicom(tmp_path / "a.dcm", headers)
    assert names == ["thing nobody coded"]
    np.testing.assert_array_equal(read * 5, mask)


def test_nothing_found_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    affine, headers = series(PLAIN)
    with caplog.at_level("INFO"):
        assert write_segmentation(tmp_path / "a.dcm", np.zeros(SHAPE, np.uint8), affine, headers, LABELS) is None
    assert "no DICOM SEG" in caplog.text
    assert not list(tmp_path.iterdir())


def test_deidentified_and_malformed_headers_are_completed(tmp_path: Path) -> None:
    affine, headers = series(PLAIN)
    for header in headers:
        del header.PatientName, header.PatientID, header.SliceThickness
        with pytest.warns(UserWarning, match="Invalid value"):
            header.StudyDate = "2020-01-01"
        header.SpecificCharacterSet = "ISO_IR 100"
        header.PatientName = "Müller^Jörg"
    write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers, LABELS)
    written = pydicom.dcmread(tmp_path / "a.dcm")
    assert str(written.PatientName) == "Müller^Jörg"
    assert written.StudyDate == ""
    assert written.PatientID == ""
    shared = written.SharedFunctionalGroupsSequence[0]
    assert float(shared.PixelMeasuresSequence[0].SliceThickness) == pytest.approx(3.0)
    # the caller's headers are as they were
    assert "AccessionNumber" not in headers[0]
    assert "SliceThickness" not in headers[0]


class TestRefusals:
    def test_grid_of_another_volume(self, tmp_path: Path) -> None:
        affine, headers = series(PLAIN)
        moved = affine.copy()
        moved[0, 3] += 1.0
        with pytest.raises(UserError, match=r"1\.00 mm off"):
            write_segmentation(tmp_path / "a.dcm", random_mask(), moved, headers, LABELS)
        with pytest.raises(UserError, match="mm off"):
            write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers[::-1], LABELS)
        with pytest.raises(UserError, match="shape"):
            write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers[1:], LABELS)
        assert not list(tmp_path.iterdir())

    def test_flipped_mask_axes(self, tmp_path: Path) -> None:
        affine, headers = series(PLAIN)
        flipped = affine @ np.diag([-1.0, 1.0, 1.0, 1.0])
        with pytest.raises(UserError, match="mm off"):
            write_segmentation(tmp_path / "a.dcm", random_mask(), flipped, headers, LABELS)

    def test_value_without_a_name(self, tmp_path: Path) -> None:
        affine, headers = series(PLAIN)
        mask = random_mask()
        mask[0, 0, 0] = 3
        with pytest.raises(UserError, match=r"without a name.*\[3\.0\]"):
            write_segmentation(tmp_path / "a.dcm", mask, affine, headers, LABELS)
        with pytest.raises(UserError, match="without a name"):
            write_segmentation(tmp_path / "a.dcm", mask * 0.5, affine, headers, LABELS)

    def test_axes_and_series_number(self, tmp_path: Path) -> None:
        affine, headers = series(PLAIN)
        with pytest.raises(UserError, match=r"\(x, y, z\)"):
            write_segmentation(tmp_path / "a.dcm", random_mask()[None], affine, headers, LABELS)
        with pytest.raises(UserError, match="900 or more"):
            write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers, LABELS, series_number=3)

    @pytest.mark.parametrize("name", ["FrameOfReferenceUID", "ImagePositionPatient"])
    def test_sources_that_cannot_be_referred_to(self, tmp_path: Path, name: str) -> None:
        affine, headers = series(PLAIN)
        delattr(headers[2], name)
        with pytest.raises(UserError, match=f"1 of 9 source instances have no {name}"):
            write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers, LABELS)

    def test_two_series(self, tmp_path: Path) -> None:
        affine, headers = series(PLAIN)
        headers[4].SeriesInstanceUID = "1.2.3"
        with pytest.raises(UserError, match="differ in SeriesInstanceUID"):
            write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers, LABELS)


def test_object_that_reads_back_wrong_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine, headers = series(PLAIN)
    real = seg_writer._read_back
    monkeypatch.setattr(seg_writer, "_read_back", lambda *args: np.roll(real(*args), 1, axis=0))
    with pytest.raises(RuntimeError, match="does not read back"):
        write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers, LABELS)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
@pytest.mark.parametrize("frame", ["plain", "oblique"])
def test_dciodvfy_finds_no_errors(tmp_path: Path, frame: str) -> None:
    affine, headers = series(FRAMES[frame])
    path = write_segmentation(tmp_path / "a.dcm", random_mask(), affine, headers, LABELS)
    report = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    assert "Error" not in report.stderr + report.stdout, report.stderr


def test_codes_and_colours() -> None:
    assert segment_code("Right Kidney") == segment_code("kidney_right")
    assert segment_code("kidney_right").type[0] != segment_code("kidney_left").type[0]
    assert segment_code("tumour").category[1] == "Morphologically Abnormal Structure"
    assert segment_code("something else").type[1] == "Organ"
    assert len({display_colour(index) for index in range(1, 11)}) == 10
    for index in range(1, 30):
        lightness, a, b = display_colour(index)
        assert 0 <= lightness <= 100
        assert max(abs(a), abs(b)) <= 127


def test_derived_uid() -> None:
    uid = derived_uid("a", "bc")
    assert uid == derived_uid("a", "bc") != derived_uid("ab", "c")
    assert pydicom.uid.UID(uid).is_valid
    assert len(uid) <= 64
