"""Implicit shapes on a grid: distances in millimetres, and a canvas that they are painted on.

A shape is an array of (approximate) signed distances to its surface, negative inside. Its share of a
voxel follows from the distance, so that edges have partial volume without supersampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "Canvas",
    "Point",
    "SplineField",
    "capsule",
    "edge_width",
    "ellipsoid",
    "intersection",
    "rotation",
    "smoothstep",
    "superellipse",
    "union",
]

Array = np.ndarray
Point = Sequence[float] | np.ndarray


def intersection(a: Array, b: Array, blend: float = 0.0) -> Array:
    """Where both are: the larger distance, rounded over ``blend`` millimetres (polynomial smooth maximum)."""
    if blend <= 0:
        return np.maximum(a, b)
    near = np.maximum(blend - np.abs(a - b), 0.0)
    return np.maximum(a, b) + near * near * (0.25 / blend)


def union(a: Array, b: Array, blend: float = 0.0) -> Array:
    """Where either is: the smaller distance, rounded over ``blend`` millimetres."""
    return -intersection(-a, -b, blend)


def smoothstep(value: Array, low: float, high: float) -> Array:
    """0 below ``low``, 1 above ``high``, a cubic between them."""
    share = np.clip((value - low) / (high - low), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def rotation(x: float, y: float, z: float) -> Array:
    """Rows are the axes of a frame turned by these angles in degrees about x, then y, then z."""
    angles = np.deg2rad([x, y, z])
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x).T.astype(np.float32)


def edge_width(spacing: Point) -> float:
    """Width over which a surface is spread on voxels of this spacing (x, y, z).

    Most surfaces of a body stand upright, so the steps in plane count more than the slice step.
    """
    return 0.4 * float(spacing[0]) + 0.4 * float(spacing[1]) + 0.2 * float(spacing[2])


def superellipse(x: Array, y: Array, a: Array | float, b: Array | float, power: float) -> Array:
    """Distance to the curve |x/a|^power + |y/b|^power = 1, measured along the ray from the centre."""
    u, v = np.abs(x / a), np.abs(y / b)
    level = (u**power + v**power) ** (1.0 / power)
    return np.hypot(x, y) * (1.0 - 1.0 / np.maximum(level, 1e-3))


def ellipsoid(canvas: Canvas, centre: Point, radii: Point, frame: Array | None = None) -> Array:
    """Distance to an ellipsoid, exact at its surface to first order.

    Args:
        canvas: gives the coordinates.
        centre, radii: millimetres.
        frame: (3, 3) rows are the directions of the radii; by default x, y, z.
    """
    offsets = (canvas.x - centre[0], canvas.y - centre[1], canvas.z - centre[2])
    if frame is not None:
        offsets = tuple(row[0] * offsets[0] + row[1] * offsets[1] + row[2] * offsets[2] for row in frame)
    squares = [np.square(offset * (1.0 / radius)) for offset, radius in zip(offsets, radii, strict=True)]
    level = np.sqrt(squares[0] + squares[1] + squares[2])
    a, b, c = (1.0 / radius**2 for radius in radii)
    slope = np.sqrt(a * squares[0] + b * squares[1] + c * squares[2])
    return level * (level - 1.0) / np.maximum(slope, 1e-6)


def capsule(canvas: Canvas, start: Point, end: Point, radius: float, end_radius: float | None = None) -> Array:
    """Distance to a tube from ``start`` to ``end`` with round ends, its radius changing evenly."""
    base = np.asarray(start, dtype=np.float32)
    along = np.asarray(end, dtype=np.float32) - base
    px, py, pz = canvas.x - base[0], canvas.y - base[1], canvas.z - base[2]
    length = max(float(along @ along), 1e-6)
    share = np.clip((px * along[0] + py * along[1] + pz * along[2]) / length, 0.0, 1.0)
    distance = np.sqrt((px - share * along[0]) ** 2 + (py - share * along[1]) ** 2 + (pz - share * along[2]) ** 2)
    return distance - (radius + ((radius if end_radius is None else end_radius) - radius) * share)


@dataclass
class Canvas:
    """A block of voxels with anatomical coordinates, painted from back to front.

    Attributes:
        axes: nominal coordinates of the columns, rows and slices (millimetres, each rising).
        x, y, z: (nx, ny, nz) coordinates after the subject's own deformation, to the patient's left,
            back and head (LPS).
        values: (nx, ny, nz) HU or signal.
        labels: (nx, ny, nz) uint8.
        edge: width over which a surface is spread, about a voxel (millimetres).
        margin: largest shift of the deformation (millimetres).
        fields: further arrays of the same shape, by name.
    """

    axes: tuple[Array, ...]
    x: Array
    y: Array
    z: Array
    values: Array
    labels: Array
    edge: float
    margin: float
    fields: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        axes: tuple[Array, ...],
        shifts: Sequence[Array | float],
        value: float,
        *,
        edge: float,
        margin: float = 0.0,
    ) -> Canvas:
        """A canvas of one value whose coordinates are the axes plus ``shifts``, which reach up to ``margin``."""
        grid = np.meshgrid(*axes, indexing="ij", sparse=True)
        shape = tuple(len(axis) for axis in axes)
        x, y, z = (
            np.broadcast_to(axis + shift, shape).astype(np.float32) for axis, shift in zip(grid, shifts, strict=True)
        )
        return cls(axes, x, y, z, np.full(shape, value, np.float32), np.zeros(shape, np.uint8), edge, margin)

    def crop(self, low: Point, high: Point) -> Canvas:
        """The block that holds a box (millimetres); painting on it paints on this canvas."""
        reach = self.margin + 2.0 * self.edge
        bounds = [
            slice(int(np.searchsorted(axis, a - reach)), int(np.searchsorted(axis, b + reach)))
            for axis, a, b in zip(self.axes, low, high, strict=True)
        ]
        window = tuple(bounds)
        axes = tuple(axis[bound] for axis, bound in zip(self.axes, bounds, strict=True))
        x, y, z, values, labels = (block[window] for block in (self.x, self.y, self.z, self.values, self.labels))
        fields = {name: block[window] for name, block in self.fields.items()}
        return Canvas(axes, x, y, z, values, labels, self.edge, self.margin, fields)

    def around(self, centre: Point, reach: float) -> Canvas:
        """The block within ``reach`` of a point, in each direction."""
        return self.crop([c - reach for c in centre], [c + reach for c in centre])

    def along(self, start: Point, end: Point, radius: float) -> Canvas:
        """The block that holds a tube."""
        pairs = list(zip(start, end, strict=True))
        return self.crop([min(pair) - radius for pair in pairs], [max(pair) + radius for pair in pairs])

    def paint(self, distance: Array, value: Array | float, label: int | None = None, opacity: float = 1.0) -> None:
        """Mix ``value`` in by the share of each voxel; set ``label`` (None: leave it) where the centre is inside."""
        if not distance.size:
            return
        share = np.clip(0.5 - distance / self.edge, 0.0, 1.0)
        if opacity != 1.0:
            share *= opacity
        self.values += share * (value - self.values)
        if label is not None:
            self.labels[distance < 0] = label


class SplineField:
    """Smooth random field with mean 0: a cubic B-spline over a lattice of normal numbers.

    It is a function of millimetres, so a subject is the same one on every grid; on a grid whose axes
    are straight it is three small matrix products.

    Args:
        rng: gives the lattice.
        low, high: corners of the region (millimetres).
        step: distance of the lattice points: details are about twice as wide (millimetres).
        std: standard deviation of the field.
    """

    # Variance of the sum of B-spline weights times independent unit normals, mean over the cell, to the power 3/2.
    _UNIT_STD = 0.479**1.5

    def __init__(self, rng: np.random.Generator, low: Point, high: Point, step: float, std: float) -> None:
        self.low = tuple(float(value) for value in low)
        self.step = float(step)
        counts = [int(np.ceil((b - a) / step)) + 4 for a, b in zip(low, high, strict=True)]
        self.lattice = (rng.standard_normal(counts) * (std / self._UNIT_STD)).astype(np.float32)

    def __call__(self, axes: tuple[Array, ...]) -> Array:
        """The field at the grid of three coordinate axes: (nx, ny, nz) float32."""
        weights = [self._weights(axis, i) for i, axis in enumerate(axes)]
        return np.einsum("xi,yj,zk,ijk->xyz", *weights, self.lattice, optimize=True).astype(np.float32)

    def _weights(self, axis: Array, dimension: int) -> Array:
        """(points, lattice) matrix of cubic B-spline weights; beyond the region the field is held constant."""
        count = self.lattice.shape[dimension]
        position = np.clip((np.asarray(axis) - self.low[dimension]) / self.step + 1.0, 1.0, count - 3.0)
        distance = np.abs(position[:, None] - np.arange(count)[None, :])
        near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
        far = np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0
        return np.where(distance < 1.0, near, far).astype(np.float32)
