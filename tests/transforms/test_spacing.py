"""Resampling beside foreign keys."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Spacingd

from lvmmed_monai.transforms.spacing import SpacingIgnoringSiblingsd


@pytest.fixture
def item(tmp_path: Path) -> dict:
    path = tmp_path / "case.nii.gz"
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).normal(size=(8, 7, 5)).astype(np.float32), np.diag([1, 1, 3, 1])), path
    )
    return {
        "image": str(path),
        "image_path": str(path),
        "image_id": 7,
        "image_none": None,
        3: "a key that is no string",
    }


def test_string_beside_the_image_is_left_alone(item: dict) -> None:
    preprocessing = Compose(
        [LoadImaged("image"), EnsureChannelFirstd("image"), SpacingIgnoringSiblingsd("image", pixdim=(2, 2, 2))]
    )
    result = preprocessing(item)
    assert result["image"].shape == (1, 4, 4, 7)
    assert {key: result[key] for key in item if key != "image"} == {key: item[key] for key in item if key != "image"}

    result["pred"] = result["image"] * 2
    inverted = Invertd("pred", transform=preprocessing, orig_keys="image")(result)["pred"]
    assert inverted.shape == (1, 8, 7, 5)
    np.testing.assert_array_equal(inverted.affine.numpy(), np.diag([1, 1, 3, 1]))


def test_resampling_is_monais(item: dict) -> None:
    plain = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), Spacingd("image", pixdim=(2, 2, 2))])
    ours = Compose(
        [LoadImaged("image"), EnsureChannelFirstd("image"), SpacingIgnoringSiblingsd("image", pixdim=(2, 2, 2))]
    )
    torch.testing.assert_close(ours(item)["image"], plain({"image": item["image"]})["image"])
