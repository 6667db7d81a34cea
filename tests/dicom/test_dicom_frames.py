"""Multi-frame objects become one header for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from synthetic_dicom import series

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.frames import read_frames
from lvmmed_monai.dicom.header_rules import PHASE_KEYWORDS
from lvmmed_monai.dicom.headers import Header, header_from_dataset
from lvmmed_monai.dicom.problems import DicomError


def item(**groups: dict[str, Any]) -> Dataset:
    """A functional group item: sequence keyword to the values of its one item."""
    dataset = Dataset()
    for keyword, values in groups.items():
        inner = Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        setattr(dataset, keyword, DicomSequence([inner]))
    return dataset


def multi_frame(frames: Sequence[Dataset], shared: Dataset | None = None) -> Dataset:
    """A slice's data set without its own place, with functional groups instead."""
    dataset = series(3)[0]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, keyword)
    dataset.NumberOfFrames = len(frames)
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    if shared is not None:
        dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    return dataset


def expanded(dataset: Dataset) -> list[Header]:
    return read_frames(dataset, header_from_dataset(dataset, Source("x")))


def phase(header: Header, keyword: str) -> float | None:
    return header.phases[PHASE_KEYWORDS.index(keyword)]


def test_groups_of_a_frame_win_over_those_shared_and_over_the_header():
    shared = item(
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.25], "SliceThickness": 3, "SpacingBetweenSlices": 2},
        PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": 1},
    )
    frames = [
        item(
            PlanePositionSequence={"ImagePositionPatient": [0, 0, 5 * k]},
            FrameContentSequence={
                "InStackPositionNumber": 2 - k,
                "FrameAcquisitionDateTime": f"19700102{101112 + k}.5",
            },
        )
        for k in range(2)
    ]
    frames[1].PixelValueTransformationSequence = item(A={}, PixelMeasuresSequence={}).PixelMeasuresSequence
    frames[1].PixelValueTransformationSequence[0].RescaleSlope = 7
    first, second = expanded(multi_frame(frames, shared))
    assert (first.frame, second.frame, first.frames) == (0, 1, 2)
    assert (first.instance_number, second.instance_number) == (2, 1)
    assert (first.position, second.position) == ((0, 0, 0), (0, 0, 5))
    assert first.orientation == (1, 0, 0, 0, 1, 0)
    assert first.pixel_spacing == first.planar_spacing == (0.5, 0.25)
    assert (first.slice_thickness, first.spacing_between) == (3, 2)
    assert (first.slope, first.intercept) == (2, 1)
    assert (second.slope, second.intercept) == (7, -1024)
    assert [phase(header, "AcquisitionTime") for header in (first, second)] == [101112.5, 101113.5]


def test_values_that_tell_volumes_apart():
    frames = [
        item(
            FrameContentSequence={"TemporalPositionIndex": k + 1, "FrameAcquisitionNumber": 4},
            MREchoSequence={"EffectiveEchoTime": 2.5 * k},
            MRDiffusionSequence={"DiffusionDirectionality": "NONE"} if k == 0 else {"DiffusionBValue": 800.0},
            CardiacSynchronizationSequence={"NominalCardiacTriggerDelayTime": 30.0 * k},
            MRImageFrameTypeSequence={"FrameType": ["ORIGINAL", "PRIMARY", "MP"[k], "NONE"]},
        )
        for k in range(2)
    ]
    headers = expanded(multi_frame(frames))
    assert [header.image_type[2] for header in headers] == ["M", "P"]
    for keyword, values in {
        "TemporalPositionIdentifier": [1, 2],
        "AcquisitionNumber": [4, 4],
        "EchoTime": [0, 2.5],
        "DiffusionBValue": [0, 800],
        "TriggerTime": [0, 30],
    }.items():
        assert [phase(header, keyword) for header in headers] == values


@pytest.mark.parametrize("pointers", [True, False])
def test_dimension_indices_tell_volumes_apart_where_time_does_not(pointers):
    frames = [
        item(
            FrameContentSequence={
                "DimensionIndexValues": [1, place, direction],
                "InStackPositionNumber": place,
                "TemporalPositionIndex": 1,
            }
        )
        for direction in (3, 5)
        for place in (1, 2)
    ]
    dataset = multi_frame(frames)
    if pointers:
        names = ("StackID", "InStackPositionNumber", "DiffusionGradientOrientation")
        dataset.DimensionIndexSequence = DicomSequence([Dataset() for _ in names])
        for entry, name in zip(dataset.DimensionIndexSequence, names, strict=True):
            entry.DimensionIndexPointer = tag_for_keyword(name)
    assert [phase(header, "TemporalPositionIdentifier") for header in expanded(dataset)] == [1, 1, 2, 2]


def test_without_groups_frames_differ_in_their_index_alone():
    dataset = series(3)[0]
    dataset.NumberOfFrames = 3
    base = header_from_dataset(dataset, Source("x"))
    headers = read_frames(dataset, base)
    assert headers == [replace(base, frame=k, instance_number=k + 1) for k in range(3)]


def test_groups_that_do_not_fit_and_giant_numbers_are_refused():
    dataset = multi_frame([item(), item()])
    dataset.NumberOfFrames = 3
    with pytest.raises(DicomError, match="F03: functional groups of 2 frames"):
        expanded(dataset)
    dataset.NumberOfFrames = 2_000_000_000
    with pytest.raises(DicomError, match="F06"):
        expanded(dataset)


def test_malformed_groups_are_absent():
    frame = item(PlanePositionSequence={"ImagePositionPatient": [1, 2]}, FrameContentSequence={})
    frame.PixelMeasuresSequence = DicomSequence()
    (header,) = expanded(multi_frame([frame]))
    assert (header.position, header.pixel_spacing, header.frame) == (None, None, 0)
