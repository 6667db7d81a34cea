"""From a manifest and a folder to a datalist: each layout, and everything that is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from lvmmed_monai.data.datalist import load_items, read_datalist
from lvmmed_monai.data.import_source import import_source
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import read_json, write_json

BASE: dict[str, Any] = {
    "format": "lvmmed-manifest/1",
    "id": "small",
    "name": "Small",
    "modality": "US",
    "spatial_dims": 2,
    "task": "segmentation",
    "licence": {"name": "CC0-1.0", "stated_by": "the authors"},
    "sources": [],
    "citation": None,
    "flip_safe": True,
    "labels": {"0": "background", "1": "lesion"},
    "layout": {"kind": "image_label_folders", "image": "images/{id}.png", "label": "masks/{id}.png"},
    "split": {"fractions": [0.6, 0.2, 0.2]},
}


def _png(path: Path, value: int = 0, shape: tuple[int, int] = (6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.uint8)
    array[1:3, 2:5] = value
    Image.fromarray(array).save(path)


def _pairs(root: Path, *names: str, value: int = 1) -> None:
    for name in names:
        _png(root / "images" / f"{name}.png", 200)
        _png(root / "masks" / f"{name}.png", value)


def _run(tmp_path: Path, **change: Any) -> dict[str, Any]:
    manifest = {key: value for key, value in {**BASE, **change}.items() if value is not None or key == "citation"}
    write_json(tmp_path / "manifest.json", manifest)
    return import_source(tmp_path / "manifest.json", tmp_path / "root", tmp_path / "out")


def _dropped(summary: dict[str, Any]) -> dict[str, tuple[int, list[str]]]:
    return {row["code"]: (row["count"], row["examples"]) for row in summary["dropped"]}


class TestFolders:
    def test_pairs_and_split(self, tmp_path: Path) -> None:
        _pairs(tmp_path / "root", "a", "b", "c", "d", "e")
        summary = _run(tmp_path)
        assert summary["counts"] == {"datalist.json": {"training": 3, "validation": 1, "test": 1}}
        assert summary["dropped"] == []
        datalist = read_datalist(summary["datalists"][0])
        assert (datalist["name"], datalist["modality"], datalist["flip_safe"]) == ("small", "US", True)
        (item,) = load_items(summary["datalists"][0], "test", task="segmentation", labels=BASE["labels"], modality="US")
        assert Path(item["image"]).parent == tmp_path / "root" / "images"
        assert item["subject"] == Path(item["image"]).stem

    def test_values_of_labels_are_mapped(self, tmp_path: Path) -> None:
        _pairs(tmp_path / "root", "a", value=255)
        _pairs(tmp_path / "root", "odd", value=128)
        layout = {**BASE["layout"], "label_values": {"0": 0, "255": 1}}
        summary = _run(tmp_path, layout=layout, split={"section": "training"})
        (item,) = load_items(summary["datalists"][0], "training")
        assert Path(item["label"]) == tmp_path / "out" / "labels" / "a.png"
        expected = np.asarray(Image.open(tmp_path / "root" / "masks" / "a.png")) // 255
        np.testing.assert_array_equal(np.asarray(Image.open(item["label"])), expected)
        assert read_datalist(summary["datalists"][0])["training"][0]["label"] == "labels/a.png"
        assert _dropped(summary) == {"SRC-006": (1, ["masks/odd.png"])}

    def test_values_of_volume_labels_are_mapped(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        affine = np.diag([2.0, 2.0, 3.0, 1.0])
        mask = np.zeros((3, 4, 5), np.int16)
        mask[1, 2, 3] = 600
        nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "root" / "v_seg.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "root" / "v_img.nii.gz")
        layout = {"kind": "image_label_folders", "image": "{id}_img.nii.gz", "label": "{id}_seg.nii.gz"}
        layout["label_values"] = {"0": 0, "600": 1}
        summary = _run(tmp_path, layout=layout, split={"section": "test"}, modality="CT", spatial_dims=3)
        (item,) = load_items(summary["datalists"][0], "test")
        written = nibabel.load(item["label"])
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), mask // 600)
        np.testing.assert_array_equal(written.affine, affine)

    def test_what_is_left_out_is_told(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        _pairs(root, "a", "b", "out", "unlisted")
        _png(root / "images" / "alone.png")
        _png(root / "masks" / "orphan.png")
        _pairs(root, "wide")
        _png(root / "masks" / "wide.png", 1, (6, 9))
        _pairs(root, "broken")
        (root / "images" / "broken.png").write_bytes(b"no picture")
        (root / "more").mkdir()
        (root / "more" / "scan.dcm").write_bytes(b"x")
        (root / "README.md").write_text("about")
        (root / "bad.csv").write_text("name,why\nout.png,blurred\n")
        rows = ["a,train", "b,val", "out,test", "wide.png,train", "broken,train"]
        (root / "splits.csv").write_text("\n".join(["file,split", *rows]) + "\n")
        summary = _run(
            tmp_path,
            split={"file": "splits.csv", "item_column": "file", "section_column": "split"},
            exclude=[{"file": "bad.csv", "column": "name", "reason": "blurred"}],
        )
        assert summary["counts"]["datalist.json"] == {"training": 1, "validation": 1, "test": 0}
        assert _dropped(summary) == {
            "SRC-001": (1, ["images/alone.png"]),
            "SRC-002": (1, ["masks/orphan.png"]),
            "SRC-003": (1, ["images/out.png"]),
            "SRC-005": (1, ["images/unlisted.png"]),
            "SRC-008": (2, ["images/broken.png", "images/wide.png"]),
            "SRC-009": (1, ["more/scan.dcm"]),
        }
        qc = read_json(summary["qc"], "qc")
        assert qc["format"] == "lvmmed-qc/1"
        assert qc["series"] == []
        assert qc["files"] == summary["dropped"]
        assert qc["datalists"] == ["datalist.json"]
        assert all({"code", "count", "remedy"} <= row.keys() for row in qc["files"])

    def test_subject_rule(self, tmp_path: Path) -> None:
        _pairs(tmp_path / "root", "p1_a", "p1_b", "p2_a", "p3_a", "stray")
        summary = _run(tmp_path, subject={"pattern": "^(p[0-9]+)_"})
        datalist = read_datalist(summary["datalists"][0])
        subjects = {s: {item["subject"] for item in datalist[s]} for s in ("training", "validation", "test")}
        assert sorted(one for found in subjects.values() for one in found) == ["p1", "p2", "p3"]
        assert _dropped(summary) == {"SRC-010": (1, ["stray"])}

    def test_a_second_import_does_not_move_subjects(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        _pairs(root, *(f"p{number}" for number in range(5)))
        sections = ("training", "validation", "test")
        first = read_datalist(_run(tmp_path)["datalists"][0])
        _pairs(root, *(f"q{number}" for number in range(20)))
        second = read_datalist(_run(tmp_path)["datalists"][0])
        home = {item["subject"]: section for section in sections for item in second[section]}
        assert len(home) == 25
        assert all(home[item["subject"]] == section for section in sections for item in first[section])

    def test_parts_share_one_split(self, tmp_path: Path) -> None:
        for number in range(6):
            for kind in ("ct", "mr"):
                _png(tmp_path / "root" / f"p{number}_{kind}.png", 9)
        parts = [
            {"modality": kind.upper(), "layout": {"kind": "image_label_folders", "image": f"{{id}}_{kind}.png"}}
            for kind in ("ct", "mr")
        ]
        summary = _run(tmp_path, parts=parts, layout=None, task="unlabelled", labels=None)
        assert [Path(path).name for path in summary["datalists"]] == ["datalist_ct.json", "datalist_mr.json"]
        homes = [
            {item["subject"]: section for section in ("training", "validation", "test") for item in datalist[section]}
            for datalist in map(read_datalist, summary["datalists"])
        ]
        assert homes[0] == homes[1]
        assert len(homes[0]) == 6

    def test_labels_beside_images_are_no_images(self, tmp_path: Path) -> None:
        _png(tmp_path / "root" / "a.png", 9)
        _png(tmp_path / "root" / "a_mask.png", 1)
        layout = {"kind": "image_label_folders", "image": "{id}.png", "label": "{id}_mask.png"}
        summary = _run(tmp_path, layout=layout, split={"section": "training"})
        assert summary["counts"]["datalist.json"]["training"] == 1
        assert summary["dropped"] == []


class TestTable:
    LAYOUT = {  # noqa: RUF012
        "kind": "csv_table",
        "file": "labels.csv",
        "image_column": "name",
        "image": "images/{value}",
        "label_columns": ["class"],
    }

    def _table(self, tmp_path: Path, text: str, *images: str) -> None:
        for name in images:
            _png(tmp_path / "root" / "images" / name, 50)
        (tmp_path / "root" / "labels.csv").write_text(text, encoding="utf-8-sig")

    def _import(self, tmp_path: Path, **change: Any) -> dict[str, Any]:
        settings = {
            "task": "classification",
            "layout": self.LAYOUT,
            "labels": {"0": "benign", "1": "malignant"},
            "split": {"file": "labels.csv", "item_column": "name", "section_column": "part"},
        }
        return _run(tmp_path, **{**settings, **change})

    def test_classes_by_name_or_number(self, tmp_path: Path) -> None:
        text = "name,class,part\na.png,malignant,train\nb.png,0,test\nc.png,unsure,train\ngone.png,benign,train\n"
        self._table(tmp_path, text, "a.png", "b.png", "c.png")
        summary = self._import(tmp_path)
        assert load_items(summary["datalists"][0], "training")[0]["label"] == 1
        assert load_items(summary["datalists"][0], "test")[0]["label"] == 0
        assert _dropped(summary) == {"SRC-006": (1, ["images/c.png"]), "SRC-007": (1, ["gone.png"])}

    def test_several_columns_give_numbers(self, tmp_path: Path) -> None:
        self._table(tmp_path, "name,x,y,part\na.png,0,1.5,train\n", "a.png")
        layout = {**self.LAYOUT, "label_columns": ["x", "y"]}
        summary = self._import(tmp_path, layout=layout)
        assert load_items(summary["datalists"][0], "training")[0]["label"] == [0.0, 1.5]

    def test_a_row_cannot_leave_the_folder(self, tmp_path: Path) -> None:
        self._table(tmp_path, "name,class,part\na.png,0,train\n../../secret.png,0,train\n", "a.png")
        _png(tmp_path / "secret.png", 3)
        summary = self._import(tmp_path)
        assert summary["counts"]["datalist.json"]["training"] == 1
        assert _dropped(summary)["SRC-007"] == (1, ["secret.png"])

    def test_missing_column(self, tmp_path: Path) -> None:
        self._table(tmp_path, "name,kind,part\na.png,0,train\n", "a.png")
        with pytest.raises(UserError, match=r"no column 'class'; labels.csv; its columns are name, kind, part"):
            self._import(tmp_path)

    def test_unknown_section_word(self, tmp_path: Path) -> None:
        self._table(tmp_path, "name,class,part\na.png,0,holdout\n", "a.png")
        with pytest.raises(UserError, match="unknown section 'holdout'"):
            self._import(tmp_path)


class TestBoxes:
    XML = "<annotation>{}</annotation>"
    BOX = (
        "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
    )

    def test_boxes(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        for name in ("a", "b", "c", "alone"):
            _png(root / "images" / f"{name}.png", 30)
        (root / "xml").mkdir()
        boxes = [("cell", 1, 1, 4, 5), ("cell", 2, 2, 2, 2), ("dust", 0, 0, 3, 3)]
        (root / "xml" / "a.xml").write_text(self.XML.format("".join(self.BOX.format(*box) for box in boxes)))
        (root / "xml" / "b.xml").write_text(self.XML.format(""))
        (root / "xml" / "c.xml").write_text("<annotation>")
        (root / "xml" / "gone.xml").write_text(self.XML.format(""))
        (root / "train.txt").write_text("a\nb\n\nc\n")
        summary = _run(
            tmp_path,
            task="detection",
            labels={"0": "cell"},
            layout={"kind": "voc_boxes", "annotations": "xml/{id}.xml", "image": "images/{id}.png"},
            split={"lists": {"training": "train.txt"}},
        )
        items = load_items(summary["datalists"][0], "training")
        assert [(item["box"], item["label"]) for item in items] == [([[1, 1, 4, 5]], [0]), ([], [])]
        assert _dropped(summary) == {
            "SRC-001": (1, ["images/alone.png"]),
            "SRC-002": (1, ["xml/gone.xml"]),
            "SRC-004": (1, ["xml/a.xml"]),
            "SRC-006": (1, ["xml/a.xml"]),
            "SRC-008": (1, ["xml/c.xml"]),
        }


class TestArrays:
    def _arrays(self, tmp_path: Path, **arrays: np.ndarray) -> dict[str, Any]:
        (tmp_path / "root").mkdir(exist_ok=True)
        np.savez(tmp_path / "root" / "set.npz", **arrays)
        layout = {"kind": "npz_arrays", "file": "set.npz", "arrays": {"training": {"images": "x", "labels": "y"}}}
        labels = {"0": "no", "1": "yes"}
        return _run(tmp_path, task="classification", labels=labels, layout=layout, split={"arrays": True})

    @pytest.mark.parametrize("shape", [(3, 6, 8), (3, 6, 8, 3)])
    def test_pictures_are_written(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        images = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        summary = self._arrays(tmp_path, x=images, y=np.array([[0], [1], [4]]))
        items = load_items(summary["datalists"][0], "training")
        assert [item["label"] for item in items] == [0, 1]
        for item, expected in zip(items, images, strict=False):
            np.testing.assert_array_equal(np.asarray(Image.open(item["image"])), expected)
        assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == [
            "training_00000.png",
            "training_00001.png",
        ]
        assert _dropped(summary) == {"SRC-006": (1, ["training_00002"])}

    def test_arrays_that_are_no_pictures(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"images must be .* uint8, got \(2, 4, 4\) float64"):
            self._arrays(tmp_path, x=np.zeros((2, 4, 4)), y=np.zeros(2))
        with pytest.raises(UserError, match=r"no array 'y'; set\.npz; it holds x"):
            self._arrays(tmp_path, x=np.zeros((2, 4, 4)))


class TestRefusals:
    def test_nothing_is_left_behind(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        with pytest.raises(DataError, match=r"no usable image \(no file matches\)"):
            _run(tmp_path)
        assert not (tmp_path / "out").exists()

    def test_reasons_are_named(self, tmp_path: Path) -> None:
        _png(tmp_path / "root" / "images" / "a.png")
        with pytest.raises(DataError, match="1 x image without label"):
            _run(tmp_path)

    def test_no_root(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="the source's folder is not there"):
            _run(tmp_path)

    def test_subject_in_two_sections(self, tmp_path: Path) -> None:
        _pairs(tmp_path / "root", "p1_a", "p1_b")
        (tmp_path / "root" / "s.csv").write_text("file,split\np1_a,train\np1_b,test\n")
        with pytest.raises(DataError, match="subject 'p1' is in training and in test"):
            _run(
                tmp_path,
                subject={"pattern": "^([^_]+)"},
                split={"file": "s.csv", "item_column": "file", "section_column": "split"},
            )
        assert not (tmp_path / "out").exists()

    def test_missing_split_file(self, tmp_path: Path) -> None:
        _pairs(tmp_path / "root", "a")
        with pytest.raises(UserError, match=r"split file not found \(s.csv\)"):
            _run(tmp_path, split={"file": "s.csv", "item_column": "file", "section_column": "split"})

    def test_one_id_for_two_images(self, tmp_path: Path) -> None:
        _png(tmp_path / "root" / "one" / "a.png")
        _png(tmp_path / "root" / "two" / "a.png")
        layout = {"kind": "image_label_folders", "image": ["one/{id}.png", "two/{id}.png"]}
        with pytest.raises(UserError, match="two images have the id 'a'"):
            _run(tmp_path, layout=layout, task="unlabelled", labels=None)
