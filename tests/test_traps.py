"""Known traps of MONAI that our transforms and configurations must not fall into."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Invertd
from monai.utils import set_determinism
from PIL import Image

from lvmmed_monai.cli._bundle_files import bundle_folders
from lvmmed_monai.errors import UserError
from lvmmed_monai.metrics import dice_per_class
from lvmmed_monai.transforms import SaveImageMaskd

FOLDERS = bundle_folders()
SEGMENTATION = [folder for folder in FOLDERS if "segmentation" in folder.name]
SLICES = [folder for folder in SEGMENTATION if folder.name.endswith("2d")]


def ids(folder: Path) -> str:
    return folder.name


def parser(folder: Path, config: str, **overrides: Any) -> ConfigParser:
    smoke = json.loads((folder / "params.json").read_text())["smoke"]
    result = ConfigParser()
    result.read_config(str(folder / "configs" / f"{config}.json"))
    settings = {**smoke["all"], **(smoke["train"] if config == "train" else {}), "bundle_root": "nowhere", "amp": False}
    result.update({**settings, "device": "$torch.device('cpu')", **overrides})
    return result


def _items(value: Any) -> Iterator[dict]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _items(item)
    elif isinstance(value, list):
        for item in value:
            yield from _items(item)


@pytest.fixture
def volume(tmp_path: Path) -> dict[str, str]:
    """A CT of noise with one bright cuboid, and its label."""
    random = np.random.default_rng(0)
    image = random.normal(-200, 80, (36, 34, 12)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[10:20, 8:22, 3:9] = 1
    image[label > 0] += 300
    affine = np.array([[0, -3, 0, 7.5], [-3, 0, 0, 4], [0, 0, 5, -9], [0, 0, 0, 1.0]])
    paths = {"image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "b.nii.gz")}
    nib.save(nib.Nifti1Image(image, affine), paths["image"])
    nib.save(nib.Nifti1Image(label, affine), paths["label"])
    return paths


# -- 4.4: Spacingd and entries beside the image ------------------------------------------------------------


def test_no_configuration_uses_a_class_with_a_trap() -> None:
    for folder in FOLDERS:
        for path in (folder / "configs").glob("*.json"):
            used = {item["_target_"] for item in _items(json.loads(path.read_text())) if "_target_" in item}
            assert not used & {
                "monai.transforms.Spacingd",  # fails beside a string key
                "monai.transforms.LoadImaged",  # lays pictures on their side
                "torch.utils.data.DataLoader",  # repeats random numbers in its workers
                "monai.data.PersistentDataset",  # keeps stale items
                "monai.handlers.CheckpointLoader",  # says nothing where nothing fits, if not strict
                "monai.handlers.MeanDice",  # leaves out empty targets
            }, path


@pytest.mark.parametrize("folder", SEGMENTATION, ids=ids)
def test_strings_beside_the_image_are_left_alone(folder: Path, volume: dict[str, str]) -> None:
    extra = {"image_path": volume["image"], "image_id": "x", "image_slice": 3}
    config = parser(folder, "inference", **({"pixel_spacing": 4.0} if folder in SLICES else {}))
    data = config.get_parsed_content("preprocessing")({"image": volume["image"], **extra})
    assert {key: data[key] for key in extra} == extra


# -- 4.3: pictures lying on their side ---------------------------------------------------------------------


@pytest.mark.parametrize("folder", SLICES, ids=ids)
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
def test_pictures_are_read_and_written_upright(folder: Path, colour: bool, tmp_path: Path) -> None:
    rows, columns = 40, 60
    pixels = np.random.default_rng(0).integers(
        0, 256, (rows, columns, 3) if colour else (rows, columns), dtype=np.uint8
    )
    Image.fromarray(pixels).save(tmp_path / "a.png")
    config = parser(folder, "inference", modality="COLOR", output_dir=str(tmp_path / "out"))
    data = config.get_parsed_content("preprocessing")({"image": str(tmp_path / "a.png")})
    assert data["image"].shape == (3, 1, rows, columns)
    expected = pixels.transpose(2, 0, 1) if colour else np.stack([pixels] * 3)
    np.testing.assert_allclose(data["image"][:, 0].numpy(), expected / 255, atol=1e-6)

    wanted = np.zeros((rows, columns), np.uint8)
    wanted[5:9, 30:55] = 2
    classes = torch.nn.functional.one_hot(torch.from_numpy(wanted).long(), 8).movedim(-1, 0)[:, None].float()
    data["pred"] = data["image"][:1].new_empty((8, 1, rows, columns)).copy_(classes * 20)
    data["pred"].meta, data["pred"].applied_operations = data["image"].meta, data["image"].applied_operations
    config.get_parsed_content("postprocessing")(data)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a_seg.png")), wanted)


# -- 4.4: silent Invertd -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", SEGMENTATION, ids=ids)
def test_prediction_without_metadata_still_comes_back(folder: Path, volume: dict[str, str], tmp_path: Path) -> None:
    config = parser(folder, "inference", output_dir=str(tmp_path / "out"))
    data = config.get_parsed_content("preprocessing")({"image": volume["image"]})
    data["pred"] = torch.rand(8, *data["image"].shape[1:])  # a plain tensor
    config.get_parsed_content("postprocessing")(data)
    written, source = nib.load(tmp_path / "out" / "a_seg.nii.gz"), nib.load(volume["image"])
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.affine, source.affine)


@pytest.mark.parametrize("folder", SEGMENTATION, ids=ids)
def test_prediction_that_was_not_inverted_is_refused(folder: Path, volume: dict[str, str], tmp_path: Path) -> None:
    config = parser(folder, "inference")
    data = config.get_parsed_content("preprocessing")({"image": volume["image"]})
    data["pred"] = data["image"][:1] > 2
    with pytest.raises(UserError, match="put Invertd"):
        SaveImageMaskd("pred", tmp_path / "out")(data)


@pytest.mark.parametrize("folder", SEGMENTATION, ids=ids)
@pytest.mark.parametrize("config", ["inference", "evaluate"])
def test_inversion_uses_the_transforms_that_were_applied(folder: Path, config: str) -> None:
    overlay = json.loads((folder / "configs" / f"{config}.json").read_text())
    inverters = [item for item in _items(overlay) if item.get("_target_") == "monai.transforms.Invertd"]
    expected = "@preprocessing" if config == "inference" else "@validate#preprocessing"
    assert [item["transform"] for item in inverters] == [expected]
    assert inverters[0]["nearest_interp"] is False


def test_saving_without_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lost its metadata"):
        SaveImageMaskd("pred", tmp_path)({"pred": torch.zeros(1, 3, 3, 3)})


@pytest.mark.parametrize("folder", SEGMENTATION, ids=ids)
def test_inverted_labels_are_whole_numbers(folder: Path, volume: dict[str, str]) -> None:
    config = parser(folder, "inference")
    preprocessing = config.get_parsed_content("preprocessing")
    data = preprocessing({"image": volume["image"]})
    data["pred"] = torch.cat([data["image"][:1], 1 - data["image"][:1]])
    steps = [
        one for one in config.get_parsed_content("postprocessing").transforms if not isinstance(one, SaveImageMaskd)
    ]
    result = Compose(steps)(data)["pred"]
    assert any(isinstance(one, Invertd) for one in steps)
    assert result.shape == (1, 36, 34, 12)
    assert set(result.unique().tolist()) <= {0, 1}


# -- 4.1: random numbers repeated by workers ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("folder", SEGMENTATION, ids=ids)
def test_samples_differ_between_workers_and_epochs(folder: Path, workers: int, volume: dict[str, str]) -> None:
    overrides = {"train#dataset#data": [volume] * 4, "num_workers": workers, "batch_size": 1, "num_samples": 2}
    config = parser(folder, "train", **overrides)
    set_determinism(0)
    loader = config.get_parsed_content("train#dataloader")
    seen = [patch.numpy().tobytes() for _ in range(2) for batch in loader for patch in batch["image"]]
    set_determinism(None)
    assert len(seen) == 16
    assert len(set(seen)) == 16


# -- 4.8: empty targets ------------------------------------------------------------------------------------


def test_false_positive_on_an_empty_target_counts() -> None:
    labels = {"0": "background", "1": "organ", "2": "lesion"}
    target = np.zeros((4, 4), np.uint8)
    target[:2] = 1
    pred = target.copy()
    pred[3, 3] = 2
    assert dice_per_class(pred, target, labels) == {"organ": 1.0, "lesion": 0.0}
    assert dice_per_class(target, target, labels) == {"organ": 1.0, "lesion": None}


@pytest.mark.parametrize("folder", SEGMENTATION, ids=ids)
def test_model_selection_sees_false_positives(folder: Path) -> None:
    config = parser(folder, "train")
    metric = config.get_parsed_content("validate#key_metric")["val_mean_dice"].metric_fn
    target = torch.zeros(1, 4, 4, 4)
    target[0, :2] = 1
    pred = target.clone()
    pred[0, 3, 3, 3] = 2
    metric([target], [target])
    perfect = float(metric.aggregate())
    metric.reset()
    metric([pred], [target])
    assert float(metric.aggregate()) < perfect == 1.0
