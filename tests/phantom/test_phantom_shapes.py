"""Implicit shapes against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from lvmmed_monai.phantom.shapes import (
    Canvas,
    SplineField,
    capsule,
    ellipsoid,
    intersection,
    rotation,
    smoothstep,
    superellipse,
    union,
)


def canvas(step: float = 2.0, half: float = 40.0) -> Canvas:
    axis = np.arange(-half, half + step / 2, step)
    return Canvas.empty((axis, axis, axis), (0.0, 0.0, 0.0), -1000.0, edge=step)


def test_sphere_and_capsule_distances() -> None:
    block = canvas()
    radius = np.sqrt(block.x**2 + block.y**2 + block.z**2)
    np.testing.assert_allclose(
        ellipsoid(block, (0, 0, 0), (20, 20, 20))[radius > 1], (radius - 20)[radius > 1], atol=1e-3
    )
    np.testing.assert_allclose(capsule(block, (0, 0, 0), (0, 0, 0), 5.0), radius - 5, atol=1e-3)
    tube = capsule(block, (0, 0, -100), (0, 0, 100), 10.0)
    np.testing.assert_allclose(tube, np.hypot(block.x, block.y) - 10, atol=1e-3)


def test_superellipse_of_power_two_is_the_circle() -> None:
    x, y = np.meshgrid(np.linspace(-30, 30, 61), np.linspace(-30, 30, 61), indexing="ij")
    far = np.hypot(x, y) > 1
    np.testing.assert_allclose(superellipse(x, y, 20.0, 20.0, 2.0)[far], (np.hypot(x, y) - 20)[far], atol=1e-6)


def test_rotation_is_a_right_handed_frame() -> None:
    frame = rotation(20.0, -35.0, 70.0).astype(np.float64)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(frame) == pytest.approx(1.0, abs=1e-6)
    block = canvas()
    turned = ellipsoid(block, (0, 0, 0), (30, 10, 10), rotation(0, 0, 90))
    straight = ellipsoid(block, (0, 0, 0), (10, 30, 10))
    np.testing.assert_allclose(turned, straight, atol=1e-3)


def test_blends_are_maximum_and_minimum_away_from_the_seam() -> None:
    a, b = np.linspace(-20, 20, 401), np.zeros(401)
    for blend in (0.0, 4.0):
        apart = np.abs(a) >= blend
        np.testing.assert_allclose(intersection(a, b, blend)[apart], np.maximum(a, b)[apart])
        np.testing.assert_allclose(union(a, b, blend)[apart], np.minimum(a, b)[apart])
    assert intersection(a, b, 4.0)[200] == pytest.approx(1.0)
    assert smoothstep(np.array([-1.0, 0.5, 3.0]), 0.0, 1.0).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("step", [1.0, 3.0])
def test_partial_volume_keeps_the_volume(step: float) -> None:
    block = canvas(step)
    block.paint(ellipsoid(block, (0.3, -0.2, 0.1), (25, 25, 25)), 0.0, 3)
    share = float(((block.values + 1000.0) / 1000.0).sum()) * step**3
    assert share == pytest.approx(4 / 3 * np.pi * 25**3, rel=0.01)
    assert set(np.unique(block.labels)) == {0, 3}


def test_painting_a_crop_paints_the_canvas() -> None:
    whole, cropped = canvas(), canvas()
    whole.paint(ellipsoid(whole, (10, -5, 8), (9, 9, 9)), 50.0, 2)
    part = cropped.around((10, -5, 8), 9)
    assert part.values.size < cropped.values.size / 4
    part.paint(ellipsoid(part, (10, -5, 8), (9, 9, 9)), 50.0, 2)
    np.testing.assert_array_equal(whole.values, cropped.values)
    np.testing.assert_array_equal(whole.labels, cropped.labels)
    away = cropped.around((500, 0, 0), 5)
    away.paint(ellipsoid(away, (500, 0, 0), (5, 5, 5)), 1.0, 1)
    np.testing.assert_array_equal(whole.labels, cropped.labels)


def test_spline_field_is_a_function_of_place() -> None:
    field = SplineField(np.random.default_rng(0), (-60, -60, -60), (60, 60, 60), 12.0, 2.0)
    fine = np.linspace(-48, 48, 97)
    values = field((fine, fine, fine))
    np.testing.assert_allclose(field((fine[::4], fine[::3], fine[::2])), values[::4, ::3, ::2], atol=1e-5)
    assert values.std() == pytest.approx(2.0, rel=0.12)
    assert np.abs(np.diff(values, axis=0)).max() < 1.5
    # constant beyond its region, so that no grid can leave it
    outside = field((np.array([60.0, 400.0]), fine, fine))
    np.testing.assert_allclose(outside[0], outside[1], atol=1e-5)
