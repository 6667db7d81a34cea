"""Label maps and embeddings on disk."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from lvmmed_monai.errors import UserError
from lvmmed_monai.transforms.embeddings import SaveEmbeddingd
from lvmmed_monai.transforms.saving import SaveImageMaskd, source_stem


def prediction(array: np.ndarray, name: str, affine: np.ndarray | None = None) -> MetaTensor:
    affine = np.eye(4) if affine is None else affine
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine), meta={"filename_or_obj": name})


@pytest.mark.parametrize(
    ("name", "stem"), [("a.nii.gz", "a"), ("x/b.c.nii", "b.c"), ("/d/e.png", "e"), ("f", "f"), ("G.NII.GZ", "G")]
)
def test_source_stem(name: str, stem: str) -> None:
    assert source_stem(name) == stem


def test_volume_is_written_on_its_grid(tmp_path: Path) -> None:
    affine = np.array([[0, -1.25, 0, 3], [0.7, 0, 0.1, -7], [0, 0, 5, 99.5], [0, 0, 0, 1]])
    mask = np.random.default_rng(0).integers(0, 8, (1, 5, 6, 7)).astype(np.float32)
    SaveImageMaskd("pred", tmp_path / "out")({"pred": prediction(mask, "images/case.nii.gz", affine)})
    written = nib.load(tmp_path / "out" / "case_seg.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask[0])
    np.testing.assert_array_equal(written.affine, affine.astype(np.float32))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_seg.nii.gz"]


def test_picture_gets_a_png_with_the_same_rows_and_columns(tmp_path: Path) -> None:
    mask = np.array([[[0, 1, 2], [3, 0, 1]]], dtype=np.int64)
    SaveImageMaskd("pred", tmp_path)({"pred": prediction(mask, "a.jpg")})
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a_seg.png")), mask[0])


def test_equal_names_from_two_folders_are_refused(tmp_path: Path) -> None:
    save = SaveImageMaskd("pred", tmp_path)
    mask = np.zeros((1, 2, 2, 2), np.uint8)
    save({"pred": prediction(mask, "one/a.nii.gz")})
    save({"pred": prediction(mask, "one/a.nii.gz")})
    with pytest.raises(UserError, match="two images are called a"):
        save({"pred": prediction(mask, "two/a.nii.gz")})


@pytest.mark.parametrize("array", [np.zeros((2, 3, 3)), np.full((1, 3, 3), 256), np.full((1, 3, 3), -1)])
def test_what_is_no_label_map_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(UserError, match="one channel and values 0 to 255"):
        SaveImageMaskd("pred", tmp_path)({"pred": prediction(array, "a.png")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "stored"), [("a.nii.gz", [4, 6, 5]), ("a.png", [6, 4])], ids=["volume", "picture"])
def test_prediction_that_was_not_inverted_is_refused(tmp_path: Path, name: str, stored: list[int]) -> None:
    shape = stored[::-1] if name.endswith("png") else stored
    save = SaveImageMaskd("pred", tmp_path)
    mask = prediction(np.zeros((1, *shape), np.uint8), name)
    mask.meta["spatial_shape"] = np.asarray(stored)
    save({"pred": mask})
    other = prediction(np.zeros((1, *shape[::-1]), np.uint8), name)
    other.meta["spatial_shape"] = np.asarray(stored)
    with pytest.raises(UserError, match="put Invertd"):
        save({"pred": other})


def test_prediction_without_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lost its metadata"):
        SaveImageMaskd("pred", tmp_path)({"pred": torch.zeros(1, 2, 2)})


def test_embedding_file(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(4, 2, 3, 5)).astype(np.float32)
    SaveEmbeddingd("pred", tmp_path)({"pred": prediction(features, "case.nii.gz")})
    with np.load(tmp_path / "case.npz") as stored:
        np.testing.assert_array_equal(stored["feature_map"], features)
        np.testing.assert_allclose(stored["embedding"], features.mean((1, 2, 3)), rtol=1e-5)
