"""Each manifest on the set that it describes."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmmed_monai.data.check import check_datalist
from lvmmed_monai.data.datalist import load_items, read_datalist
from lvmmed_monai.data.import_source import import_source
from lvmmed_monai.data.manifest import read_manifest
from lvmmed_monai.files import write_json

pytestmark = pytest.mark.real_data
Folder = Callable[[str], Path]
SECTIONS = ("training", "validation", "test")
# Of manifests that do not bear the name of their folder.
FOLDERS = {"busi_classes": "busi_ultrasound", "montgomery_cxr_classes": "montgomery_cxr_lungs"}


def _import(real_data: Folder, tmp_path: Path, name: str) -> dict[str, Any]:
    return import_source(name, real_data(name), tmp_path)


def _items(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for section in SECTIONS for item in load_items(summary["datalists"][0], section)]


def _dropped(summary: dict[str, Any]) -> dict[str, int]:
    return {row["code"]: row["count"] for row in summary["dropped"]}


@pytest.mark.parametrize(
    ("name", "counts", "dropped"),
    [
        ("bccd", (130, 30, 40), {"SRC-004": 2}),
        ("busi_classes", (104, 23, 21), {"SRC-009": 148}),
        ("busi_ultrasound", (104, 23, 21), {}),
        ("hrf_retina_av", (18, 6, 6), {}),
        ("isic_dermoscopy", (278, 61, 61), {"SRC-003": 150}),
        ("montgomery_cxr_classes", (70, 15, 15), {"SRC-009": 100}),
        ("montgomery_cxr_lungs", (70, 15, 15), {}),
        ("msd_hippocampus", (120, 25, 25), {"SRC-001": 1, "SRC-002": 1}),
        ("pneumoniamnist", (4708, 524, 624), {}),
    ],
)
def test_counts(
    real_data: Folder, tmp_path: Path, name: str, counts: tuple[int, int, int], dropped: dict[str, int]
) -> None:
    summary = import_source(name, real_data(FOLDERS.get(name, name)), tmp_path)
    assert summary["counts"] == {"datalist.json": dict(zip(SECTIONS, counts, strict=True))}
    assert _dropped(summary) == dropped
    assert len(_items(summary)) == sum(counts)


def test_bccd_boxes(real_data: Folder, tmp_path: Path) -> None:
    summary = _import(real_data, tmp_path, "bccd")
    labels = Counter(label for item in _items(summary) for label in item["label"])
    assert sum(labels.values()) == 2767
    assert labels == {0: 2343, 1: 206, 2: 218}
    (row,) = summary["dropped"]
    assert [Path(name).stem for name in row["examples"]] == ["BloodImage_00338", "BloodImage_00343"]
    assert check_datalist(summary["datalists"][0])["findings"] == []


@pytest.mark.parametrize(
    ("name", "counts"), [("busi_classes", {0: 50, 1: 48, 2: 50}), ("montgomery_cxr_classes", {0: 58, 1: 42})]
)
def test_classes_and_masks_divide_the_same_images_alike(
    real_data: Folder, tmp_path: Path, name: str, counts: dict[int, int]
) -> None:
    drawn = FOLDERS[name]
    by_class = import_source(name, real_data(drawn), tmp_path / name)
    by_mask = import_source(drawn, real_data(drawn), tmp_path / drawn)
    assert Counter(item["label"] for item in _items(by_class)) == counts
    for section in SECTIONS:
        by_list = [load_items(summary["datalists"][0], section) for summary in (by_class, by_mask)]
        assert {item["subject"] for item in by_list[0]} == {item["subject"] for item in by_list[1]}


def test_isic_classes_and_defects(real_data: Folder, tmp_path: Path) -> None:
    summary = _import(real_data, tmp_path / "kept", "isic_dermoscopy")
    assert Counter(item["label"] for item in _items(summary)) == {0: 279, 1: 121}
    report = check_datalist(summary["datalists"][0])
    # Two of the images are the same file under two numbers, and the set's own split parts them.
    assert [(row["code"], row["item"]) for row in report["findings"]] == [("CHK-009", "ISIC_0000280.jpg")]

    everything = read_manifest("isic_dermoscopy") | {"split": {"section": "training"}}
    del everything["exclude"]
    write_json(tmp_path / "everything.json", everything)
    summary = import_source(tmp_path / "everything.json", real_data("isic_dermoscopy"), tmp_path / "all")
    findings = check_datalist(summary["datalists"][0])["findings"]
    with (real_data("isic_dermoscopy") / "defective.csv").open() as stream:
        defective = {row["image"] for row in csv.DictReader(stream)}
    assert {row["item"] for row in findings if row["code"] in ("CHK-008", "CHK-012")} == defective
    assert sum(row["code"] == "CHK-008" for row in findings) == 142


def test_busi_masks(real_data: Folder, tmp_path: Path) -> None:
    from PIL import Image

    summary = _import(real_data, tmp_path, "busi_ultrasound")
    masks = [np.asarray(Image.open(item["label"])) for item in _items(summary)]
    assert {int(value) for mask in masks for value in np.unique(mask)} == {0, 1}
    assert sum(not mask.any() for mask in masks) == 50
    assert check_datalist(summary["datalists"][0])["findings"] == []


@pytest.mark.parametrize("name", ["hrf_retina_av", "montgomery_cxr_lungs", "msd_hippocampus"])
def test_nothing_wrong(real_data: Folder, tmp_path: Path, name: str) -> None:
    summary = _import(real_data, tmp_path, name)
    assert check_datalist(summary["datalists"][0])["findings"] == []


def test_montgomery_must_not_be_mirrored(real_data: Folder, tmp_path: Path) -> None:
    datalist = read_datalist(_import(real_data, tmp_path, "montgomery_cxr_lungs")["datalists"][0])
    assert datalist["flip_safe"] is False
    assert datalist["labels"] == {"0": "background", "1": "right_lung", "2": "left_lung"}


def test_hippocampus_is_read_by_monai(real_data: Folder, tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist

    summary = _import(real_data, tmp_path, "msd_hippocampus")
    theirs = load_decathlon_datalist(summary["datalists"][0], is_segmentation=True, data_list_key="training")
    assert theirs == load_items(summary["datalists"][0], "training")
    examples = [name for row in summary["dropped"] for name in row["examples"]]
    assert examples == [
        "odd/hippocampus_118_image_without_label.nii.gz",
        "odd/hippocampus_281_label_without_image.nii.gz",
    ]


def test_pneumonia_classes_and_repeats(real_data: Folder, tmp_path: Path) -> None:
    from PIL import Image

    summary = _import(real_data, tmp_path, "pneumoniamnist")
    classes = {
        section: Counter(item["label"] for item in load_items(summary["datalists"][0], section)) for section in SECTIONS
    }
    assert classes == {
        "training": {0: 1214, 1: 3494},
        "validation": {0: 135, 1: 389},
        "test": {0: 234, 1: 390},
    }
    item = load_items(summary["datalists"][0], "test")[17]
    with np.load(real_data("pneumoniamnist") / "pneumoniamnist.npz") as arrays:
        np.testing.assert_array_equal(np.asarray(Image.open(item["image"])), arrays["test_images"][17])
        assert item["label"] == arrays["test_labels"][17, 0]
    found = Counter(row["code"] for row in check_datalist(summary["datalists"][0])["findings"])
    # 18 + 3 repeats within a section are known; 8 validation images stand in the training section too.
    # One film of 28 x 28 falls below the ratio of a smeared image: a warning, not an error.
    assert found == {"CHK-010": 21, "CHK-009": 8, "CHK-012": 1}


@pytest.mark.parametrize(
    ("name", "counts", "dropped"),
    [
        ("ct_volumes_nifti", {"ct": ("training", 5), "other": ("training", 1)}, {}),
        (
            "totalsegmentator_example",
            {"ct": ("training", 1), "mr": ("training", 1)},
            {"SRC-002": 1, "SRC-009": 20},
        ),
        ("sts_ct_mr_nifti", {"ct": ("validation", 1), "mr": ("validation", 1), "pet": ("validation", 1)}, {}),
    ],
)
def test_sources_of_several_modalities(
    real_data: Folder, tmp_path: Path, name: str, counts: dict[str, tuple[str, int]], dropped: dict[str, int]
) -> None:
    summary = _import(real_data, tmp_path, name)
    expected = {
        f"datalist_{key}.json": {**dict.fromkeys(SECTIONS, 0), section: count}
        for key, (section, count) in counts.items()
    }
    assert summary["counts"] == expected
    assert _dropped(summary) == dropped
    for path in summary["datalists"]:
        assert check_datalist(path)["findings"] == []


def test_head_that_is_not_in_hounsfield_units_is_no_ct(real_data: Folder, tmp_path: Path) -> None:
    summary = _import(real_data, tmp_path, "ct_volumes_nifti")
    images = {
        Path(path).name: [Path(item["image"]).name for item in read_datalist(path)["training"]]
        for path in summary["datalists"]
    }
    assert images["datalist_other.json"] == ["ct_pitch_head_oblique.nii.gz"]
    assert len(images["datalist_ct.json"]) == 5
