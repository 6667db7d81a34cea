"""RTSTRUCT objects: contours in millimetres, filled on the grid of an image series.

Contours go where their points lie; which images they name has no say, since these are often not there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lvmmed_monai.dicom.geometry import SAME_POSITION_MM, Array, SliceGrid, plane_axes, projections
from lvmmed_monai.dicom.polygons import fill_polygon
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom

__all__ = [
    "OFF_GRID_LIMIT",
    "RTSTRUCT_SOP_CLASS",
    "SAME_PLANE_STEPS",
    "Placement",
    "StructureSet",
    "read_structure_set",
]

RTSTRUCT_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
OFF_GRID_LIMIT = 0.05
"""A structure set lies on a grid if no larger share of its contours lies off it."""
SAME_PLANE_STEPS = 0.1
"""Contours of a structure closer than this, in steps between slices, lie in one plane."""

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_CODED_TERMS = ("RTROIIdentificationCodeSequence", "AnatomicRegionSequence")
_WHOLE = "a whole structure set"


@dataclass(frozen=True)
class Placement:
    """Where the closed contours of a structure set lie on a grid; all arrays are (contours,).

    Attributes:
        slices: index of the nearest slice.
        distances_mm: largest distance of a contour's points from that slice.
        inside: no point is further than half a step from the slice, and a part lies within its rectangle.
        drawn: inside, and no other plane of the same structure is nearer to that slice.
    """

    slices: NDArray[np.intp]
    distances_mm: Array
    inside: NDArray[np.bool_]
    drawn: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class StructureSet:
    """A structure set. Only closed contours count, but for ``open_contours``.

    Attributes:
        segments: name of each ROINumber that has a contour.
        vocabulary: words, in lower case, of the coded terms of the structures.
        frame_of_reference: UID, "" where absent.
        referenced_series, referenced_instances, referenced_classes: UIDs of series, instances and SOP classes that
            it names.
        owners: (contours,) ROINumber of each contour.
        anchors: (contours, 6, 3) mm (LPS), the outermost points of each contour along x, y and z.
        open_contours: number of open contours and single points.
        contours: (points, 3) mm (LPS) of each contour; none in a `summary`.
    """

    segments: Mapping[int, str]
    vocabulary: frozenset[str]
    frame_of_reference: str
    referenced_series: frozenset[str]
    referenced_instances: frozenset[str]
    referenced_classes: frozenset[str]
    owners: NDArray[np.int64]
    anchors: Array
    open_contours: int
    contours: tuple[Array, ...] = field(repr=False, compare=False)

    def summary(self) -> StructureSet:
        """The same without the points: small, and enough for everything but `masks`."""
        return replace(self, contours=())

    def place(self, grid: SliceGrid) -> Placement:
        """Find the slice of each contour. It is judged by its anchors."""
        row, column, normal = plane_axes(grid.orientation)
        along = projections(grid.positions, normal)
        if along[0] > along[-1]:
            normal, along = -normal, -along
        step = (along[-1] - along[0]) / (len(along) - 1)
        depths = self.anchors @ normal
        middle = (depths.min(axis=1) + depths.max(axis=1)) / 2
        slices = np.searchsorted((along[1:] + along[:-1]) / 2, middle)
        distances = np.abs(depths - along[slices, None]).max(axis=1)
        inside = distances <= step / 2 + SAME_POSITION_MM
        offsets = self.anchors - grid.positions[slices, None]
        between_rows, between_columns = grid.pixel_spacing
        for axis, size in ((row / between_columns, grid.columns), (column / between_rows, grid.rows)):
            pixels = offsets @ axis
            inside &= (pixels.max(axis=1) >= -0.5) & (pixels.min(axis=1) <= size - 0.5)
        drawn = inside & self._nearest(slices, middle - along[slices], inside, SAME_PLANE_STEPS * step)
        return Placement(slices, distances, inside, drawn)

    def _nearest(
        self, slices: NDArray[np.intp], offsets: Array, inside: NDArray[np.bool_], tolerance: float
    ) -> NDArray[np.bool_]:
        """Contours in that plane of their structure which is nearest to the slice.

        Where contours are denser than slices, those of two planes must not cancel each other.
        """
        nearest = np.zeros(len(slices), dtype=bool)
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in np.flatnonzero(inside).tolist():
            groups[int(self.owners[index]), int(slices[index])].append(index)
        for members in groups.values():
            plane = min((float(offsets[index]) for index in members), key=abs)
            nearest[members] = np.abs(offsets[members] - plane) <= tolerance
        return nearest

    def lies_on(self, grid: SliceGrid) -> bool:
        """Whether the contours lie on the slices of the grid, but for a share of `OFF_GRID_LIMIT`."""
        return int(np.count_nonzero(~self.place(grid).inside)) <= OFF_GRID_LIMIT * len(self.owners)

    def masks(self, grid: SliceGrid) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """Fill the contours, each on its slice, in the pixel coordinates of that slice.

        Contours of one structure on one slice are joined by exclusive or: one inside another is a hole. On what
        lies exactly on a contour see `fill_polygon`.

        Yields:
            ROINumber, slice index, pixels inside (columns, rows). Contours that are not ``drawn`` stay out.
        """
        if len(self.contours) != len(self.owners):
            raise ValueError("masks: the contours were left out; read the structure set again")
        row, column, _ = plane_axes(grid.orientation)
        to_pixels = np.stack([row / grid.pixel_spacing[1], column / grid.pixel_spacing[0]], axis=1)
        placed = self.place(grid)
        planes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in np.flatnonzero(placed.drawn).tolist():
            planes[int(self.owners[index]), int(placed.slices[index])].append(index)
        for (number, k), members in planes.items():
            mask = np.zeros((grid.columns, grid.rows), dtype=bool, order="F")
            for index in members:
                points = (self.contours[index] - grid.positions[k]) @ to_pixels
                mask ^= fill_polygon(points, grid.columns, grid.rows)
            yield number, k, mask


def _points(contour: Dataset) -> Array:
    """(n, 3) mm. The raw text is read: pydicom's numbers, made one by one, take most of the time."""
    element = contour.get_item("ContourData")
    value: Any = None if element is None else element.value
    if isinstance(value, bytes):
        value = value.strip(b"\0 ").split(b"\\") if value.strip(b"\0 ") else None
    points = np.array([] if value is None else value, dtype=float).reshape(-1, 3)
    if not np.isfinite(points).all():
        raise DicomError("F03", "a contour with points that are no numbers", _WHOLE)
    return points


def _anchors(points: Array) -> Array:
    return points[np.concatenate([points.argmin(axis=0), points.argmax(axis=0)])]


def _items(dataset: Dataset, *names: str) -> Iterator[Dataset]:
    """Items of nested sequences, from the outermost one."""
    for item in dataset.get(names[0]) or []:
        if len(names) == 1:
            yield item
        else:
            yield from _items(item, *names[1:])


def _uids(items: Sequence[Dataset], name: str) -> frozenset[str]:
    return frozenset({str(item.get(name, "")) for item in items} - {""})


def _frame_of_reference(dataset: Dataset, owners: set[int]) -> str:
    """The one of the structures that have contours, else of the images that are named.

    Raises:
        DicomError: M01: structures in several spaces.
    """
    structures = [item for item in _items(dataset, "StructureSetROISequence") if int(item.ROINumber) in owners]
    found = _uids(structures, "ReferencedFrameOfReferenceUID")
    found = found or _uids(list(_items(dataset, "ReferencedFrameOfReferenceSequence")), "FrameOfReferenceUID")
    if len(found) > 1:
        raise DicomError("M01", f"structures in {len(found)} frames of reference", "a single one")
    return next(iter(found), str(dataset.get("FrameOfReferenceUID", "")))


def _vocabulary(dataset: Dataset) -> frozenset[str]:
    codes = [code for name in _CODED_TERMS for code in _items(dataset, "RTROIObservationsSequence", name)]
    return frozenset(re.findall(r"[a-z0-9]+", " ".join(str(code.get("CodeMeaning", "")) for code in codes).lower()))


def _parse(dataset: Dataset) -> StructureSet:
    owners: list[int] = []
    contours: list[Array] = []
    named: list[Dataset] = []
    total = 0
    for structure in _items(dataset, "ROIContourSequence"):
        for contour in _items(structure, "ContourSequence"):
            total += 1
            points = _points(contour)
            if str(contour.get("ContourGeometricType", "")).strip() in _CLOSED and len(points) >= 3:
                owners.append(int(structure.ReferencedROINumber))
                contours.append(points)
                named += _items(contour, "ContourImageSequence")
    if not contours:
        raise DicomError("M04", f"no closed contour among {total}", "closed planar contours")
    series = list(
        _items(dataset, "ReferencedFrameOfReferenceSequence", "RTReferencedStudySequence", "RTReferencedSeriesSequence")
    )
    # What contours name is more exact than the list of all images that lay before the one who drew.
    named = named or [image for item in series for image in _items(item, "ContourImageSequence")]
    names = {int(s.ROINumber): str(s.get("ROIName", "")).strip() for s in _items(dataset, "StructureSetROISequence")}
    return StructureSet(
        segments={number: names.get(number, "") for number in sorted(set(owners))},
        vocabulary=_vocabulary(dataset),
        frame_of_reference=_frame_of_reference(dataset, set(owners)),
        referenced_series=_uids(series, "SeriesInstanceUID"),
        referenced_instances=_uids(named, "ReferencedSOPInstanceUID"),
        referenced_classes=_uids(named, "ReferencedSOPClassUID"),
        owners=np.array(owners, dtype=np.int64),
        anchors=np.stack([_anchors(points) for points in contours]),
        open_contours=total - len(contours),
        contours=tuple(contours),
    )


def read_structure_set(dataset: Dataset) -> StructureSet:
    """Read a structure set: its closed planar contours, in millimetres of the patient system (LPS).

    Args:
        dataset: of SOP class RT Structure Set.

    Raises:
        DicomError: F03 it is broken; M01 it speaks of several frames of reference; M04 it has no closed contour.
    """
    try:
        with silent_pydicom():
            return _parse(dataset)
    except DicomError:
        raise
    except Exception as error:
        # Whatever a broken object makes the parser raise, it costs this object and not the run.
        raise DicomError("F03", f"parsing ended with {type(error).__name__}", _WHOLE) from None
