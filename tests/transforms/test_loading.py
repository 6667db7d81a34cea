"""Reading pictures upright and in their own data type."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image

from lvmmed_monai.transforms.loading import LoadImageUprightd

load = Compose([LoadImageUprightd(["image", "label"], allow_missing_keys=True), EnsureChannelFirstd("image")])


@pytest.mark.parametrize(
    ("shape", "ending"), [((4, 6), "png"), ((4, 6, 3), "png"), ((4, 6, 4), "png"), ((8, 16), "bmp")]
)
def test_pictures_keep_rows_columns_and_type(tmp_path: Path, shape, ending) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"picture.{ending}"
    Image.fromarray(array).save(path)
    image = load({"image": str(path)})["image"]
    expected = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), expected)


def test_sixteen_bit_picture_keeps_its_values(tmp_path: Path) -> None:
    array = np.array([[0, 300], [40000, 65535]], dtype=np.uint16)
    Image.fromarray(array).save(tmp_path / "x.png")
    np.testing.assert_array_equal(load({"image": str(tmp_path / "x.png")})["image"].numpy()[0], array)


def test_palette_picture_is_colour_as_image_and_classes_as_label(tmp_path: Path) -> None:
    classes = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    picture = Image.fromarray(classes, mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    path = str(tmp_path / "mask.png")
    picture.save(path)
    as_image = LoadImageUprightd("image")({"image": path})["image"]
    as_label = LoadImageUprightd("label", labels=True)({"label": path})["label"]
    assert as_image.shape == (2, 3, 3)
    np.testing.assert_array_equal(as_image[0, 1].numpy(), [255, 0, 0])
    np.testing.assert_array_equal(as_label.numpy(), classes)


def test_volumes_are_read_as_monai_reads_them(tmp_path: Path) -> None:
    path = str(tmp_path / "volume.nii.gz")
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(array, np.diag([-1.5, -2, 3, 1])), path)
    ours = LoadImageUprightd("image")({"image": path})["image"]
    theirs = LoadImaged("image")({"image": path})["image"]
    assert ours.dtype == torch.int16
    np.testing.assert_array_equal(ours.numpy(), array)
    torch.testing.assert_close(ours.affine, theirs.affine)


def test_several_files_are_channels(tmp_path: Path) -> None:
    paths = []
    for value in (1, 2):
        paths.append(str(tmp_path / f"{value}.nii.gz"))
        nib.save(nib.Nifti1Image(np.full((2, 3, 4), value, np.float32), np.eye(4)), paths[-1])
    image = load({"image": paths})["image"]
    assert image.shape == (2, 2, 3, 4)
    assert image[1].unique().item() == 2
