"""DICOM SEG objects: read by their frames' positions, and laid onto the grid of an image series.

Own reader, because archives hold objects that strict readers refuse (no ReferencedSeriesSequence,
FRACTIONAL with only 0 and the maximum). It trusts positions, never the order of frames.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lvmmed_monai.dicom.decoders import decode_frame
from lvmmed_monai.dicom.geometry import (
    ORIENTATION_LIMIT_DEG,
    PIXEL_SPACING_TOLERANCE,
    SliceGrid,
    is_orientation,
    orientation_spread_deg,
)
from lvmmed_monai.dicom.pixels import check_pixel_length
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom

__all__ = [
    "SEGMENTATION_SOP_CLASSES",
    "Segmentation",
    "SegmentationFrame",
    "read_segmentation",
]

SEGMENTATION_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""

_PLACED = "frames that lie on the slices of an image series"
_PLANAR = "as over a planar image"
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
        referenced_series, referenced_instances, referenced_classes: UIDs of series, instances and SOP classes that
            it names.
        threshold: smallest stored value that counts as inside.
        dataset: the parsed object; with pixels, if it was read with them; empty in a `summary`.
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
    referenced_classes: frozenset[str]
    threshold: int
    dataset: Dataset = field(repr=False, compare=False)

    def summary(self) -> Segmentation:
        """The same without the parsed object: small, and enough for everything but `masks`."""
        return replace(self, dataset=Dataset())

    def lies_on(self, grid: SliceGrid) -> bool:
        """Whether every frame lies on a slice of the grid, pixel on pixel (tolerances of `SliceGrid`)."""
        same = grid.same_plane(self.columns, self.rows, self.orientation, self.pixel_spacing)
        return same and all(grid.slice_index(frame.position) is not None for frame in self.frames)

    def masks(self, grid: SliceGrid) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """Lay the frames on the slices of the grid.

        Yields:
            SegmentNumber, slice index, pixels inside (columns, rows). Segments may overlap each other.

        Raises:
            DicomError: M02 a frame lies on no slice; F03 a segment is not described; F04 and others: bad pixels.
        """
        if not self.lies_on(grid):
            raise DicomError("M02", "frames that lie on no slice of the image series", "the planes of the image series")
        for frame, values in zip(self.frames, self.values(), strict=True):
            k = grid.slice_index(frame.position)
            numbers = np.flatnonzero(np.bincount(values.ravel())).tolist()
            if k is None or not self.segments.keys() >= set(numbers) - {0}:
                raise DicomError("F03", "pixels of a segment that is not described", "described segments only")
            for number in numbers:
                if number:
                    yield number, k, (values == number).T

    def values(self) -> Iterator[NDArray[np.integer]]:
        """Segment numbers of each frame, (rows, columns), 0 outside; in the order of ``frames``.

        Raises:
            DicomError: F04, F05 or F06: pixels are short, undecodable or too large.
        """
        with silent_pydicom():
            check_pixel_length(self.dataset)
        for index, frame in enumerate(self.frames):
            stored = _stored_frame(self.dataset, index)
            if self.kind == "LABELMAP":
                yield stored
            else:
                yield (stored >= self.threshold).astype(np.uint16) * np.uint16(frame.segment)


def _stored_frame(dataset: Dataset, index: int) -> NDArray[np.integer]:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    meta = getattr(dataset, "file_meta", None) or Dataset()
    # Without a stated syntax the file was read as a native one.
    encapsulated = "TransferSyntaxUID" in meta and meta.TransferSyntaxUID.is_encapsulated
    if int(dataset.BitsAllocated) == 1 and not encapsulated:
        # Frames follow each other bit by bit: one need not begin at a byte.
        first, count = index * rows * columns, rows * columns
        start, stop = first // 8, (first + count + 7) // 8
        packed = np.frombuffer(dataset.PixelData[start:stop], dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[first - 8 * start :]
        return bits[:count].reshape(rows, columns)
    frames = int(dataset.get("NumberOfFrames") or 1)
    stored, _ = decode_frame(dataset, index if frames > 1 else None)
    return stored.reshape(rows, columns)


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
        raise DicomError("G04", f"a frame without a position, {_PLANAR}", _PLACED)
    if number is None and not labelmap:
        raise DicomError("F03", "a frame without its segment number", "a whole segmentation object")
    x, y, z = (float(value) for value in position)
    return SegmentationFrame(0 if labelmap else int(number), (x, y, z))


def _uids(items: Sequence[Dataset], name: str) -> frozenset[str]:
    return frozenset({str(item.get(name, "")) for item in items} - {""})


def _sources(groups: _Groups) -> list[Dataset]:
    """What the frames were derived from."""
    return [
        source
        for item in [groups.shared, *groups.frames]
        for derivation in item.get("DerivationImageSequence") or []
        for source in derivation.get("SourceImageSequence") or []
    ]


def _plane(groups: _Groups, count: int) -> tuple[tuple[float, ...], tuple[float, float]]:
    """Orientation and pixel spacing (between rows, between columns; mm), which all frames must share."""
    frames = range(count)
    orientations = [groups.value(index, "PlaneOrientationSequence", "ImageOrientationPatient") for index in frames]
    spacings = [groups.value(index, "PixelMeasuresSequence", "PixelSpacing") for index in frames]
    lacking = sum(not is_orientation(o or ()) or s is None for o, s in zip(orientations, spacings, strict=True))
    if lacking:
        raise DicomError("G04", f"{lacking} of {count} frames without orientation or pixel spacing, {_PLANAR}", _PLACED)
    axes, sizes = np.array(orientations, dtype=float), np.array(spacings, dtype=float)
    spread, difference = orientation_spread_deg(axes), float(np.abs(sizes / sizes[0] - 1).max())
    if spread > ORIENTATION_LIMIT_DEG or not difference <= PIXEL_SPACING_TOLERANCE:
        raise DicomError("M02", f"frames turned by up to {spread:.1f} degrees or of several pixel spacings", _PLACED)
    return tuple(axes[0].tolist()), (float(sizes[0, 0]), float(sizes[0, 1]))


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
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise DicomError("F03", "an unknown segmentation type", "BINARY, FRACTIONAL or LABELMAP")
    if int(dataset.BitsAllocated) not in (1, 8, 16) or int(dataset.get("PixelRepresentation") or 0):
        raise DicomError("F03", "pixels of an unusual type", "1, 8 or 16 bits without sign")
    if count > max(len(groups.frames), 1):
        raise DicomError("F03", f"{len(groups.frames)} of {count} frames described", "a description of each frame")
    orientation, pixel_spacing = _plane(groups, count)
    sources = _sources(groups)
    maximum = int(dataset.get("MaximumFractionalValue") or 255)
    return Segmentation(
        kind=kind,
        segments=_segments(dataset),
        vocabulary=_vocabulary(dataset),
        frames=tuple(_frame(groups, index, kind == "LABELMAP") for index in range(count)),
        columns=int(dataset.Columns),
        rows=int(dataset.Rows),
        orientation=orientation,
        pixel_spacing=pixel_spacing,
        frame_of_reference=str(dataset.get("FrameOfReferenceUID", "")),
        referenced_series=_uids(dataset.get("ReferencedSeriesSequence") or [], "SeriesInstanceUID"),
        referenced_instances=_uids(sources, "ReferencedSOPInstanceUID"),
        referenced_classes=_uids(sources, "ReferencedSOPClassUID"),
        threshold=(maximum + 1) // 2 if kind == "FRACTIONAL" else 1,
        dataset=dataset,
    )


def read_segmentation(dataset: Dataset) -> Segmentation:
    """Read a segmentation object: BINARY, FRACTIONAL (inside from half of the maximum on) or LABELMAP.

    Args:
        dataset: of SOP class Segmentation or Label Map Segmentation; pixels may be absent, then `values` fails.

    Raises:
        DicomError: F03 it is broken; G04 its frames have no place in space, as over a radiograph or a slide; M02 they
            are not parallel.
    """
    try:
        with silent_pydicom():
            return _parse(dataset)
    except DicomError:
        raise
    except Exception as error:
        # Whatever a broken object makes the parser raise, it costs this object and not the run.
        raise DicomError("F03", f"parsing ended with {type(error).__name__}", "a whole segmentation object") from None
