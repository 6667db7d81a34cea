"""DICOM SEG objects: read by their frames' positions, and put onto the grid of an image series.

Own reader, because archives hold objects that strict readers refuse (no ReferencedSeriesSequence,
FRACTIONAL with only 0 and the maximum). It trusts positions, never the order of frames.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array

from lvmmed_monai.dicom.geometry import SliceGrid, is_orientation
from lvmmed_monai.dicom.pixels import check_pixel_length
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom

__all__ = [
    "SEGMENTATION_SOP_CLASSES",
    "Segmentation",
    "SegmentationFrame",
    "add_to_label_map",
    "on_grid",
    "read_segmentation",
]

SEGMENTATION_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""

_CODED_TERMS = ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyCategoryCodeSequence", "AnatomicRegionSequence")


@dataclass(frozen=True)
class SegmentationFrame:
    """One frame.

    Attributes:
        segment: SegmentNumber; 0 in a label map, whose pixels hold the numbers.
        position: (3,) mm (LPS), centre of its first pixel.
    """

    segment: int
    position: tuple[float, float, float]


@dataclass(frozen=True)
class Segmentation:
    """A segmentation object.

    Attributes:
        kind: "BINARY", "FRACTIONAL" or "LABELMAP".
        segments: label text of each SegmentNumber (the background of a label map left out).
        vocabulary: words, in lower case, of the coded terms (property, region) of the segments.
        frames: in the order of the file.
        columns, rows: size of a frame.
        orientation: six direction cosines (LPS).
        pixel_spacing: (between rows, between columns) in mm.
        frame_of_reference: UID, "" where absent.
        referenced_series: SeriesInstanceUIDs that it names.
        referenced_instances: SOPInstanceUIDs that it names.
        threshold: smallest stored value that counts as inside.
        dataset: the parsed object; with pixels, if it was read with them.
    """

    kind: str
    segments: Mapping[int, str]
    vocabulary: frozenset[str]
    frames: tuple[SegmentationFrame, ...]
    columns: int
    rows: int
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, float]
    frame_of_reference: str
    referenced_series: frozenset[str]
    referenced_instances: frozenset[str]
    threshold: int
    dataset: Dataset = field(repr=False, compare=False)

    def values(self) -> Iterator[NDArray[np.integer]]:
        """Segment numbers of each frame, (rows, columns), 0 outside; in the order of ``frames``.

        Raises:
            DicomError: F04, F05 or F06: pixels are short, undecodable or too large.
        """
        check_pixel_length(self.dataset)
        for index, frame in enumerate(self.frames):
            stored = _stored_frame(self.dataset, index)
            if self.kind == "LABELMAP":
                yield stored
            else:
                yield (stored >= self.threshold).astype(np.uint16) * np.uint16(frame.segment)


def _stored_frame(dataset: Dataset, index: int) -> NDArray[np.integer]:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if int(dataset.BitsAllocated) == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        # Frames follow each other bit by bit: one need not begin at a byte.
        first, count = index * rows * columns, rows * columns
        start, stop = first // 8, (first + count + 7) // 8
        packed = np.frombuffer(dataset.PixelData[start:stop], dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[first - 8 * start :]
        return bits[:count].reshape(rows, columns)
    try:
        with silent_pydicom():
            stored = pixel_array(dataset, index=index)
    except Exception as error:
        # As for images: what a decoder raises on broken data costs this object and not the run.
        raise DicomError("F04", f"decoding ended with {type(error).__name__}", "whole pixel data") from None
    return np.asarray(stored).reshape(rows, columns)


def _item(dataset: Dataset, name: str) -> Dataset | None:
    sequence = dataset.get(name)
    return sequence[0] if sequence else None


class _Groups:
    """Functional groups: what stands with a frame, else what all frames share."""

    def __init__(self, dataset: Dataset) -> None:
        self.shared = _item(dataset, "SharedFunctionalGroupsSequence") or Dataset()
        self.frames = dataset.get("PerFrameFunctionalGroupsSequence") or []

    def find(self, index: int, group: str) -> Dataset | None:
        own = self.frames[index] if index < len(self.frames) else Dataset()
        return _item(own, group) or _item(self.shared, group)

    def value(self, index: int, group: str, name: str) -> Any:
        item = self.find(index, group)
        return None if item is None else item.get(name)


def _frame(groups: _Groups, index: int, labelmap: bool) -> SegmentationFrame:
    position = groups.value(index, "PlanePositionSequence", "ImagePositionPatient")
    number = groups.value(index, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
    if position is None or len(position) != 3:
        raise DicomError("M02", "a frame without a position", "frames that lie on the slices of an image series")
    if number is None and not labelmap:
        raise DicomError("F03", "a frame without its segment number", "a whole segmentation object")
    x, y, z = (float(value) for value in position)
    return SegmentationFrame(0 if labelmap else int(number), (x, y, z))


def _references(dataset: Dataset, groups: _Groups) -> tuple[frozenset[str], frozenset[str]]:
    series = {str(item.get("SeriesInstanceUID", "")) for item in dataset.get("ReferencedSeriesSequence") or []}
    instances: set[str] = set()
    for item in [groups.shared, *groups.frames]:
        for derivation in item.get("DerivationImageSequence") or []:
            for source in derivation.get("SourceImageSequence") or []:
                instances.add(str(source.get("ReferencedSOPInstanceUID", "")))
    return frozenset(series - {""}), frozenset(instances - {""})


def _segments(dataset: Dataset) -> dict[int, str]:
    return {
        int(item.SegmentNumber): str(item.get("SegmentLabel", "")).strip()
        for item in dataset.get("SegmentSequence") or []
        if int(item.SegmentNumber) != 0
    }


def _vocabulary(dataset: Dataset) -> frozenset[str]:
    meanings = [
        str(code.get("CodeMeaning", ""))
        for item in dataset.get("SegmentSequence") or []
        for name in _CODED_TERMS
        for code in item.get(name) or []
    ]
    return frozenset(re.findall(r"[a-z0-9]+", " ".join(meanings).lower()))


def _parse(dataset: Dataset) -> Segmentation:
    groups = _Groups(dataset)
    kind = str(dataset.get("SegmentationType", "")).upper()
    count = int(dataset.get("NumberOfFrames") or 1)
    orientation = groups.value(0, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = groups.value(0, "PixelMeasuresSequence", "PixelSpacing")
    if orientation is None or not is_orientation(orientation) or spacing is None:
        raise DicomError("M02", "no orientation or pixel spacing", "frames that lie on the slices of an image series")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise DicomError("F03", "an unknown segmentation type", "BINARY, FRACTIONAL or LABELMAP")
    series, instances = _references(dataset, groups)
    maximum = int(dataset.get("MaximumFractionalValue") or 255)
    return Segmentation(
        kind=kind,
        segments=_segments(dataset),
        vocabulary=_vocabulary(dataset),
        frames=tuple(_frame(groups, index, kind == "LABELMAP") for index in range(count)),
        columns=int(dataset.Columns),
        rows=int(dataset.Rows),
        orientation=tuple(float(value) for value in orientation),
        pixel_spacing=(float(spacing[0]), float(spacing[1])),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID", "")),
        referenced_series=series,
        referenced_instances=instances,
        threshold=(maximum + 1) // 2 if kind == "FRACTIONAL" else 1,
        dataset=dataset,
    )


def read_segmentation(dataset: Dataset) -> Segmentation:
    """Read a segmentation object: BINARY, FRACTIONAL (inside from half of the maximum on) or LABELMAP.

    Args:
        dataset: of SOP class Segmentation or Label Map Segmentation; pixels may be absent, then `values` fails.

    Raises:
        DicomError: F03 it is broken; M02 its frames have no place in space.
    """
    try:
        with silent_pydicom():
            return _parse(dataset)
    except (AttributeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise DicomError("F03", f"parsing ended with {type(error).__name__}", "a whole segmentation object") from None


def on_grid(segmentation: Segmentation, grid: SliceGrid) -> bool:
    """Whether every frame lies on a slice of the grid, pixel on pixel (tolerances of `SliceGrid`)."""
    seg = segmentation
    same = grid.same_plane(seg.columns, seg.rows, seg.orientation, seg.pixel_spacing)
    return same and all(grid.slice_index(frame.position) is not None for frame in segmentation.frames)


def add_to_label_map(
    labels: NDArray[np.uint8], segmentation: Segmentation, grid: SliceGrid, indices: Mapping[int, int]
) -> None:
    """Draw segments into a label map.

    Args:
        labels: (columns, rows, slices) uint8 on the grid, changed in place.
        segmentation: read with its pixels.
        grid: of the image series.
        indices: label index of each SegmentNumber; segments that are not named stay out.

    Raises:
        DicomError: M02 a frame lies on no slice; M05 two labels claim a voxel; F04 and others: bad pixels.
            ``labels`` is then partly drawn and of no use.
    """
    if not on_grid(segmentation, grid):
        raise DicomError("M02", "frames that lie on no slice of the image series", "the planes of the image series")
    table = np.zeros(max([*segmentation.segments, *indices, 0]) + 1, dtype=np.uint8)
    for number, index in indices.items():
        table[number] = index
    overlap = 0
    for frame, values in zip(segmentation.frames, segmentation.values(), strict=True):
        if values.max(initial=0) >= len(table):
            raise DicomError("F03", "a pixel or frame of a segment that is not described", "described segments only")
        drawn = table[values].T
        plane = labels[:, :, grid.slice_index(frame.position)]
        overlap += int(np.count_nonzero((plane != 0) & (drawn != 0) & (plane != drawn)))
        np.copyto(plane, drawn, where=drawn != 0)
    if overlap:
        raise DicomError("M05", f"{overlap} voxels with more than one label", "segments that do not overlap")
