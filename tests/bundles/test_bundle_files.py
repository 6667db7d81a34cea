"""Copying bundles and listing them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvmmed_monai.cli._bundle_files import build_bundle, bundle_folders, copy_bundle
from lvmmed_monai.cli.bundles import Action, bundles
from lvmmed_monai.errors import UserError


def write_datalist(folder: Path, task: str = "segmentation") -> Path:
    (folder / "a.nii.gz").touch()
    labels = {"0": "background", "1": "anterior", "2": "posterior"}
    content = {"format": "lvmmed-datalist/1", "name": "set", "task": task, "modality": "MR", "flip_safe": False}
    item = {"image": "a.nii.gz", "subject": "s"}
    if task == "segmentation":
        content["labels"], item["label"] = labels, "a.nii.gz"
    path = folder / "datalist.json"
    path.write_text(json.dumps({**content, "training": [item], "validation": [], "test": []}))
    return path


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / "configs" / f"{name}.json").read_text())


def test_copy_takes_labels_and_modality_of_a_datalist(tmp_path: Path) -> None:
    copy = copy_bundle("lvmmed_segmentation_2d", tmp_path / "work", write_datalist(tmp_path))
    assert copy == tmp_path / "work" / "lvmmed_segmentation_2d"
    labels = {"0": "background", "1": "anterior", "2": "posterior"}
    for name in ("train", "inference"):
        assert read(copy, name)["labels"] == labels
        assert read(copy, name)["modality"] == "MR"
    formats = read(copy, "metadata")["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == labels
    assert formats["outputs"]["pred"]["num_channels"] == 3
    assert formats["inputs"]["image"]["modality"] == "MR"


@pytest.mark.parametrize("folder", bundle_folders(), ids=lambda folder: folder.name)
def test_copy_is_complete_and_holds_no_runs(folder: Path, tmp_path: Path) -> None:
    copy = copy_bundle(folder.name, tmp_path / folder.name)
    assert copy == tmp_path / folder.name
    found = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    configs = {path.stem for path in (folder / "configs").glob("*.json")}
    assert {"evaluate", "inference", "metadata", "multi_gpu_train", "train"} <= configs
    assert found == {"LICENSE", "docs/README.md", "configs/logging.conf", *(f"configs/{one}.json" for one in configs)}


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no bundle 'other'"):
        copy_bundle("other", tmp_path)
    with pytest.raises(UserError, match="labels are taken from one for segmentation"):
        copy_bundle("voco_segmentation_3d", tmp_path / "work", write_datalist(tmp_path, "unlabelled"))
    with pytest.raises(UserError, match="has no labels"):
        copy_bundle("voco_pretrain", tmp_path / "work", write_datalist(tmp_path))
    assert not list((tmp_path / "work").iterdir())
    copy_bundle("voco_pretrain", tmp_path / "work")
    with pytest.raises(UserError, match="there already"):
        copy_bundle("voco_pretrain", tmp_path / "work")


def test_command_lists_every_bundle_and_wants_both_names_for_a_copy(capsys) -> None:
    bundles(Action.list)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [folder.name for folder in bundle_folders()]
    with pytest.raises(UserError, match="name both"):
        bundles(Action.copy, "voco_pretrain")


def test_build_names_what_changed(tmp_path: Path) -> None:
    source = next(folder for folder in bundle_folders() if folder.name == "voco_pretrain")
    root = tmp_path / "bundles"
    (root / source.name).mkdir(parents=True)
    (root / "_shared").symlink_to(source.parent / "_shared")
    (root / source.name / "params.json").write_text((source / "params.json").read_text())
    assert {path.name for path in build_bundle(root / source.name)} >= {"train.json", "b.json", "LICENSE"}
    assert build_bundle(root / source.name) == []
    path = root / source.name / "configs" / "train.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert build_bundle(root / source.name) == [path]
    assert read(root / source.name, "train") == read(source, "train")
