"""Slice geometry, against hand-made stacks and a looped reference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lvmmed_monai.dicom.geometry import (
    SliceGrid,
    analyse_steps,
    is_orientation,
    line_deviation,
    orientation_spread_deg,
    plane_axes,
    position_groups,
    slice_order,
    tilt_deg,
    volume_affine,
)

AXIAL = (1, 0, 0, 0, 1, 0)
OBLIQUE = tuple(
    np.concatenate([[math.cos(0.3), math.sin(0.3), 0], [-math.sin(0.3) * 0.8, math.cos(0.3) * 0.8, 0.6]]).tolist()
)


def stack(steps: list[float], direction=(0.0, 0.0, 1.0), origin=(1.0, 2.0, 3.0)) -> np.ndarray:
    along = np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(origin) + along[:, None] * np.asarray(direction)


def test_normal_is_perpendicular_and_right_handed():
    row, column, normal = plane_axes(OBLIQUE)
    assert np.allclose(normal, np.cross(row, column))
    assert abs(normal @ row) < 1e-12
    assert abs(normal @ column) < 1e-12
    assert np.allclose(plane_axes(AXIAL)[2], (0, 0, 1))


@pytest.mark.parametrize("bad", [(1, 0, 0, 1, 0, 0), (2, 0, 0, 0, 1, 0), (1, 0, 0), (math.nan, 0, 0, 0, 1, 0)])
def test_bad_orientations_are_refused(bad):
    assert not is_orientation(bad)
    with pytest.raises(ValueError, match="perpendicular unit vectors"):
        plane_axes(bad)


def test_order_is_spatial():
    positions = stack([2.0] * 5)
    shuffled = np.random.default_rng(1).permutation(6)
    order = slice_order(positions[shuffled], (0, 0, 1))
    assert np.array_equal(positions[shuffled][order], positions)


def test_regular_steps_and_tolerances():
    report = analyse_steps(stack([5.0] * 9), (0, 0, 1))
    assert (report.kind, report.spacing_mm, report.missing) == ("regular", 5.0, 0)
    assert analyse_steps(stack([1.0, 1.09, 0.91, 1.0, 1.0]), (0, 0, 1)).kind == "regular"  # within 0.1 mm
    assert analyse_steps(stack([5.0, 5.24, 4.76, 5.0]), (0, 0, 1)).kind == "regular"  # within 5 %
    assert analyse_steps(stack([5.0, 5.4, 4.6, 5.0]), (0, 0, 1)).kind == "irregular"


def test_small_errors_that_add_up_are_irregular():
    steps = [1.0] * 10 + [1.06] * 10
    assert analyse_steps(stack(steps), (0, 0, 1)).kind == "irregular"


def test_slices_that_leave_the_line_are_irregular():
    positions = stack([2.0] * 9)
    positions[5:, 0] += 3.0
    assert analyse_steps(positions, (0, 0, 1)).kind == "irregular"


@pytest.mark.parametrize(
    ("steps", "missing"),
    [([5, 5, 10], 1), ([1, 1, 4, 1, 2], 4), ([2, 2, 2, 1, 1, 1, 2, 2], 5), ([3, 3.02, 9.1, 2.98], 2)],
)
def test_gaps_are_counted(steps, missing):
    report = analyse_steps(stack([float(step) for step in steps]), (0, 0, 1))
    assert (report.kind, report.missing) == ("gap", missing)


def test_uneven_steps_are_no_gap():
    assert analyse_steps(stack([4.0, 4.0, 1.08, 7.0, 7.0]), (0, 0, 1)).kind == "irregular"
    assert analyse_steps(stack([0.0, 2.0, 2.0]), (0, 0, 1)).kind == "irregular"


def test_one_slice_has_no_steps():
    with pytest.raises(ValueError, match="at least 2 slices"):
        analyse_steps([[0, 0, 0]], (0, 0, 1))


def test_line_deviation_against_least_squares():
    positions = stack([2.0] * 7) + np.random.default_rng(0).normal(0, 0.1, (8, 3))
    design = np.stack([np.arange(8), np.ones(8)], axis=1)
    fitted = design @ np.linalg.lstsq(design, positions, rcond=None)[0]
    assert line_deviation(positions) == pytest.approx(np.linalg.norm(positions - fitted, axis=1).max())
    assert line_deviation(positions[:2]) == 0.0


@pytest.mark.parametrize("steps", [[2.5] * 9, [4.22, 4.22, 1.14, 7.38, 7.38]])
@pytest.mark.parametrize("sign", [-1, 1])
def test_tilt_of_even_and_uneven_steps(steps, sign):
    angle = math.radians(18.5)
    positions = stack(steps, (0, sign * math.sin(angle), math.cos(angle)))
    assert tilt_deg(positions, (0, 0, 1)) == pytest.approx(18.5, abs=1e-6)


def test_jitter_is_no_tilt():
    positions = stack([1.0] * 59)
    positions[:, :2] += np.random.default_rng(3).uniform(-0.02, 0.02, (60, 2))
    assert tilt_deg(positions, (0, 0, 1)) < 0.3


def test_orientation_spread():
    turned = (
        math.cos(math.radians(5)),
        math.sin(math.radians(5)),
        0,
        -math.sin(math.radians(5)),
        math.cos(math.radians(5)),
        0,
    )
    assert orientation_spread_deg([AXIAL, AXIAL]) == 0.0
    assert orientation_spread_deg([AXIAL, turned]) == pytest.approx(5.0)
    assert orientation_spread_deg([AXIAL, (-1, 0, 0, 0, 1, 0)]) == pytest.approx(180.0)


def test_position_groups_against_pairs():
    rng = np.random.default_rng(5)
    base = stack([2.0] * 4)
    points = np.concatenate([base, base[1:3] + 0.004, base[2:3]])
    points = points[rng.permutation(len(points))]
    groups = position_groups(points, (0, 0, 1))
    assert sorted(map(len, groups)) == [1, 1, 1, 2, 3]
    for group in groups:
        for other in groups:
            distance = np.linalg.norm(points[group[0]] - points[other[0]])
            assert (distance <= 0.01) == (group is other)


def test_slices_side_by_side_in_one_plane_do_not_share_a_position():
    points = [[0, 0, 0], [50, 0, 0], [0, 0, 0.001], [50, 0, 0.002]]
    assert sorted(map(sorted, position_groups(points, (0, 0, 1)))) == [[0, 2], [1, 3]]


def test_affine_maps_each_voxel_to_its_place():
    row, column, normal = plane_axes(OBLIQUE)
    spacing = (0.8, 0.5)  # between rows, between columns
    positions = stack([2.5] * 5, normal, (10, -20, 30))
    affine = volume_affine(OBLIQUE, spacing, positions)
    for i, j, k in np.ndindex(3, 4, 6):
        lps = positions[k] + i * spacing[1] * row + j * spacing[0] * column
        assert np.allclose(affine @ (i, j, k, 1), [-lps[0], -lps[1], lps[2], 1])


def test_grid_finds_slices_by_position():
    grid = SliceGrid(10, 12, np.array(AXIAL, dtype=float), (0.8, 0.5), stack([2.0] * 5))
    assert grid.shape == (10, 12, 6)
    assert np.allclose(grid.spacing_mm, (0.5, 0.8, 2.0))
    assert grid.slice_index((1.003, 2.0, 7.0)) == 2
    assert grid.slice_index((1.0, 2.0, 8.0)) is None
    assert grid.slice_index((1.5, 2.0, 7.0)) is None
    assert grid.same_plane(10, 12, AXIAL, (0.8, 0.5))
    assert not grid.same_plane(12, 10, AXIAL, (0.8, 0.5))
    assert not grid.same_plane(10, 12, AXIAL, (0.5, 0.8))
    assert not grid.same_plane(10, 12, (-1, 0, 0, 0, 1, 0), (0.8, 0.5))
