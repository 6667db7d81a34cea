"""The head: tissues in the right order of brightness and place, a folded cortex, an oblique grid."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from lvmmed_monai.phantom import BRAIN_LABELS, PhantomVolume, generate


@pytest.fixture(scope="module")
def volumes() -> list[PhantomVolume]:
    return [generate("brain_mr", 2, subject) for subject in range(4)]


def test_label_order_is_fixed() -> None:
    assert BRAIN_LABELS == {1: "white_matter", 2: "grey_matter", 3: "ventricle"}


def test_brightness_and_volumes(volumes: list[PhantomVolume]) -> None:
    for volume in volumes:
        white, grey, fluid = (np.median(volume.image[volume.labels == label]) for label in (1, 2, 3))
        assert white > 1.2 * grey > 1.2 * 1.5 * fluid
        assert volume.image.min() >= 0
        litre = abs(np.linalg.det(volume.affine[:3, :3])) / 1e6
        sizes = [(volume.labels == label).sum() * litre for label in (1, 2, 3)]
        assert 0.35 < sizes[0] < 0.9
        assert 0.4 < sizes[1] < 1.0
        assert 0.008 < sizes[2] < 0.09


def test_cortex_is_folded_and_lies_around_white_matter(volumes: list[PhantomVolume]) -> None:
    for volume in volumes:
        brain = volume.labels > 0
        # A smooth shell of this volume has far less surface than a folded one.
        surface = (brain & ~ndimage.binary_erosion(brain)).sum()
        closed = ndimage.binary_closing(np.pad(brain, 6), iterations=5)
        smooth = (closed & ~ndimage.binary_erosion(closed)).sum()
        assert surface > 1.4 * smooth
        # More grey matter than white touches the outside.
        rim = ndimage.binary_dilation(~brain) & brain
        assert (volume.labels[rim] == 2).mean() > 0.7


def test_ventricles_lie_in_the_middle(volumes: list[PhantomVolume]) -> None:
    for volume in volumes:
        middle = np.argwhere(volume.labels == 1).mean(axis=0)
        ventricle = np.argwhere(volume.labels == 3).mean(axis=0)
        offset = volume.affine[:3, :3] @ (ventricle - middle)
        assert abs(offset[0]) < 6
        assert np.linalg.norm(offset) < 30


def test_grid_is_oblique_and_orthogonal(volumes: list[PhantomVolume]) -> None:
    for volume in volumes:
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
        directions = volume.affine[:3, :3] / spacing
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
        assert np.abs(directions[2, 1]) > 0.05


def test_subjects_differ_and_repeat(volumes: list[PhantomVolume]) -> None:
    assert not np.allclose(volumes[0].affine, volumes[1].affine)
    np.testing.assert_array_equal(generate("brain_mr", 2, 1).image, volumes[1].image)
