"""Manifests: the schema, its rules, and the ones that come with the package."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lvmmed_monai.cli.manifests import manifests as manifests_command
from lvmmed_monai.data.manifest import (
    MODALITY_FOLDERS,
    find_manifests,
    manifest_folder,
    manifest_parts,
    read_manifest,
    validate_manifest,
)
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import write_json

SHIPPED = find_manifests()


def good_manifest() -> dict[str, Any]:
    """A valid manifest of a small 2D segmentation set."""
    return {
        "format": "lvmmed-manifest/1",
        "id": "small",
        "name": "Small",
        "modality": "US",
        "spatial_dims": 2,
        "task": "segmentation",
        "licence": {"name": "CC0-1.0", "stated_by": "the authors"},
        "sources": [{"url": "https://example.org/small"}],
        "citation": None,
        "flip_safe": True,
        "labels": {"0": "background", "1": "lesion"},
        "layout": {"kind": "image_label_folders", "image": "images/{id}.png", "label": "masks/{id}.png"},
        "split": {"fractions": [0.6, 0.2, 0.2]},
    }


class TestSchema:
    def test_good_example(self) -> None:
        assert validate_manifest(good_manifest()) == []

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"format": "lvmmed-manifest/9"}, "format"),
            ({"id": "Not An Id"}, "id"),
            ({"modality": "XA"}, "modality"),
            ({"licence": {"name": "MIT"}}, "licence"),
            ({"colour": "blue"}, "colour"),
            ({"layout": {"kind": "tarball"}}, "layout.kind"),
            ({"layout": {"kind": "image_label_folders"}}, "'image' is a required property"),
            ({"layout": {"kind": "image_label_folders", "image": "/etc/{id}.png"}}, "layout.image"),
            ({"layout": {"kind": "image_label_folders", "image": "a/../../{id}.png"}}, "layout.image"),
            ({"split": {"fractions": [0.5, 0.5]}}, "split"),
            ({"labels": {"0": "background", "2": "lesion"}}, "without gaps"),
            ({"labels": {"0": "lesion"}}, "must be 'background'"),
            ({"layout": {"kind": "image_label_folders", "image": "{id}.png"}}, "segmentation needs"),
            ({"task": "detection"}, "detection needs the kind voc_boxes"),
            ({"task": "classification"}, "classification needs label_columns"),
            ({"split": {"arrays": True}}, "goes with the kind npz_arrays"),
            ({"subject": {"pattern": "^p[0-9]+"}}, "needs a group"),
            ({"subject": {"pattern": "(("}}, "not a regular expression"),
            ({"parts": [{"layout": good_manifest()["layout"]}]}, "valid under each of"),
        ],
    )
    def test_bad_examples(self, change: dict[str, Any], problem: str) -> None:
        problems = validate_manifest({**good_manifest(), **change})
        assert any(problem in text for text in problems), problems

    def test_label_values_must_be_in_the_map(self) -> None:
        manifest = good_manifest()
        manifest["layout"]["label_values"] = {"0": 0, "255": 7}
        assert validate_manifest(manifest) == ["layout.label_values: 7 is no number of the label map"]

    def test_parts_need_different_modalities(self) -> None:
        manifest = good_manifest()
        layout = manifest.pop("layout")
        manifest["parts"] = [{"layout": layout}, {"layout": copy.deepcopy(layout)}]
        assert "another modality" in validate_manifest(manifest)[0]

    def test_parts_inherit(self) -> None:
        manifest = good_manifest()
        layout = manifest.pop("layout")
        manifest["parts"] = [{"layout": layout}, {"layout": layout, "modality": "MR", "flip_safe": False}]
        assert validate_manifest(manifest) == []
        first, second = manifest_parts(manifest)
        assert (first["modality"], first["flip_safe"]) == ("US", True)
        assert (second["modality"], second["flip_safe"], second["task"]) == ("MR", False, "segmentation")


class TestReading:
    def test_by_path(self, tmp_path: Path) -> None:
        write_json(tmp_path / "small.json", good_manifest())
        assert read_manifest(tmp_path / "small.json") == good_manifest()

    def test_unknown_id_names_the_known_ones(self) -> None:
        with pytest.raises(UserError, match=r"no manifest 'nothing'; .*msd_hippocampus"):
            read_manifest("nothing")

    def test_a_folder_of_the_same_name_is_no_manifest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "bccd").mkdir()
        monkeypatch.chdir(tmp_path)
        assert read_manifest("bccd")["id"] == "bccd"

    def test_not_valid(self, tmp_path: Path) -> None:
        write_json(tmp_path / "m.json", {**good_manifest(), "task": "guessing"})
        with pytest.raises(UserError, match=r"not a valid manifest \(task: .*; .*m.json; correct it"):
            read_manifest(tmp_path / "m.json")


class TestShipped:
    @pytest.mark.parametrize("name", sorted(SHIPPED))
    def test_is_valid_and_lies_in_its_place(self, name: str) -> None:
        manifest = read_manifest(name)
        assert manifest["id"] == name
        folder = manifest_folder() if name == "local" else manifest_folder() / MODALITY_FOLDERS[manifest["modality"]]
        assert SHIPPED[name].parent == folder
        assert name == "local" or manifest["sources"], "a public source says where it is from"

    def test_schema_itself(self) -> None:
        from jsonschema import Draft202012Validator

        Draft202012Validator.check_schema(json.loads((manifest_folder() / "schema.json").read_text()))


class TestCommand:
    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        manifests_command()
        shown = capsys.readouterr().out
        assert all(name in shown for name in SHIPPED)
        assert "CT+MR+PET" in shown

    def test_show(self, capsys: pytest.CaptureFixture[str]) -> None:
        manifests_command("bccd")
        assert json.loads(capsys.readouterr().out) == read_manifest("bccd")

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        manifests_command(json=True)
        assert set(json.loads(capsys.readouterr().out)) == set(SHIPPED)


class TestPlace:
    def _pretend(self, monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
        (package / "data").mkdir(parents=True)
        monkeypatch.setattr("lvmmed_monai.data.manifest.__file__", str(package / "data" / "manifest.py"))

    def test_in_an_installed_wheel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path.resolve() / "site-packages" / "lvmmed_monai"
        self._pretend(monkeypatch, package)
        with pytest.raises(UserError, match="the manifests are not installed"):
            manifest_folder()
        (package / "_data_manifests" / "ct").mkdir(parents=True)
        write_json(package / "_data_manifests" / "schema.json", {})
        write_json(package / "_data_manifests" / "ct" / "one.json", good_manifest())
        assert manifest_folder() == package / "_data_manifests"
        assert list(find_manifests()) == ["one"]
