"""Filled polygons, against a test of every pixel by itself and against matplotlib."""

from __future__ import annotations

import numpy as np
import pytest

from lvmmed_monai.dicom.polygons import fill_polygon
from lvmmed_monai.dicom.problems import DicomError

COLUMNS, ROWS = 30, 23


def centres() -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(COLUMNS), np.arange(ROWS), indexing="ij"), axis=-1).astype(float)


def crossing_number(points: np.ndarray) -> np.ndarray:
    """Edges to the left of each pixel, one edge at a time; for points that lie on no centre's row."""
    count = np.zeros((COLUMNS, ROWS), dtype=int)
    column, row = np.moveaxis(centres(), -1, 0)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        spans = (y0 < row) != (y1 < row)
        count += spans & (column > x0 + (row - y0) * (x1 - x0) / (y1 - y0 if y1 != y0 else 1))
    return count


def edge_distance(points: np.ndarray) -> np.ndarray:
    """Distance of each pixel centre from the nearest edge."""
    found = np.full((COLUMNS, ROWS), np.inf)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        along = end - start
        part = np.clip((centres() - start) @ along / max(along @ along, 1e-12), 0, 1)
        found = np.minimum(found, np.linalg.norm(centres() - start - part[..., None] * along, axis=-1))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_any_polygon_is_filled_by_the_even_odd_rule(seed):
    """Self-crossing, partly or wholly beside the grid."""
    random = np.random.default_rng(seed)
    points = random.uniform(-8, 38, (int(random.integers(3, 40)), 2))
    clear = edge_distance(points) > 1e-5
    assert np.array_equal(fill_polygon(points, COLUMNS, ROWS)[clear], (crossing_number(points) % 2 == 1)[clear])


@pytest.mark.parametrize("seed", range(20))
def test_outlines_as_matplotlib_fills_them(seed):
    path = pytest.importorskip("matplotlib.path")
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 30))
    radii = random.uniform(3, 13, 30)
    points = np.stack([14 + radii * np.cos(angles), 11 + radii * np.sin(angles)], axis=1)
    clear = edge_distance(points) > 1e-5
    expected = path.Path(points).contains_points(centres().reshape(-1, 2)).reshape(COLUMNS, ROWS)
    assert np.array_equal(fill_polygon(points, COLUMNS, ROWS)[clear], expected[clear])


@pytest.mark.parametrize("seed", range(20))
def test_pieces_cut_through_pixel_centres_neither_overlap_nor_leave_gaps(seed):
    """Corners on centres, edges through centres: every centre belongs to exactly one piece."""
    random = np.random.default_rng(seed)
    corners = np.array([[0, 0], [COLUMNS, 0], [COLUMNS, ROWS], [0, ROWS]], dtype=float)
    inner = random.integers(1, (COLUMNS, ROWS)).astype(float)
    pieces = [np.stack([corners[i], corners[(i + 1) % 4], inner]) for i in range(4)]
    drawn = np.stack([fill_polygon(piece[:: random.choice([-1, 1])], COLUMNS, ROWS) for piece in pieces])
    assert (drawn.sum(axis=0) == 1).all()


def test_which_edges_belong_to_a_square():
    square = np.array([[2, 3], [6, 3], [6, 8], [2, 8]], dtype=float)
    inside = np.argwhere(fill_polygon(square, COLUMNS, ROWS))
    assert (inside.min(axis=0).tolist(), inside.max(axis=0).tolist()) == ([2, 3], [5, 7])
    # The last digits that a conversion from millimetres costs change nothing.
    for shift in (1e-9, -1e-9):
        assert np.array_equal(fill_polygon(square + shift, COLUMNS, ROWS), fill_polygon(square, COLUMNS, ROWS))


@pytest.mark.parametrize(
    "points",
    [
        [[3, 3]],
        [[3, 3], [9, 9]],
        [[2, 5.5], [9, 5.5], [4, 5.5]],
        [[-9, 1], [-2, 1], [-5, 9]],
        [[1, 1e12], [5, 1e12], [3, 2e12]],
    ],
    ids=["point", "line", "flat", "beside", "far"],
)
def test_what_covers_no_centre_is_empty(points):
    assert not fill_polygon(points, COLUMNS, ROWS).any()


def test_a_hostile_outline_does_not_fill_the_memory():
    zigzag = np.column_stack([np.zeros(20_000), np.tile([-1.0, 2000.0], 10_000)])
    with pytest.raises(DicomError, match="F06: a contour that crosses rows 20000000 times"):
        fill_polygon(zigzag, 4, 1000)


def test_a_polygon_round_the_grid_fills_it():
    assert fill_polygon([[-1e9, -1e9], [1e9, -1e9], [1e9, 1e9], [-1e9, 1e9]], COLUMNS, ROWS).all()
