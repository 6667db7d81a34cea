"""The world-coordinate oracle tells right volumes from wrong ones, so that the proofs can fail."""

from __future__ import annotations

import numpy as np
import pytest
from damage import oblique_series
from scipy import ndimage
from world import displacement, is_right, look_up, planes, same_volumes

SLICES = planes(oblique_series())


def right_volume():
    """Array and affine of `SLICES`, written out by hand."""
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 3] = SLICES[0].across, SLICES[0].down, SLICES[0].origin
    lps[:3, 2] = (SLICES[-1].origin - SLICES[0].origin) / (len(SLICES) - 1)
    return np.stack([plane.values.T for plane in SLICES], axis=2), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def test_the_right_volume_is_right():
    agreement = look_up(right_volume(), SLICES)
    assert (agreement.share, agreement.worst_share) == (1.0, 1.0)
    assert max(agreement.in_plane_mm, agreement.through_mm) < 1e-3
    assert same_volumes([right_volume()], [SLICES])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_or_transposed_array_is_wrong(axis):
    array, affine = right_volume()
    assert not is_right((np.flip(array, axis), affine), SLICES)
    assert not is_right((array.swapaxes(axis, (axis + 1) % 3), affine), SLICES)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_of_a_fifth_of_a_millimetre_is_wrong_even_when_interpolation_is_allowed(axis):
    array, affine = right_volume()
    moved = affine.copy()
    moved[axis, 3] += 0.25
    assert not is_right((array, moved), SLICES)
    moved[:3, 3] = affine[:3, 3] + 0.25 * affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    assert not is_right((array, moved), SLICES, resampled=True)
    assert displacement((array, moved), SLICES).shift_mm == pytest.approx(0.25, abs=0.03)


def test_a_wrong_step_missing_slices_and_other_slopes_are_wrong():
    array, affine = right_volume()
    stretched = affine.copy()
    stretched[:3, 2] *= 1.02
    assert not is_right((array, stretched), SLICES)
    assert not is_right((array[:, :, :-1], affine), SLICES)
    assert not is_right((array[:, :, :-1], affine), SLICES[:-1] + SLICES[:1])
    assert not is_right((array * 1.01, affine), SLICES)
    assert not same_volumes([(array, affine), (array, affine)], [SLICES])
    assert not same_volumes([], [SLICES])


def test_an_interpolated_volume_in_its_place_is_right_only_where_interpolation_is_allowed():
    array, affine = right_volume()
    finer, shift = affine.copy(), np.array([0.37, -0.41, 0.0])
    finer[:3, 3] += affine[:3, :3] @ shift
    between = ndimage.shift(array, -shift, order=1, mode="nearest")
    assert is_right((between, finer), SLICES, resampled=True)
    assert not is_right((between, finer), SLICES)
    assert not is_right((between, affine), SLICES, resampled=True)
