"""The world-coordinate oracle: whether a volume holds, at each place in the patient, what the slices hold there.

Pixels are taken to millimetres from each slice's own header, by the few lines below alone (PS3.3 C.7.6.2.1.1), and
looked up in a volume through its affine. Nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from scipy import ndimage

POINTS = 400
"""Random points in each slice."""
SHARE = 0.999
"""Of these at least so many must hold the value of the slice."""
_NEAR = 0.35  # how far from the centre of a pixel, in pixels, a point may lie: nearest voxel and pixel stay the same
_SAMPLES = 40_000
_RIM = 2  # pixels at the border, where interpolation mixes a slice with what lies around it
_COVERED = 0.5  # less of a slice inside a volume says nothing about a shift

Volume = tuple[np.ndarray, np.ndarray]
"""Array (columns, rows, slices) and affine (4, 4) to RAS in mm."""


@dataclass(frozen=True)
class Plane:
    """One slice where its own header places it.

    Attributes:
        values: (rows, columns) real values (stored x slope + intercept).
        origin: (3,) centre of the first pixel, mm (LPS).
        across, down: (3,) steps in mm to the next column and to the next row.
    """

    values: np.ndarray
    origin: np.ndarray
    across: np.ndarray
    down: np.ndarray

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector."""
        cross = np.cross(self.across, self.down)
        return cross / np.linalg.norm(cross)

    @property
    def pixel_mm(self) -> float:
        """The smaller distance between pixels."""
        return float(min(np.linalg.norm(self.across), np.linalg.norm(self.down)))

    def place(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(n, 3) mm (LPS) of pixels, fractions included."""
        return self.origin + np.outer(columns, self.across) + np.outer(rows, self.down)


def _plane(values: np.ndarray, position: Any, orientation: Any, spacing: Any, slope: Any, intercept: Any) -> Plane:
    axes = np.array(orientation, dtype=float).reshape(2, 3)
    between_rows, between_columns = (float(value) for value in spacing)
    real = values.astype(float) * float(slope) + float(intercept)
    return Plane(real, np.array(position, dtype=float), axes[0] * between_columns, axes[1] * between_rows)


def planes_of(dataset: Dataset) -> list[Plane]:
    """The slices of one object, frames in the order in which they are stored."""
    pixels = dataset.pixel_array
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
        place = dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
        return [_plane(pixels, *place, slope, intercept)]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    planes = []
    for values, frame in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):

        def of(group: str, keyword: str, default: Any = None, frame: Dataset = frame) -> Any:
            items = frame.get(group) or shared.get(group)
            return items[0].get(keyword, default) if items else default

        planes.append(
            _plane(
                values,
                of("PlanePositionSequence", "ImagePositionPatient"),
                of("PlaneOrientationSequence", "ImageOrientationPatient"),
                of("PixelMeasuresSequence", "PixelSpacing"),
                of("PixelValueTransformationSequence", "RescaleSlope", 1),
                of("PixelValueTransformationSequence", "RescaleIntercept", 0),
            )
        )
    return planes


def planes(datasets: Iterable[Dataset]) -> list[Plane]:
    """The slices of several objects."""
    return [plane for dataset in datasets for plane in planes_of(dataset)]


def _indices(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n, 3) voxel indices, fractions included, of points (n, 3) in mm (LPS)."""
    ras = points * (-1.0, -1.0, 1.0)
    return (ras - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T


@dataclass(frozen=True)
class Agreement:
    """How a volume agrees with slices.

    Attributes:
        share: of all random points, those where the nearest voxel holds the value of the slice within the tolerance.
        worst_share: the same of the worst slice.
        in_plane_mm: largest distance, within the plane, between the centres of a pixel and of the voxel nearest to it.
        through_mm: the same across the plane.
    """

    share: float
    worst_share: float
    in_plane_mm: float
    through_mm: float


def look_up(volume: Volume, slices: Sequence[Plane], *, tolerance: float | None = None, seed: int = 0) -> Agreement:
    """Look `POINTS` random points of each slice up in a volume, nearest voxel.

    Args:
        volume: see `Volume`.
        slices: what the volume should hold.
        tolerance: in units of the values; None for 1 (HU), or less where all values span less than 1000.
        seed: of the points.
    """
    array, affine = volume
    if tolerance is None:
        span = max(plane.values.max() for plane in slices) - min(plane.values.min() for plane in slices)
        tolerance = min(1.0, 0.001 * float(span))
    rng = np.random.default_rng(seed)
    shares, in_plane, through = [], [0.0], [0.0]
    for plane in slices:
        rows = rng.integers(0, plane.values.shape[0], POINTS)
        columns = rng.integers(0, plane.values.shape[1], POINTS)
        near = rng.uniform(-_NEAR, _NEAR, (2, POINTS))
        index = np.rint(_indices(affine, plane.place(rows + near[0], columns + near[1]))).astype(int)
        inside = np.all((index >= 0) & (index < array.shape), axis=1)
        found = array[tuple(index[inside].T)].astype(float)
        shares.append(np.count_nonzero(np.abs(found - plane.values[rows, columns][inside]) <= tolerance) / POINTS)
        exact = _indices(affine, plane.place(rows, columns))
        offset = (exact - np.rint(exact)) @ affine[:3, :3].T * (-1.0, -1.0, 1.0)
        across = offset @ plane.normal
        through.append(float(np.abs(across).max()))
        in_plane.append(float(np.linalg.norm(offset - np.outer(across, plane.normal), axis=1).max()))
    return Agreement(float(np.mean(shares)), min(shares), max(in_plane), max(through))


@dataclass(frozen=True)
class Displacement:
    """How far a resampled volume lies from its slices.

    Attributes:
        shift_mm: largest shift within a plane that explains the differences to a slice best.
        correlation: the smallest of any slice with the volume, 1 where equal.
        inside: share of the slices' pixels that the volume covers.
    """

    shift_mm: float
    correlation: float
    inside: float


def displacement(volume: Volume, slices: Sequence[Plane]) -> Displacement:
    """Sample a volume at the pixels of each slice, trilinearly, and fit the shift that is left (least squares).

    The border is left out.
    """
    array, affine = volume
    shifts, correlations, covered = [], [], []
    for plane in slices:
        stride = max(1, int(np.sqrt(plane.values.size / _SAMPLES)))
        inner = tuple(slice(_RIM, size - _RIM, stride) for size in plane.values.shape)
        rows, columns = (axis.ravel() for axis in np.mgrid[inner])
        index = _indices(affine, plane.place(rows, columns))
        inside = np.all((index > -0.02) & (index < np.array(array.shape) - 0.98), axis=1)
        covered.append(float(inside.mean()))
        if inside.mean() < _COVERED:
            return Displacement(np.inf, 0.0, covered[-1])
        rows, columns = rows[inside], columns[inside]
        values = plane.values[rows, columns]
        sampled = ndimage.map_coordinates(array.astype(np.float32), index[inside].T, order=1, mode="nearest")
        down, across = np.gradient(plane.values)
        # Interpolation smooths, that is, adds some of the second derivatives: they are fitted beside the shift.
        terms = (down, across, np.gradient(down, axis=0), np.gradient(across, axis=1))
        fitted = np.stack([term[rows, columns] for term in terms], axis=1)
        pixels = np.linalg.lstsq(fitted, sampled - values, rcond=None)[0]
        shifts.append(float(np.linalg.norm(pixels[0] * plane.down + pixels[1] * plane.across)))
        correlations.append(float(np.corrcoef(sampled, values)[0, 1]))
    return Displacement(max(shifts), min(correlations), min(covered))


def is_right(volume: Volume, slices: Sequence[Plane], *, resampled: bool = False) -> bool:
    """Whether a volume holds these slices, all of them and nothing else, at their places.

    Args:
        volume: see `Volume`.
        slices: what it should hold.
        resampled: values may be interpolated; then every slice must be within 0.1 mm of its place.
    """
    array, affine = volume
    if array.ndim != 3 or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return False
    found = look_up(volume, slices)
    step = abs(float(affine[:3, 2] * (-1.0, -1.0, 1.0) @ slices[0].normal))
    placed = found.in_plane_mm < 0.1 * slices[0].pixel_mm and found.through_mm < 0.1 * step
    if array.shape[2] == len(slices) and found.share > SHARE and placed:
        return True
    if not resampled:
        return False
    moved = displacement(volume, slices)
    return moved.shift_mm < 0.1 and moved.correlation > 0.95 and moved.inside > 0.95


def same_volumes(found: Sequence[Volume], wanted: Sequence[Sequence[Plane]], *, resampled: bool = False) -> bool:
    """Whether the volumes found are those wanted, each once. A lone slice that nobody asked for is no volume."""
    left = [volume for volume in found if volume[0].ndim != 3 or volume[0].shape[2] > 1]
    for slices in wanted:
        fits = [number for number, volume in enumerate(left) if is_right(volume, slices, resampled=resampled)]
        if not fits:
            return False
        left.pop(fits[0])
    return not left
