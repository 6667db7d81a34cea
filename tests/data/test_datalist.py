"""The datalist: validation, reading, and what it refuses."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from lvmmed_monai.data import datalist as module
from lvmmed_monai.data.datalist import (
    datalist_labels,
    datalist_modality,
    load_items,
    load_pool,
    read_datalist,
    summarise,
    validate_datalist,
    write_datalist,
)
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import sha256_file, write_json

LABELS = {"0": "background", "1": "liver"}


def _good() -> dict[str, Any]:
    return {
        "format": "lvmmed-datalist/1",
        "name": "small",
        "task": "segmentation",
        "modality": "CT",
        "labels": dict(LABELS),
        "flip_safe": True,
        "training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz", "subject": "s1"}],
        "validation": [{"image": "images/b.nii.gz", "label": "labels/b.nii.gz", "subject": "s2"}],
    }


def _volume(path: Path, shape: tuple[int, ...] = (4, 5, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, dtype=np.int16), np.eye(4)), path)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A good datalist with its files."""
    for name in ("images/a", "labels/a", "images/b", "labels/b"):
        _volume(tmp_path / f"{name}.nii.gz")
    write_datalist(tmp_path / "datalist.json", _good())
    return tmp_path / "datalist.json"


class TestValidation:
    def test_good_example_has_no_problem(self) -> None:
        assert validate_datalist(_good()) == []

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"format": "lvmmed-datalist/9"}, "format: expected"),
            ({"name": ""}, "name: expected a text"),
            ({"task": "guessing"}, "task: expected one of"),
            ({"modality": "XA"}, "modality: expected one of"),
            ({"flip_safe": "yes"}, "flip_safe: expected true or false"),
            ({"training": {}}, "training: expected a list"),
            ({"training": [], "validation": []}, "no items"),
            ({"labels": None}, "needs a label map"),
            ({"labels": ["background"]}, "labels: expected names by number"),
            ({"labels": {"0": "background", "2": "liver"}}, "without gaps"),
            ({"labels": {"1": "liver"}}, "without gaps"),
            ({"labels": {"0": "liver", "1": "background"}}, "0 must be 'background'"),
            ({"labels": {"0": "background", "1": "a", "2": "a"}}, "used twice"),
            ({"training": ["images/a.nii.gz"]}, "training[0].expected an object"),
            ({"training": [{"label": "l.nii.gz", "subject": "s"}]}, "training[0].image: expected a path"),
            ({"training": [{"image": [], "label": "l.nii.gz", "subject": "s"}]}, "training[0].image"),
            ({"training": [{"image": "i.nii.gz", "subject": "s"}]}, "training[0].label: expected a path"),
            ({"training": [{"image": "i.nii.gz", "label": 1, "subject": "s"}]}, "training[0].label: expected a path"),
            ({"training": [{"image": "i.nii.gz", "label": "l.nii.gz"}]}, "training[0].subject"),
        ],
    )
    def test_bad_examples(self, change: dict[str, Any], problem: str) -> None:
        problems = validate_datalist({**_good(), **change})
        assert any(problem in text for text in problems), problems

    def test_not_an_object(self) -> None:
        assert validate_datalist([]) == ["expected an object, got list"]

    def test_subject_in_two_sections(self) -> None:
        datalist = _good()
        datalist["validation"][0]["subject"] = "s1"
        assert validate_datalist(datalist) == ["subject 's1' is in training and in validation"]

    def test_image_that_stands_twice(self) -> None:
        datalist = _good()
        datalist["training"].append(copy.deepcopy(datalist["training"][0]))
        assert validate_datalist(datalist) == ["image 'images/a.nii.gz' stands twice"]

    @pytest.mark.parametrize(
        ("label", "valid"), [(1, True), (2, False), ("1", False), (True, False), ([0, 1.5], True), ([], False)]
    )
    def test_classes(self, label: object, valid: bool) -> None:
        items = [{"image": "a.png", "label": label, "subject": "s"}]
        datalist = {**_good(), "task": "classification", "labels": {"0": "no", "1": "yes"}, "training": items}
        del datalist["validation"]
        assert (validate_datalist(datalist) == []) is valid

    @pytest.mark.parametrize(
        ("box", "label", "valid"),
        [
            ([[0, 0, 3, 4]], [1], True),
            ([], [], True),
            ([[0, 0, 3, 4]], [], False),
            ([[0, 0, 0, 4]], [1], False),
            ([[0, 0, 3]], [1], False),
            ([[0, 0, 3, float("nan")]], [1], False),
            ([[0, 0, 3, 4]], [2], False),
            (None, [1], False),
        ],
    )
    def test_boxes(self, box: object, label: object, valid: bool) -> None:
        items = [{"image": "a.png", "box": box, "label": label, "subject": "s"}]
        datalist = {**_good(), "task": "detection", "labels": {"0": "cell", "1": "clot"}, "training": items}
        del datalist["validation"]
        assert (validate_datalist(datalist) == []) is valid

    def test_unlabelled_needs_no_labels(self) -> None:
        items = [{"image": ["t1.nii.gz", "t2.nii.gz"], "subject": "s"}]
        datalist = {"format": module.FORMAT, "name": "n", "task": "unlabelled", "modality": "MR", "test": items}
        assert validate_datalist(datalist) == []


class TestReading:
    def test_round_trip_fills_absent_sections(self, stored: Path) -> None:
        assert read_datalist(stored) == {**_good(), "test": []}

    def test_problem_is_one_sentence(self, tmp_path: Path) -> None:
        write_json(tmp_path / "d.json", {**_good(), "task": "guessing", "modality": "XA"})
        with pytest.raises(UserError, match=r"not a valid datalist \(task: .* and 1 more\); .*d.json; "):
            read_datalist(tmp_path / "d.json")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="datalist not found"):
            read_datalist(tmp_path / "none.json")

    def test_writing_refuses_what_is_not_valid(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="task"):
            write_datalist(tmp_path / "d.json", {**_good(), "task": "guessing"})
        assert not (tmp_path / "d.json").exists()

    def test_facts(self, stored: Path) -> None:
        assert datalist_labels(stored) == LABELS
        assert datalist_modality(stored) == "CT"
        counts = {"training": 1, "validation": 1, "test": 0}
        assert summarise(stored) == {"name": "small", "sha256": sha256_file(stored), "counts": counts}

    def test_monai_reads_it(self, stored: Path) -> None:
        from monai.data import load_decathlon_datalist

        for section in ("training", "validation"):
            theirs = load_decathlon_datalist(stored, is_segmentation=True, data_list_key=section)
            assert theirs == load_items(stored, section)


class TestItems:
    def test_paths_are_absolute_from_any_working_directory(
        self, stored: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        (item,) = load_items(
            stored, "training", task="segmentation", labels={0: "background", 1: "liver"}, modality="CT"
        )
        assert item["image"] == str(stored.parent / "images" / "a.nii.gz")
        assert item["label"] == str(stored.parent / "labels" / "a.nii.gz")
        assert item["subject"] == "s1"

    def test_missing_images_are_counted(self, stored: Path) -> None:
        (stored.parent / "images" / "a.nii.gz").unlink()
        with pytest.raises(DataError, match=r"^1 image file is missing, the first is a.nii.gz; .*; "):
            load_items(stored, "training")
        assert len(load_items(stored, "training", check_files=False)) == 1

    def test_missing_label(self, stored: Path) -> None:
        (stored.parent / "labels" / "a.nii.gz").unlink()
        with pytest.raises(DataError, match="1 label file is missing"):
            load_items(stored, "training")

    def test_label_of_another_shape(self, stored: Path) -> None:
        _volume(stored.parent / "labels" / "a.nii.gz", (4, 5, 7))
        with pytest.raises(DataError, match=r"shape of a.nii.gz is \(4, 5, 7\), of its image a.nii.gz \(4, 5, 6\)"):
            load_items(stored, "training")

    def test_label_of_another_shape_2d(self, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "a.png")
        Image.fromarray(np.zeros((6, 4), np.uint8)).save(tmp_path / "m.png")
        with pytest.raises(DataError, match=r"\(4, 6\).*\(6, 4\)"):
            load_items([{"image": str(tmp_path / "a.png"), "label": str(tmp_path / "m.png")}], "test")

    def test_broken_header(self, stored: Path) -> None:
        (stored.parent / "labels" / "a.nii.gz").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"image cannot be read .*a.nii.gz"):
            load_items(stored, "training")

    def test_labels_that_the_bundle_does_not_have(self, stored: Path) -> None:
        with pytest.raises(UserError, match=r"1 liver.*1 spleen.*; run: lvmmed bundles copy NAME DEST --datalist "):
            load_items(stored, "training", labels={"0": "background", "1": "spleen"})

    def test_modality_of_another_bundle(self, stored: Path) -> None:
        with pytest.raises(UserError, match=r"modality CT differs from the bundle's MR; .*; run: lvmmed bundles copy"):
            load_items(stored, "training", modality="MR")

    def test_task_of_another_bundle(self, stored: Path) -> None:
        with pytest.raises(UserError, match="the datalist is for segmentation, the bundle for detection"):
            load_items(stored, "training", task="detection")

    def test_unknown_section(self, stored: Path) -> None:
        with pytest.raises(UserError, match="unknown section 'train'"):
            load_items(stored, "train")

    def test_plain_items(self, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(stored.parent)
        (item,) = load_items([{"image": "images/a.nii.gz", "label": "labels/a.nii.gz", "note": 3}], "training")
        assert item == {
            "image": str(stored.parent / "images/a.nii.gz"),
            "label": str(stored.parent / "labels/a.nii.gz"),
            "note": 3,
        }
        assert load_items([], "training") == []
        with pytest.raises(UserError, match="item 0 has no image"):
            load_items([{"label": "x"}], "training")

    def test_channels_must_agree(self, tmp_path: Path) -> None:
        _volume(tmp_path / "t1.nii.gz")
        _volume(tmp_path / "t2.nii.gz", (4, 5, 5))
        with pytest.raises(DataError, match=r"shape of t2.nii.gz"):
            load_items([{"image": [str(tmp_path / "t1.nii.gz"), str(tmp_path / "t2.nii.gz")]}], "training")


class TestPool:
    def test_items_of_several_datalists(self, stored: Path, tmp_path: Path) -> None:
        other = {"format": module.FORMAT, "name": "films", "task": "unlabelled", "modality": "XR"}
        other["training"] = [{"image": "film.png", "subject": "p"}]
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "film.png")
        write_datalist(tmp_path / "films.json", other)
        pool = load_pool([stored, tmp_path / "films.json"], "training")
        assert [(item["modality"], item["source"], item["flip_safe"]) for item in pool] == [
            ("CT", "small", True),
            ("XR", "films", False),
        ]

    def test_labels_are_not_looked_at(self, stored: Path) -> None:
        (stored.parent / "labels" / "a.nii.gz").unlink()
        assert len(load_pool(stored, "training")) == 1
        (stored.parent / "images" / "a.nii.gz").unlink()
        with pytest.raises(DataError, match="1 image file is missing"):
            load_pool(stored, "training")

    def test_no_datalist(self) -> None:
        with pytest.raises(UserError, match="no datalist given"):
            load_pool([], "training")


def test_imports_without_torch() -> None:
    modules = ("", ".datalist", ".manifest", ".splits", ".import_source", ".check", ".images")
    names = [f"lvmmed_monai.data{name}" for name in modules] + ["lvmmed_monai.metrics"]
    code = (
        f"import sys, json, {', '.join(names)}; print(json.dumps([m for m in ('torch', 'monai') if m in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []


def test_unknown_name_of_the_room() -> None:
    import lvmmed_monai.data as room

    assert room.check_datalist.__module__ == "lvmmed_monai.data.check"
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = room.nothing_here
