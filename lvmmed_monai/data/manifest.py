"""Manifests: one JSON file says what a source of images is and how its files become a datalist.

The files lie in ``data_manifests/`` beside the package (in the wheel: ``lvmmed_monai/_data_manifests``), in a
folder for each modality; ``data_manifests/schema.json`` is their schema and ``local.json`` the template for a
hospital's own set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import read_json

__all__ = [
    "FORMAT",
    "MODALITY_FOLDERS",
    "find_manifests",
    "manifest_folder",
    "manifest_parts",
    "read_manifest",
    "validate_manifest",
]

FORMAT = "lvmmed-manifest/1"
MODALITY_FOLDERS = {
    "CT": "ct",
    "MR": "mri",
    "XR": "xray",
    "US": "ultrasound",
    "COLOR": "color",
    "PET": "other",
    "OTHER": "other",
}
_PART_KEYS = ("modality", "task", "labels", "flip_safe")
_LABELLED = ("segmentation", "classification", "detection")


def manifest_folder() -> Path:
    """The folder of the manifests: of this checkout, or of the installed wheel.

    Raises:
        UserError: neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "data_manifests", package / "_data_manifests"):
        if (folder / "schema.json").is_file():
            return folder
    raise UserError(f"the manifests are not installed; {package}; install the package again or use a checkout")


def find_manifests(folder: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """Manifest files by id (their file name without ``.json``), sorted by id."""
    root = Path(folder) if folder is not None else manifest_folder()
    paths = [path for path in root.rglob("*.json") if path.name != "schema.json"]
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def manifest_parts(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a manifest, each complete with ``modality, task, labels, flip_safe, layout``.

    A manifest without ``parts`` is one part.
    """
    common = {key: manifest[key] for key in _PART_KEYS if key in manifest}
    parts = manifest.get("parts") or [{"layout": manifest["layout"]}]
    return [{"labels": {}, **common, **part} for part in parts]


def _where(path: Any) -> str:
    return ".".join(str(step) for step in path) or "manifest"


def _part_problems(part: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    """What the schema cannot say: rules between two fields."""
    layout, labels, task = part["layout"], part["labels"], part["task"]
    problems = []
    if task in _LABELLED and set(labels) != {str(number) for number in range(max(len(labels), 1))}:
        problems.append(
            f"labels: {task} needs names for the numbers from 0 without gaps, got {', '.join(labels) or 'none'}"
        )
    if task == "segmentation" and labels.get("0") != "background":
        problems.append(f"labels: 0 must be 'background' for segmentation, got {labels.get('0')!r}")
    needs = {"segmentation": ("image_label_folders", "label"), "detection": ("voc_boxes", "annotations")}
    if task in needs and (layout["kind"] != needs[task][0] or needs[task][1] not in layout):
        problems.append(f"layout: {task} needs the kind {needs[task][0]} with {needs[task][1]}, got {layout['kind']}")
    if ("arrays" in manifest["split"]) != (layout["kind"] == "npz_arrays"):
        problems.append('split: {"arrays": true} goes with the kind npz_arrays and with no other')
    if task == "classification" and not _has_classes(layout):
        problems.append("layout: classification needs label_columns (csv_table) or labels of the arrays (npz_arrays)")
    unknown = set(layout.get("label_values", {}).values()) - {int(key) for key in labels}
    if unknown:
        problems.append(f"layout.label_values: {sorted(unknown)[0]} is no number of the label map")
    return problems


def _has_classes(layout: Mapping[str, Any]) -> bool:
    if layout["kind"] == "npz_arrays":
        return all("labels" in arrays for arrays in layout["arrays"].values())
    return "label_columns" in layout


def _pattern_problems(manifest: Mapping[str, Any]) -> list[str]:
    pattern = manifest.get("subject", {}).get("pattern")
    if pattern is None:
        return []
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return [f"subject.pattern: not a regular expression ({error})"]
    return [] if groups else ["subject.pattern: needs a group in parentheses, which is the subject"]


def validate_manifest(manifest: Any) -> list[str]:
    """Problems of a manifest (no file of the source is opened); an empty list when it is valid."""
    from jsonschema import Draft202012Validator

    schema = read_json(manifest_folder() / "schema.json", "manifest schema")
    errors = sorted(Draft202012Validator(schema).iter_errors(manifest), key=lambda error: _where(error.absolute_path))
    if errors:
        return [f"{_where(error.absolute_path)}: {error.message}" for error in errors]
    problems = [problem for part in manifest_parts(manifest) for problem in _part_problems(part, manifest)]
    modalities = [part["modality"] for part in manifest_parts(manifest)]
    if len(set(modalities)) < len(modalities):
        problems.append("parts: each part needs another modality, since each becomes a datalist")
    return problems + _pattern_problems(manifest)


def read_manifest(path_or_id: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and validate a manifest, named by its file or by the id of one that comes with the package.

    Raises:
        UserError: no such manifest, not JSON, or not valid.
    """
    path = Path(path_or_id)
    if not path.is_file() and path.suffix != ".json":
        known = find_manifests()
        if str(path_or_id) not in known:
            raise UserError(f"no manifest {str(path_or_id)!r}; {manifest_folder()}; known: {', '.join(known)}")
        path = known[str(path_or_id)]
    manifest = read_json(path, "manifest")
    problems = validate_manifest(manifest)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(
            f"not a valid manifest ({problems[0]}{more}); {path}; "
            f"correct it by the schema {manifest_folder() / 'schema.json'}"
        )
    return manifest
