"""The datalist: which images a run reads, with their labels, in sections split by subject.

Format ``lvmmed-datalist/1``: a JSON object with the keys of a Medical Segmentation Decathlon datalist, so
that `monai.data.load_decathlon_datalist` reads it too. Relative paths resolve against the datalist's folder.

    format, name              "lvmmed-datalist/1"; what the set is called
    task                      one of TASKS
    modality                  one of MODALITIES
    labels                    {"0": "background", ...}: numbers from 0 without gaps (not for "unlabelled")
    flip_safe                 true when mirroring an image left to right keeps its label true (absent: false)
    training, validation, test
        image                 path, or list of paths (one for each channel)
        label                 segmentation: path; classification: class number or list of numbers;
                              detection: one class number for each box
        box                   detection: [[x0, y0, x1, y1], ...] in pixels (x = column)
        subject               pseudonym; never in two sections
        study, series, body_part   optional
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvmmed_monai.data._datalist_rules import FORMAT, MODALITIES, SECTIONS, TASKS, image_paths, validate_datalist
from lvmmed_monai.data.images import spatial_shape
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import read_json, sha256_file, write_json

__all__ = [
    "FORMAT",
    "MODALITIES",
    "SECTIONS",
    "TASKS",
    "datalist_labels",
    "datalist_modality",
    "image_paths",
    "load_items",
    "load_pool",
    "read_datalist",
    "summarise",
    "validate_datalist",
    "write_datalist",
]

PathLike = str | os.PathLike[str]


def read_datalist(path: PathLike) -> dict[str, Any]:
    """Read and validate a datalist. Absent sections come back as empty lists.

    Raises:
        UserError: missing, not JSON, or not a valid datalist (the first problem and their number are named).
    """
    datalist = read_json(path, "datalist")
    problems = validate_datalist(datalist)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"not a valid datalist ({problems[0]}{more}); {path}; correct the file or ingest again")
    for section in SECTIONS:
        datalist.setdefault(section, [])
    return datalist


def write_datalist(path: PathLike, datalist: Mapping[str, Any]) -> None:
    """Write a datalist atomically.

    Raises:
        ValueError: it is not valid (a mistake of the caller, not of the user).
    """
    problems = validate_datalist(dict(datalist))
    if problems:
        raise ValueError("datalist: " + "; ".join(problems))
    write_json(path, dict(datalist))


def _resolved(item: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of an item with absolute paths; a label is a path when it is a string."""

    def absolute(value: PathLike) -> str:
        return os.path.normpath(folder / value)

    image = item["image"]
    resolved = {**item, "image": [absolute(one) for one in image] if isinstance(image, list) else absolute(image)}
    if isinstance(item.get("label"), str | os.PathLike):
        resolved["label"] = absolute(item["label"])
    return resolved


def _check_present(items: Sequence[Mapping[str, Any]], where: object) -> None:
    for key, paths_of in (("image", image_paths), ("label", _label_paths)):
        missing = [path for item in items for path in paths_of(item) if not Path(path).is_file()]
        if missing:
            noun = f"{key} file is" if len(missing) == 1 else f"{key} files are"
            raise DataError(
                f"{len(missing)} {noun} missing, the first is {Path(missing[0]).name}; {where}; "
                "bring the files back or ingest again"
            )


def _label_paths(item: Mapping[str, Any]) -> list[str]:
    label = item.get("label")
    return [label] if isinstance(label, str) else []


def _check_shapes(items: Sequence[Mapping[str, Any]], where: object) -> None:
    """Compare the header of every label with that of its image; nothing is decoded."""
    for item in items:
        images, labels = image_paths(item), _label_paths(item)
        if len(images) + len(labels) < 2:
            continue
        expected = spatial_shape(images[0])
        for path in [*images[1:], *labels]:
            shape = spatial_shape(path)
            if shape != expected:
                raise DataError(
                    f"shape of {Path(path).name} is {shape}, of its image {Path(images[0]).name} {expected}; {where}; "
                    "give a label on the image's grid"
                )


def _label_map(labels: Mapping[Any, str]) -> dict[str, str]:
    return {str(number): name for number, name in sorted((int(key), name) for key, name in labels.items())}


def _check_agreement(
    datalist: Mapping[str, Any], where: object, task: str | None, labels: Mapping[Any, str] | None, modality: str | None
) -> None:
    remedy = f"run: lvmmed bundles copy NAME DEST --datalist {where}"
    if task is not None and datalist["task"] != task:
        raise UserError(
            f"the datalist is for {datalist['task']}, the bundle for {task}; {where}; choose another datalist"
        )
    if labels is not None and _label_map(datalist.get("labels") or {}) != _label_map(labels):
        raise UserError(
            f"the datalist's labels ({_names(datalist.get('labels') or {})}) differ from the bundle's "
            f"({_names(labels)}); {where}; {remedy}"
        )
    if modality is not None and datalist["modality"] != modality:
        raise UserError(
            f"the datalist's modality {datalist['modality']} differs from the bundle's {modality}; {where}; {remedy}"
        )


def _names(labels: Mapping[Any, str]) -> str:
    shown = [f"{key} {name}" for key, name in _label_map(labels).items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "none"


def _plain_items(items: Sequence[Any]) -> list[dict[str, Any]]:
    bad = [position for position, item in enumerate(items) if not isinstance(item, Mapping) or "image" not in item]
    if bad:
        raise UserError(
            f"item {bad[0]} has no image; list of items given as datalist; give objects such as {{'image': path}} "
            "or the path of a datalist"
        )
    return [_resolved(item, Path.cwd()) for item in items]


def load_items(
    datalist: PathLike | Sequence[Mapping[str, Any]],
    section: str,
    *,
    task: str | None = None,
    labels: Mapping[Any, str] | None = None,
    modality: str | None = None,
    check_files: bool = True,
) -> list[dict[str, Any]]:
    """Items of one section with absolute paths, ready for a MONAI dataset.

    Args:
        datalist: a datalist file; or items themselves (as MONAI Label gives), taken whole, relative to the
            working directory.
        section: ``training``, ``validation`` or ``test``.
        task, labels, modality: what the bundle is made for; None is not compared.
        check_files: look that the files are there and that labels have their image's shape (headers only).

    Raises:
        UserError: not a valid datalist, an unknown section, or one that does not fit the bundle.
        DataError: a file is missing or unreadable, or a label has another shape than its image.
    """
    if section not in SECTIONS:
        raise UserError(f"unknown section {section!r}; datalist; use {', '.join(SECTIONS)}")
    where: object = "list of items"
    if isinstance(datalist, str | os.PathLike):
        where, content = datalist, read_datalist(datalist)
        _check_agreement(content, where, task, labels, modality)
        items = [_resolved(item, Path(datalist).resolve().parent) for item in content[section]]
    else:
        items = _plain_items(datalist)
    if check_files:
        _check_present(items, where)
        _check_shapes(items, where)
    return items


def load_pool(
    datalists: PathLike | Sequence[PathLike], section: str, *, check_files: bool = True
) -> list[dict[str, Any]]:
    """Items of one section of several datalists, for pre-training.

    Each item also gets ``modality``, ``source`` (name of its datalist) and ``flip_safe``; labels are not looked at.

    Args:
        datalists: paths.
        section: ``training``, ``validation`` or ``test``.
        check_files: look that the images are there.

    Raises:
        UserError: a datalist is missing or not valid, or no datalist is given.
        DataError: an image file is missing.
    """
    paths = [datalists] if isinstance(datalists, str | os.PathLike) else list(datalists)
    if not paths:
        raise UserError("no datalist given; pre-training; name at least one datalist")
    pool: list[dict[str, Any]] = []
    for path in paths:
        content = read_datalist(path)
        items = load_items(path, section, check_files=False)
        if check_files:
            _check_present([{"image": item["image"]} for item in items], path)
        about = {
            "modality": content["modality"],
            "source": content["name"],
            "flip_safe": content.get("flip_safe", False),
        }
        pool += [{**item, **about} for item in items]
    return pool


def datalist_labels(path: PathLike) -> dict[str, str]:
    """Label map of a datalist, in the order of its numbers; empty for one without labels."""
    return _label_map(read_datalist(path).get("labels") or {})


def datalist_modality(path: PathLike) -> str:
    """Modality of a datalist, one of MODALITIES."""
    return read_datalist(path)["modality"]


def summarise(path: PathLike) -> dict[str, Any]:
    """``{"name", "sha256", "counts"}`` of a datalist, as results files keep it."""
    content = read_datalist(path)
    return {
        "name": content["name"],
        "sha256": sha256_file(path),
        "counts": {section: len(content[section]) for section in SECTIONS},
    }
