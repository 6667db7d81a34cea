"""Tilted stacks, put onto an orthogonal grid.

A tilted gantry shifts each slice within its own plane. So does the repair, by a fraction of a pixel and back:
slices stay where they are along the normal, and nothing is interpolated between them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.dicom.geometry import SliceGrid, plane_axes

__all__ = ["straighten"]


def _weights(offset: float) -> tuple[int, float]:
    """Whole pixels and the rest of an offset."""
    whole = int(np.floor(offset))
    return whole, offset - whole


def _shifted(plane: NDArray[Any], offset: NDArray[np.float64], shape: tuple[int, int], fill: float) -> NDArray[Any]:
    """A plane (columns, rows) moved by ``offset`` pixels along both axes, linearly interpolated, on a larger one."""
    (i, u), (j, v) = _weights(offset[0]), _weights(offset[1])
    moved = np.full((shape[0] + 1, shape[1] + 1), fill, dtype=np.float32)
    columns, rows = plane.shape
    source = np.full((columns + 2, rows + 2), fill, dtype=np.float32)
    source[1:-1, 1:-1] = plane
    mixed = (1 - u) * source[1:] + u * source[:-1]
    moved[i : i + columns + 1, j : j + rows + 1] = (1 - v) * mixed[:, 1:] + v * mixed[:, :-1]
    return moved[: shape[0], : shape[1]]


def straighten(values: NDArray[Any], grid: SliceGrid, labels: bool = False) -> tuple[NDArray[Any], SliceGrid]:
    """Put a tilted stack onto an orthogonal grid that holds all of it.

    Args:
        values: (columns, rows, slices), integers or float32.
        grid: its sheared grid.
        labels: take the nearest pixel instead of a mixture.

    Returns:
        Values of the same kind, (more columns, more rows, slices), and their grid; the smallest value fills what no
        slice covers.
    """
    row, column, normal = plane_axes(grid.orientation)
    between_rows, between_columns = grid.pixel_spacing
    relative = grid.positions - grid.positions[0]
    offsets = np.stack([relative @ row / between_columns, relative @ column / between_rows], axis=1)
    corner = offsets.min(axis=0)
    offsets -= corner
    shifts = np.rint(offsets) if labels else offsets
    columns, rows = (np.array(grid.shape[:2]) + np.ceil(offsets.max(axis=0) - 1e-6).astype(int)).tolist()
    origin = grid.positions[0] + corner[0] * between_columns * row + corner[1] * between_rows * column
    fill = float(values.min())
    straight = np.empty((columns, rows, grid.shape[2]), dtype=values.dtype, order="F")
    for index, offset in enumerate(shifts):
        plane = _shifted(values[:, :, index], offset, (columns, rows), fill)
        straight[:, :, index] = np.rint(plane) if np.issubdtype(values.dtype, np.integer) else plane
    positions = origin + (relative @ normal)[:, None] * normal
    return straight, replace(grid, columns=columns, rows=rows, positions=positions)
