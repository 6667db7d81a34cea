"""Geometry of a stack of slices, in numpy alone.

Positions, directions and spacings are those of DICOM: millimetres in the patient system LPS (x to the
Left, y to the back, z to the head). Affines that leave this module map voxel indices (column, row, slice)
to RAS, the system of NIfTI. Rules and their numbers were measured on damaged and on good series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DRIFT_TOLERANCE",
    "GAP_TOLERANCE",
    "LARGEST_TILT_DEG",
    "ORIENTATION_LIMIT_DEG",
    "PIXEL_SPACING_TOLERANCE",
    "SAME_POSITION_MM",
    "STEP_TOLERANCE_MM",
    "STEP_TOLERANCE_RELATIVE",
    "STRICT_STEP_TOLERANCE_MM",
    "STRICT_STEP_TOLERANCE_RELATIVE",
    "TILT_LIMIT_DEG",
    "SliceGrid",
    "StepReport",
    "analyse_steps",
    "is_orientation",
    "line_deviation",
    "orientation_spread_deg",
    "plane_axes",
    "position_groups",
    "projections",
    "slice_order",
    "step_tolerance_mm",
    "tilt_deg",
    "volume_affine",
]

Array = NDArray[np.float64]

STEP_TOLERANCE_MM = 0.1
"""A step may differ from the median step by this much, or by the relative tolerance, whichever is larger."""
STEP_TOLERANCE_RELATIVE = 0.05
STRICT_STEP_TOLERANCE_MM = 0.05
"""Beyond this (or its relative twin) a regular series is accepted with a warning: the positions jitter."""
STRICT_STEP_TOLERANCE_RELATIVE = 0.02
DRIFT_TOLERANCE = 0.1
"""Largest distance of a slice from the straight, even line through all positions, in steps: small errors add up."""
GAP_TOLERANCE = 0.1
"""A step this close (in steps) to a whole multiple of the smallest one is a gap; anything else is irregular."""
TILT_LIMIT_DEG = 0.3
"""Above this angle between the direction of stacking and the normal, a volume is sheared."""
LARGEST_TILT_DEG = 45.0
"""No gantry tilts as far as this: a larger angle is a mistake in the positions."""
ORIENTATION_LIMIT_DEG = 0.3
"""Slices whose axes differ by more do not belong to one volume."""
PIXEL_SPACING_TOLERANCE = 1e-3
"""Relative; writers round differently."""
SAME_POSITION_MM = 0.01
"""Closer slices lie at one position. Writers differ in the last printed digits."""
_UNIT_TOLERANCE = 1e-2


def is_orientation(orientation: ArrayLike) -> bool:
    """Whether six numbers are two perpendicular unit vectors (direction cosines of rows and columns)."""
    axes = np.asarray(orientation, dtype=float)
    if axes.shape != (6,) or not np.isfinite(axes).all():
        return False
    lengths = np.linalg.norm(axes.reshape(2, 3), axis=1)
    return bool(np.all(np.abs(lengths - 1) < _UNIT_TOLERANCE) and abs(axes[:3] @ axes[3:]) < _UNIT_TOLERANCE)


def plane_axes(orientation: ArrayLike) -> tuple[Array, Array, Array]:
    """Unit vectors (LPS) along a row, along a column, and along the normal (their cross product).

    Args:
        orientation: (6,) ImageOrientationPatient: the direction in which the column index grows, then the
            one in which the row index grows.

    Raises:
        ValueError: they are not two perpendicular unit vectors.
    """
    axes = np.asarray(orientation, dtype=float)
    if not is_orientation(axes):
        raise ValueError(f"orientation must be two perpendicular unit vectors, got {axes.tolist()}")
    row, column = axes[:3] / np.linalg.norm(axes[:3]), axes[3:] / np.linalg.norm(axes[3:])
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def projections(positions: ArrayLike, normal: ArrayLike) -> Array:
    """Distance of each slice along the normal: (n, 3) mm onto (3,) gives (n,) mm."""
    return np.asarray(positions, dtype=float) @ np.asarray(normal, dtype=float)


def slice_order(positions: ArrayLike, normal: ArrayLike) -> NDArray[np.intp]:
    """Indices (n,) that sort slices by their projection on the normal. File names and numbers have no say."""
    return np.argsort(projections(positions, normal), kind="stable")


def orientation_spread_deg(orientations: ArrayLike) -> float:
    """Largest angle, in degrees, between the axes of any slice and those of the first; (n, 6) in."""
    axes = np.asarray(orientations, dtype=float).reshape(-1, 2, 3)
    first = axes[:1]
    sine = np.linalg.norm(np.cross(np.broadcast_to(first, axes.shape), axes), axis=-1)
    cosine = np.sum(first * axes, axis=-1)
    # From sine and cosine: the arc cosine of numbers near 1 has no digits left.
    return float(np.degrees(np.arctan2(sine, cosine)).max(initial=0.0))


def position_groups(positions: ArrayLike, normal: ArrayLike, tolerance_mm: float = SAME_POSITION_MM) -> list[list[int]]:
    """Indices of slices that lie at one position, in the order of the projection on the normal.

    Args:
        positions: (n, 3) mm.
        normal: (3,) unit vector.
        tolerance_mm: two slices closer than this, in space, lie at one position.
    """
    points = np.asarray(positions, dtype=float)
    along = projections(points, normal)
    groups: list[list[int]] = []
    for index in slice_order(points, normal).tolist():
        # A group may not be the last one: slices of one plane can lie side by side.
        for group in reversed(groups):
            if along[index] - along[group[0]] > tolerance_mm:
                groups.append([index])
                break
            if np.linalg.norm(points[index] - points[group[0]]) <= tolerance_mm:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def line_deviation(positions: ArrayLike) -> float:
    """Largest distance in mm of a slice from the even line that fits all positions (n, 3) best."""
    points = np.asarray(positions, dtype=float)
    if len(points) < 3:
        return 0.0
    steps = np.arange(len(points)) - (len(points) - 1) / 2
    centred = points - points.mean(axis=0)
    slope = steps @ centred / (steps @ steps)
    return float(np.linalg.norm(centred - steps[:, None] * slope, axis=1).max())


@dataclass(frozen=True)
class StepReport:
    """How evenly slices follow each other.

    Attributes:
        kind: "regular"; "gap" where steps are whole multiples of one; "irregular" otherwise.
        spacing_mm: the step along the normal (the median one; the smallest one for a gap).
        steps_mm: (n - 1,) steps along the normal.
        missing: number of slices that a gap lacks, else 0.
        deviation_mm: largest difference of a step from ``spacing_mm``.
        drift_mm: largest distance of a slice from the even line through all of them.
    """

    kind: Literal["regular", "gap", "irregular"]
    spacing_mm: float
    steps_mm: Array
    missing: int
    deviation_mm: float
    drift_mm: float


def _missing(steps: Array) -> int | None:
    """Slices missing if all steps are whole multiples of the smallest kind of step, else None."""
    smallest = float(steps.min())
    if smallest <= SAME_POSITION_MM:
        return None
    base = float(np.median(steps[steps <= smallest * (1 + GAP_TOLERANCE)]))
    multiples = np.round(steps / base)
    if np.any(np.abs(steps / base - multiples) > GAP_TOLERANCE):
        return None
    return int(multiples.sum()) - len(steps)


def step_tolerance_mm(spacing_mm: float, strict: bool = False) -> float:
    """How far a step may be from the median step."""
    if strict:
        return max(STRICT_STEP_TOLERANCE_MM, STRICT_STEP_TOLERANCE_RELATIVE * spacing_mm)
    return max(STEP_TOLERANCE_MM, STEP_TOLERANCE_RELATIVE * spacing_mm)


def analyse_steps(positions: ArrayLike, normal: ArrayLike, strict: bool = False) -> StepReport:
    """Judge the steps between neighbouring slices.

    Args:
        positions: (n, 3) mm, n >= 2, in the order of their projection.
        normal: (3,) unit vector.
        strict: with the smaller tolerances.
    """
    points = np.asarray(positions, dtype=float)
    if len(points) < 2:
        raise ValueError(f"positions must be those of at least 2 slices, got {len(points)}")
    steps = np.diff(projections(points, normal))
    spacing = float(np.median(steps))
    deviation = float(np.abs(steps - spacing).max())
    drift = line_deviation(points)
    even = deviation <= step_tolerance_mm(spacing, strict)
    if even and drift <= DRIFT_TOLERANCE * spacing and spacing > SAME_POSITION_MM:
        return StepReport("regular", spacing, steps, 0, deviation, drift)
    missing = _missing(steps)
    if missing:
        return StepReport("gap", float(steps.min()), steps, missing, deviation, drift)
    return StepReport("irregular", spacing, steps, 0, deviation, drift)


def tilt_deg(positions: ArrayLike, normal: ArrayLike) -> float:
    """Angle in degrees between the direction in which slices are stacked and their normal.

    It is taken from the positions: makers disagree on the sign of GantryDetectorTilt. The shift in the plane
    is divided by the step pair by pair and the median is taken by component, so that neither uneven steps
    nor jitter, whose shifts point everywhere, change the angle.

    Args:
        positions: (n, 3) mm, in the order of their projection.
        normal: (3,) unit vector.
    """
    steps = np.diff(np.asarray(positions, dtype=float), axis=0)
    axis = np.asarray(normal, dtype=float)
    along = steps @ axis
    usable = along > SAME_POSITION_MM
    if not usable.any():
        return 0.0
    in_plane = steps[usable] - along[usable, None] * axis
    tangent = np.median(in_plane / along[usable, None], axis=0)
    return float(np.degrees(np.arctan(np.linalg.norm(tangent))))


def volume_affine(orientation: ArrayLike, pixel_spacing: Sequence[float], positions: ArrayLike) -> Array:
    """Affine (4, 4) from voxel indices (column, row, slice) to RAS in mm.

    Args:
        orientation: (6,) ImageOrientationPatient (LPS).
        pixel_spacing: (between rows, between columns) in mm, the order of DICOM's PixelSpacing.
        positions: (n, 3) mm (LPS), n >= 2, centre of each slice's first voxel, in the order of the slices.

    Raises:
        ValueError: fewer than two positions, or no orientation.
    """
    points = np.asarray(positions, dtype=float)
    if len(points) < 2:
        raise ValueError(f"positions must be those of at least 2 slices, got {len(points)}")
    row, column, _ = plane_axes(orientation)
    lps = np.eye(4)
    lps[:3, 0] = row * pixel_spacing[1]
    lps[:3, 1] = column * pixel_spacing[0]
    lps[:3, 2] = (points[-1] - points[0]) / (len(points) - 1)
    lps[:3, 3] = points[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


@dataclass(frozen=True)
class SliceGrid:
    """The voxel grid of an accepted stack.

    Attributes:
        columns: voxels along a row (first array axis).
        rows: voxels along a column (second array axis).
        orientation: (6,) direction cosines (LPS).
        pixel_spacing: (between rows, between columns) in mm.
        positions: (n, 3) mm (LPS), in the order of the slices (third array axis).
    """

    columns: int
    rows: int
    orientation: Array
    pixel_spacing: tuple[float, float]
    positions: Array

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (columns, rows, slices)."""
        return self.columns, self.rows, len(self.positions)

    @property
    def affine(self) -> Array:
        """Voxel indices to RAS in mm, (4, 4)."""
        return volume_affine(self.orientation, self.pixel_spacing, self.positions)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each array axis, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    def slice_index(self, position: ArrayLike) -> int | None:
        """The slice whose first voxel lies at ``position`` (3,) mm, within 1 % of a step (at least 0.01 mm)."""
        distances = np.linalg.norm(self.positions - np.asarray(position, dtype=float), axis=1)
        index = int(distances.argmin())
        tolerance = max(SAME_POSITION_MM, 0.01 * self.spacing_mm[2])
        return index if distances[index] <= tolerance else None

    def same_plane(self, columns: int, rows: int, orientation: ArrayLike, pixel_spacing: Sequence[float]) -> bool:
        """Whether a slice of this size, orientation (6,) and pixel spacing (mm) has the grid's pixels."""
        return (
            (columns, rows) == (self.columns, self.rows)
            and is_orientation(orientation)
            and orientation_spread_deg(np.stack([self.orientation, np.asarray(orientation, dtype=float)]))
            <= ORIENTATION_LIMIT_DEG
            and bool(np.allclose(pixel_spacing, self.pixel_spacing, rtol=PIXEL_SPACING_TOLERANCE, atol=0))
        )
