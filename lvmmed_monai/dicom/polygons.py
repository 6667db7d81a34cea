"""Polygons on a pixel grid: which pixel centres lie inside."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvmmed_monai.dicom.problems import DicomError

__all__ = ["fill_polygon"]

_DECIMALS = 6
"""Points and crossings are rounded to a millionth of a pixel, so that one meant to lie on a pixel centre does:
conversions from millimetres cost the last digits."""


_MAX_CROSSINGS = 5_000_000
"""Of edges with rows; a noisy outline of 2000 rows has less than half as many. A hostile one could fill the memory."""


def fill_polygon(points: ArrayLike, columns: int, rows: int) -> NDArray[np.bool_]:
    """Pixels whose centre lies inside a polygon, by the even-odd rule. It closes itself and may cross itself.

    A centre exactly on an edge belongs to the side of larger columns, on a horizontal edge to that of larger
    rows: polygons that share an edge neither overlap nor leave a gap.

    Args:
        points: (n, 2) column and row of each corner; pixel centres have whole numbers. What lies beside the grid
            is cut off.
        columns, rows: size of the grid.

    Returns:
        (columns, rows), in Fortran order.

    Raises:
        DicomError: F06 an outline that crosses the rows more than 5 million times.
    """
    corners = np.round(np.asarray(points, dtype=float), _DECIMALS)
    # Each edge from its end in the smaller row: both polygons at an edge then find the same crossings.
    order = np.argsort(np.stack([corners[:, 1], np.roll(corners[:, 1], -1)]), axis=0, kind="stable")
    ends = np.take_along_axis(np.stack([corners, np.roll(corners, -1, axis=0)]), order[..., None], axis=0)
    (x0, y0), (x1, y1) = ends[0].T, ends[1].T
    first, last = (np.ceil(np.clip(y, 0, rows)).astype(np.intp) for y in (y0, y1))
    counts = last - first
    if counts.sum() > _MAX_CROSSINGS:
        raise DicomError("F06", f"a contour that crosses rows {counts.sum()} times", f"at most {_MAX_CROSSINGS} times")
    edge = np.repeat(np.arange(len(corners)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    crossing = np.round(x0[edge] + (row - y0[edge]) * slope, _DECIMALS)
    column = np.ceil(np.clip(crossing, 0, columns)).astype(np.intp)
    inside = np.zeros((columns, rows), dtype=bool, order="F")
    if len(edge):
        # Only the box round the polygon is filled: most structures are small.
        left, top, width, height = column.min(), row.min(), np.ptp(column), np.ptp(row) + 1
        places = (column - left) * height + row - top
        odd = np.bincount(places, minlength=(width + 1) * height).reshape(width + 1, height)[:width] % 2 == 1
        inside[left : left + width, top : top + height] = np.logical_xor.accumulate(odd, axis=0)
    return inside
