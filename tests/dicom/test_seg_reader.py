"""Segmentation objects, against masks made by hand and against highdicom's own writer."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from synthetic_dicom import COLUMNS, ROWS, segmentation, series, uid

from lvmmed_monai.dicom.geometry import SliceGrid
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.seg_reader import read_segmentation

COUNT = 6
NAMES = {1: "Liver", 2: "Left kidney"}


def grid_of(source: list[Dataset]) -> SliceGrid:
    positions = np.array([dataset.ImagePositionPatient for dataset in source], dtype=float)
    return SliceGrid(COLUMNS, ROWS, np.array([1.0, 0, 0, 0, 1, 0]), (0.8, 0.5), positions)


def two_masks(overlap: bool = False) -> dict[int, np.ndarray]:
    """Uneven shapes, with empty slices; each (slices, rows, columns)."""
    first, second = np.zeros((2, COUNT, ROWS, COLUMNS), dtype=bool)
    first[1:4, 2:7, 1:5] = True
    first[2, 3, 3] = False
    second[3:5, 2 if overlap else 8 : 11, 2:9] = True
    return {1: first, 2: second}


def expected_map(masks: dict[int, np.ndarray]) -> np.ndarray:
    labels = np.zeros((COLUMNS, ROWS, COUNT), dtype=np.uint8)
    for number, mask in masks.items():
        for k, row, column in np.argwhere(mask):
            labels[column, row, k] = number
    return labels


def drawn(dataset: Dataset, grid: SliceGrid) -> np.ndarray:
    """Segment numbers on the grid, of segments that do not overlap."""
    labels = np.zeros(grid.shape, dtype=np.uint8)
    for number, k, mask in read_segmentation(dataset).masks(grid):
        assert (mask.shape, mask.dtype) == (grid.shape[:2], bool)
        assert not labels[:, :, k][mask].any()
        labels[:, :, k][mask] = number
    return labels


@pytest.mark.parametrize("reverse", [False, True])
def test_binary_frames_go_where_their_positions_say(reverse):
    source, masks = series(COUNT), two_masks()
    order = slice(None, None, -1 if reverse else 1)
    dataset = segmentation(source[order], {number: mask[order] for number, mask in masks.items()}, NAMES)
    assert ROWS * COLUMNS % 8 == 0
    assert np.array_equal(drawn(dataset, grid_of(source)), expected_map(masks))


def test_frames_that_do_not_begin_at_a_byte():
    source = series(COUNT)
    for dataset in source:
        dataset.Rows, dataset.Columns = 11, 9
    masks = {number: mask[:, :11, :9] for number, mask in two_masks().items()}
    positions = np.array([dataset.ImagePositionPatient for dataset in source], dtype=float)
    grid = SliceGrid(9, 11, np.array([1.0, 0, 0, 0, 1, 0]), (0.8, 0.5), positions)
    labels = drawn(segmentation(source, masks, NAMES), grid)
    for number, mask in masks.items():
        assert np.array_equal(labels == number, mask.transpose(2, 1, 0))


def test_a_file_without_its_transfer_syntax_is_native():
    source, masks = series(COUNT), two_masks()
    dataset = segmentation(source, masks, NAMES)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    stored = pydicom.dcmread(io.BytesIO(buffer.getvalue()))
    del stored.file_meta.TransferSyntaxUID
    assert np.array_equal(drawn(stored, grid_of(source)), expected_map(masks))


@pytest.mark.parametrize("maximum", [255, 100, 1])
def test_fractional_counts_from_half_of_the_maximum(maximum):
    source = series(COUNT)
    values = np.zeros((COUNT, ROWS, COLUMNS), dtype=np.uint8)
    values[2, 1, 1:4] = (maximum, (maximum + 1) // 2, max((maximum + 1) // 2 - 1, 0))
    dataset = segmentation(source, {1: values}, {1: "Liver"}, kind="FRACTIONAL", maximum=maximum)
    labels = drawn(dataset, grid_of(source))
    inside = [voxel.tolist() for voxel in np.argwhere(labels == 1)]
    assert inside == [[column, 1, 2] for column in (1, 2, 3) if int(values[2, 1, column]) * 2 >= maximum]


def test_label_map_object():
    source, masks = series(COUNT), two_masks()
    numbers = sum(mask.astype(np.uint8) * number for number, mask in masks.items())
    dataset = segmentation(source, {1: numbers}, {0: "Background", **NAMES}, kind="LABELMAP")
    for item in dataset.PerFrameFunctionalGroupsSequence:
        del item.SegmentIdentificationSequence
    assert read_segmentation(dataset).segments == NAMES
    assert np.array_equal(drawn(dataset, grid_of(source)), expected_map(masks))


def test_overlapping_segments_are_kept_apart():
    source, masks = series(COUNT), two_masks(overlap=True)
    assert (masks[1] & masks[2]).sum() == 15
    found = {number: np.zeros((COUNT, ROWS, COLUMNS), dtype=bool) for number in masks}
    for number, k, mask in read_segmentation(segmentation(source, masks, NAMES)).masks(grid_of(source)):
        found[number][k] |= mask.T
    assert all(np.array_equal(found[number], masks[number]) for number in masks)


def test_last_digits_of_positions_do_not_matter_but_planes_do():
    source, masks = series(COUNT), two_masks()
    dataset = segmentation(source, masks, NAMES)
    positions = [item.PlanePositionSequence[0] for item in dataset.PerFrameFunctionalGroupsSequence]
    for item in positions:
        item.ImagePositionPatient = [value + 0.004 for value in item.ImagePositionPatient]
    assert np.array_equal(drawn(dataset, grid_of(source)), expected_map(masks))
    positions[0].ImagePositionPatient = [-3.0, 4.0, 8.0]
    assert not read_segmentation(dataset).lies_on(grid_of(source))
    with pytest.raises(DicomError, match="M02"):
        drawn(dataset, grid_of(source))


def test_other_size_is_not_on_the_grid():
    source = series(COUNT)
    dataset = segmentation(source, two_masks(), NAMES)
    other = SliceGrid(ROWS, COLUMNS, np.array([1.0, 0, 0, 0, 1, 0]), (0.8, 0.5), grid_of(source).positions)
    assert not read_segmentation(dataset).lies_on(other)


def test_references_are_read():
    source = series(COUNT)
    dataset = segmentation(source, two_masks(), NAMES)
    segmented = read_segmentation(dataset)
    assert segmented.referenced_series == {uid("PATIENT-7/study/series")}
    assert segmented.referenced_instances == segmented.referenced_classes == frozenset()
    derivation, image = Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source[1].SOPClassUID, source[1].SOPInstanceUID
    derivation.SourceImageSequence = Sequence([image])
    dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence = Sequence([derivation])
    segmented = read_segmentation(dataset)
    assert segmented.referenced_instances == {source[1].SOPInstanceUID}
    assert segmented.referenced_classes == {source[1].SOPClassUID}


def test_summary_is_small_and_lies_where_the_whole_does():
    source = series(COUNT)
    whole = read_segmentation(segmentation(source, two_masks(), NAMES))
    summary = pickle.loads(pickle.dumps(whole.summary()))
    assert summary == whole
    assert len(summary.dataset) == 0
    assert summary.lies_on(grid_of(source))
    with pytest.raises(DicomError, match="F03"):
        list(summary.masks(grid_of(source)))


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("pixels", "F04"),
        ("orientation", "G04"),
        ("positions", "G04"),
        ("turned", "M02"),
        ("type", "F03"),
        ("numbers", "F03"),
        ("bits", "F03"),
        ("frames", "F03"),
    ],
)
def test_damaged_objects_are_refused(damage, code):
    source = series(COUNT)
    dataset = segmentation(source, two_masks(), NAMES)
    if damage == "pixels":
        dataset.PixelData = dataset.PixelData[:20]
    elif damage == "orientation":
        del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    elif damage == "positions":
        del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    elif damage == "type":
        dataset.SegmentationType = "SOMETHING"
    elif damage == "turned":
        turned = Dataset()
        turned.ImageOrientationPatient = [0.0, 1, 0, 1, 0, 0]
        dataset.PerFrameFunctionalGroupsSequence[2].PlaneOrientationSequence = Sequence([turned])
    elif damage == "bits":
        dataset.BitsAllocated = 32
    elif damage == "frames":
        dataset.NumberOfFrames = 2**31 - 1
    else:
        del dataset.SegmentSequence[1]
    with pytest.raises(DicomError) as refusal:
        drawn(dataset, grid_of(source))
    assert refusal.value.code == code


def test_objects_of_another_writer():
    """highdicom writes; it puts the identification of a single segment into the shared group."""
    highdicom = pytest.importorskip("highdicom")
    from pydicom.sr.codedict import codes

    source, masks = series(COUNT), two_masks()
    for dataset in source:
        dataset.PatientBirthDate = dataset.PatientSex = dataset.StudyID = dataset.AccessionNumber = ""
    description = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Liver",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Liver,
        algorithm_type="MANUAL",
    )
    written = highdicom.seg.Segmentation(
        source_images=source,
        pixel_array=masks[1].astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[description],
        series_instance_uid=uid("written"),
        series_number=900,
        sop_instance_uid=uid("written.1"),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
    )
    segmented = read_segmentation(written)
    assert segmented.referenced_series == {source[0].SeriesInstanceUID}
    assert segmented.segments == {1: "Liver"}
    assert "liver" in segmented.vocabulary
    assert np.array_equal(drawn(written, grid_of(source)), expected_map({1: masks[1]}))
