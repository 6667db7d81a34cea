"""The torso: plausible values, places and sizes, and the same subject at every resolution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from lvmmed_monai.phantom import TORSO_LABELS, PhantomVolume, generate, torso_ct

SUBJECTS = 8
INDEX = {name: index for index, name in TORSO_LABELS.items()}
# Median HU over all contrast phases; noise and partial volume widen single voxels beyond it.
HU = {
    "lung": (-890, -780),
    "liver": (45, 120),
    "spleen": (40, 120),
    "kidney_right": (30, 155),
    "kidney_left": (30, 155),
    "bone": (280, 900),
}
MILLILITRES = {
    "lung": (700, 4500),
    "liver": (700, 2200),
    "spleen": (60, 400),
    "kidney_right": (50, 280),
    "kidney_left": (50, 280),
    "bone": (300, 1000),
}


@pytest.fixture(scope="module")
def volumes() -> list[PhantomVolume]:
    return [generate("torso_ct", 3, subject, size=64) for subject in range(SUBJECTS)]


def centre(volume: PhantomVolume, name: str) -> np.ndarray:
    """Centre of a label in RAS millimetres."""
    index = np.argwhere(volume.labels == INDEX[name]).mean(axis=0)
    return volume.affine[:3, :3] @ index + volume.affine[:3, 3]


def test_label_order_is_fixed() -> None:
    names = ["lung", "liver", "spleen", "kidney_right", "kidney_left", "bone", "lesion"]
    assert [TORSO_LABELS[index] for index in range(1, 8)] == names


def test_grid(volumes: list[PhantomVolume]) -> None:
    steps = set()
    for volume in volumes:
        assert volume.image.shape == volume.labels.shape
        assert volume.image.shape[:2] == (64, 64)
        assert 33 <= volume.image.shape[2] <= 47
        assert volume.image.dtype == np.int16
        assert volume.labels.dtype == np.uint8
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
        assert 290 < spacing[0] * 64 < 420
        assert 5.0 <= spacing[2] <= 6.0
        steps.add(round(float(spacing[2]), 3))
    assert len(steps) > SUBJECTS / 2


@pytest.mark.parametrize("name", HU)
def test_values_and_volumes_of_organs(volumes: list[PhantomVolume], name: str) -> None:
    for volume in volumes:
        inside = volume.labels == INDEX[name]
        low, high = HU[name]
        assert low <= np.median(volume.image[inside]) <= high
        low, high = MILLILITRES[name]
        assert low <= inside.sum() * abs(np.linalg.det(volume.affine[:3, :3])) / 1000 <= high


def test_sides_and_heights_in_patient_coordinates(volumes: list[PhantomVolume]) -> None:
    for volume in volumes:
        liver, spleen, lung = (centre(volume, name) for name in ("liver", "spleen", "lung"))
        right, left = centre(volume, "kidney_right"), centre(volume, "kidney_left")
        # RAS: the first coordinate grows towards the patient's right hand.
        assert liver[0] > spleen[0] + 80
        assert right[0] > left[0] + 80
        # Kidneys and spleen lie behind the liver's middle, the lungs above it.
        assert max(right[1], left[1], spleen[1]) < liver[1]
        assert lung[2] > liver[2] > max(right[2], left[2]) - 5


def test_air_fat_and_soft_tissue_are_there(volumes: list[PhantomVolume]) -> None:
    for volume in volumes:
        corner = volume.image[:4, :4]
        assert corner.min() >= -1024
        assert corner.mean() < -980
        unlabelled = volume.image[volume.labels == 0]
        for low, high in ((-135, -75), (25, 90)):
            assert ((unlabelled > low) & (unlabelled < high)).mean() > 0.05
        noise = float(np.std(volume.image[ndimage.binary_erosion(volume.labels == INDEX["liver"], iterations=3)]))
        assert 4 < noise < 40


def test_organs_are_of_one_piece(volumes: list[PhantomVolume]) -> None:
    for volume in volumes:
        for name in ("liver", "spleen", "kidney_right", "kidney_left"):
            parts, count = ndimage.label(np.isin(volume.labels, [INDEX[name], INDEX["lesion"] * (name == "liver")]))
            sizes = ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1))
            assert sizes.max() / sizes.sum() > 0.97, name


def test_lesions_lie_in_the_liver_and_are_darker(volumes: list[PhantomVolume]) -> None:
    found = 0
    for volume in volumes:
        lesion = volume.labels == INDEX["lesion"]
        if not lesion.any():
            continue
        found += 1
        shell = ndimage.binary_dilation(lesion) & ~lesion
        assert (volume.labels[shell] == INDEX["liver"]).mean() > 0.5
        assert np.median(volume.image[lesion]) < np.median(volume.image[volume.labels == INDEX["liver"]]) - 12
    assert 2 <= found <= 4


def test_subjects_and_seeds_differ(volumes: list[PhantomVolume]) -> None:
    other = generate("torso_ct", 4, 0, size=64)
    first, second = volumes[:2]
    for one, two in ((first, second), (first, other)):
        assert one.image.shape != two.image.shape or not np.array_equal(one.image, two.image)
        assert not np.allclose(one.affine, two.affine)
    again = generate("torso_ct", 3, 0, size=64)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)


def test_anatomy_does_not_depend_on_the_grid() -> None:
    coarse = torso_ct((5, 0, 1), size=48)
    fine = torso_ct((5, 0, 1), size=96)
    for name in ("liver", "spleen", "kidney_left", "lesion"):
        sizes = [(v.labels == INDEX[name]).sum() * abs(np.linalg.det(v.affine[:3, :3])) for v in (coarse, fine)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.15), name
        np.testing.assert_allclose(centre(coarse, name), centre(fine, name), atol=4.0)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    from lvmmed_monai.phantom import torso

    whole = torso_ct((6, 0, 0), size=48)
    monkeypatch.setattr(torso, "_SLAB_VOXELS", 48 * 48 * 7)
    slabs = torso_ct((6, 0, 0), size=48)
    assert (whole.labels != slabs.labels).mean() < 1e-5
    assert np.abs(whole.image.astype(int) - slabs.image).max() <= 2
