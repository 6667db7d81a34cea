"""Volumes to slices and back."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, Invertd

from lvmmed_monai.errors import UserError
from lvmmed_monai.transforms.slices import PLANES, RepeatGrey, RepeatGreyd, ToSlices, ToSlicesd


def oblique_affine(axes: tuple[int, int, int], signs: tuple[int, int, int]) -> np.ndarray:
    """Anisotropic voxels, axes permuted and flipped, tilted by 8 degrees."""
    turn = np.eye(3)
    angle = np.deg2rad(8)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[:, list(axes)] @ np.diag(np.array(signs) * [0.7, 1.3, 5.0])
    affine[:3, 3] = [-101.25, 33.7, 812.0]
    return affine


@pytest.mark.parametrize("plane", list(PLANES))
@pytest.mark.parametrize(
    ("axes", "signs"),
    [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, -1, 1)), ((2, 0, 1), (1, -1, 1)), ((1, 2, 0), (-1, 1, -1))],
)
def test_orientation_agrees_with_nibabel_and_inverts_exactly(plane, axes, signs) -> None:
    affine = oblique_affine(axes, signs)
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    to_slices = ToSlices(plane)
    sliced = to_slices(MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine)))

    wanted = nib.orientations.axcodes2ornt(PLANES[plane])
    transform = nib.orientations.ornt_transform(nib.io_orientation(affine), wanted)
    expected = nib.Nifti1Image(array, affine).as_reoriented(transform)
    np.testing.assert_array_equal(sliced[0].numpy(), expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(sliced.affine.numpy(), expected.affine)
    assert nib.aff2axcodes(sliced.affine.numpy()) == tuple(PLANES[plane])

    back = to_slices.inverse(sliced)
    np.testing.assert_array_equal(back[0].numpy(), array)
    np.testing.assert_allclose(back.affine.numpy(), affine, rtol=0, atol=1e-12)
    assert not back.applied_operations


def test_axial_slices_are_upright_pictures() -> None:
    # RAS voxels: x to the right, y to the front. On a screen the front is up and the patient's right is on the left.
    volume = torch.zeros(1, 3, 4, 2)
    volume[0, 2, 3, 1] = 1  # right, front, top
    sliced = ToSlices("axial")(MetaTensor(volume, affine=torch.eye(4)))
    assert sliced.shape == (1, 2, 4, 3)
    assert sliced[0, 1, 0, 0] == 1


def test_two_dimensional_image_becomes_one_slice_and_comes_back() -> None:
    affine = torch.tensor([[0.3, 0, 0, 5], [0, 0.4, 0, -2], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    image = MetaTensor(torch.rand(3, 5, 7), affine=affine)
    to_slices = ToSlices()
    sliced = to_slices(image)
    assert sliced.shape == (3, 1, 5, 7)
    # the position of the same pixel must not move: (row 2, column 6) is voxel (0, 2, 6) now
    torch.testing.assert_close(
        sliced.affine @ torch.tensor([0, 2.0, 6, 1]).double(), affine @ torch.tensor([2.0, 6, 0, 1]).double()
    )
    back = to_slices.inverse(sliced)
    torch.testing.assert_close(back.as_tensor(), image.as_tensor())
    torch.testing.assert_close(back.affine, affine, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 6, 7), (1, 4, 5, 6)], ids=["2d", "3d"])
def test_invertd_brings_a_prediction_back(shape) -> None:
    preprocessing = Compose([ToSlicesd("image", plane="coronal"), EnsureTyped("image")])
    image = MetaTensor(torch.rand(shape), affine=torch.from_numpy(oblique_affine((1, 2, 0), (1, -1, 1))))
    data = preprocessing({"image": image})
    data["pred"] = torch.cat([data["image"], 1 - data["image"]])
    result = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)(data)["pred"]
    torch.testing.assert_close(result.as_tensor()[:1], image.as_tensor())
    torch.testing.assert_close(result.affine, image.affine)


def test_what_cannot_be_sliced_is_explained() -> None:
    with pytest.raises(UserError, match="plane must be one of"):
        ToSlicesd("image", plane="transverse")
    with pytest.raises(UserError, match="channel-first MetaTensor"):
        ToSlices()(torch.zeros(1, 2, 3, 4))


def test_channels() -> None:
    grey = torch.rand(1, 2, 3)
    assert torch.equal(RepeatGrey(3)(grey), grey.expand(3, 2, 3))
    rgba = torch.rand(4, 2, 3)
    assert torch.equal(RepeatGrey(3)(rgba), rgba[:3])
    assert RepeatGreyd(["image", "label"], 3, allow_missing_keys=True)({"image": grey})["image"].shape == (3, 2, 3)
    with pytest.raises(UserError, match=r"takes 1 channel\(s\) and the image has 3"):
        RepeatGrey(1)(rgba[:3])
