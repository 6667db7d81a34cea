"""Read everything a datalist names and say what is wrong with it.

Each finding is ``{code, severity, section, item, measured, expected, remedy}``; severity is ``error`` (do not
train on it) or ``warning``. Codes are never reused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lvmmed_monai.data.datalist import SECTIONS, image_paths, load_items, read_datalist
from lvmmed_monai.data.images import ImageContent, read_content
from lvmmed_monai.errors import DataError
from lvmmed_monai.files import sha256_file

__all__ = ["AFFINE_TOLERANCE_MM", "CHECK_FORMAT", "SMEAR_RATIO", "STRIPE_RATIO", "check_datalist"]

CHECK_FORMAT = "lvmmed-check/1"
# A picture changes along both axes; below this ratio of mean absolute differences it is stripes.
STRIPE_RATIO = 0.25
# Below this ratio of differences between rows to those between columns an image deserves a look. Only this way
# round: ultrasound is layered along the beam, so that a ratio of 3 is common there. Measured on 550 images of a
# collection with 150 striped ones: those reach 0.34, all others begin at 0.41 (0.63 in chest X-rays).
SMEAR_RATIO = 0.375
# Largest difference between two affines' entries that is rounding: far below any voxel size.
AFFINE_TOLERANCE_MM = 1e-3

# code: (severity, what is expected, what to do)
_CODES: dict[str, tuple[str, str, str]] = {
    "CHK-001": ("error", "the file exists", "bring the file back or ingest again"),
    "CHK-002": ("error", "the file opens and decodes", "replace the file or remove the item"),
    "CHK-003": ("error", "label and channels have the image's shape", "give a label on the image's grid"),
    "CHK-004": (
        "error",
        "label and channels have the image's affine",
        "resample the label to the image, or correct its header",
    ),
    "CHK-005": ("error", "whole label values within the label map", "correct the label or the label map"),
    "CHK-006": ("error", "finite values", "replace the values that are not numbers, or the file"),
    "CHK-007": ("error", "more than one value", "replace the image or remove the item"),
    "CHK-008": ("error", "detail along rows and columns", "look at the image: it is stripes, not a picture"),
    "CHK-009": ("error", "a file in one section only", "remove the copy, or give both the same subject"),
    "CHK-010": ("warning", "each file once", "remove the copy"),
    "CHK-011": ("error", "boxes inside the image", "correct the box"),
    "CHK-012": (
        "warning",
        "detail between rows as between columns",
        "look at the image: it may be smeared along its columns",
    ),
}

Finding = dict[str, Any]


def _finding(code: str, measured: object) -> Finding:
    severity, expected, remedy = _CODES[code]
    return {"code": code, "severity": severity, "measured": str(measured), "expected": expected, "remedy": remedy}


def _detail_ratio(picture: np.ndarray) -> float:
    """Mean absolute difference between rows, divided by that between columns; 1 where neither says anything."""
    grey = picture.astype(np.float32)
    grey = grey.mean(axis=2) if grey.ndim == 3 else grey
    if min(grey.shape) < 2:
        return 1.0
    rows = float(np.abs(np.diff(grey, axis=0)).mean())
    columns = float(np.abs(np.diff(grey, axis=1)).mean())
    if columns == 0:
        return np.inf if rows > 0 else 1.0
    return rows / columns


def _stripe_findings(picture: np.ndarray) -> list[Finding]:
    ratio = _detail_ratio(picture)
    if ratio < STRIPE_RATIO or ratio > 1 / STRIPE_RATIO:
        return [_finding("CHK-008", f"ratio {ratio:.3f}")]
    return [_finding("CHK-012", f"ratio {ratio:.3f}")] if ratio < SMEAR_RATIO else []


def _value_findings(content: ImageContent) -> list[Finding]:
    array = content.array
    if array.size == 0:
        return [_finding("CHK-007", "no voxels")]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [_finding("CHK-006", f"{int((~np.isfinite(array)).sum())} voxels")]
    if array.min() == array.max():
        return [_finding("CHK-007", f"all {array.flat[0]}")]
    return _stripe_findings(array) if content.affine is None else []


def _grid_findings(image: ImageContent, other: ImageContent) -> list[Finding]:
    if other.shape != image.shape:
        return [_finding("CHK-003", f"{other.shape} for {image.shape}")]
    if image.affine is not None and other.affine is not None:
        difference = float(np.abs(image.affine - other.affine).max())
        if not difference <= AFFINE_TOLERANCE_MM:
            return [_finding("CHK-004", f"differs by {difference:.3g} mm")]
    return []


def _label_findings(label: ImageContent, classes: set[int]) -> list[Finding]:
    values = np.unique(label.array)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return [_finding("CHK-006", "label holds values that are not numbers")]
    wrong = [float(value) for value in values if value not in classes]
    if not wrong:
        return []
    return [_finding("CHK-005", ", ".join(f"{value:g}" for value in wrong[:5]))]


def _box_findings(item: Mapping[str, Any], image: ImageContent) -> list[Finding]:
    size = image.shape
    outside = [
        box
        for box in item.get("box", [])
        if min(box) < 0 or any(np.greater(box[len(box) // 2 :], size[: len(box) // 2]))
    ]
    return [_finding("CHK-011", f"{len(outside)} outside {size}, the first is {outside[0]}")] if outside else []


def _read_all(paths: Iterable[str], findings: list[Finding]) -> list[ImageContent]:
    """Contents of the files that can be read; findings for the others."""
    contents = []
    for path in paths:
        if not Path(path).is_file():
            findings.append(_finding("CHK-001", Path(path).name))
            continue
        try:
            contents.append(read_content(path))
        except DataError:
            findings.append(_finding("CHK-002", Path(path).name))
    return contents


def _check_item(item: Mapping[str, Any], classes: set[int], task: str) -> list[Finding]:
    findings: list[Finding] = []
    paths = image_paths(item)
    channels = _read_all(paths, findings)
    for channel in channels:
        findings += _value_findings(channel)
    if len(channels) < len(paths):
        return findings
    for channel in channels[1:]:
        findings += _grid_findings(channels[0], channel)
    if isinstance(item.get("label"), str):
        for label in _read_all([item["label"]], findings):
            findings += _grid_findings(channels[0], label)
            findings += _label_findings(label, classes) if task == "segmentation" else []
    return findings + _box_findings(item, channels[0])


class _Copies:
    """Files with the same bytes, found by hash, within and across sections."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str]] = {}

    def findings(self, section: str, item: Mapping[str, Any]) -> list[Finding]:
        found = []
        for path in filter(os.path.isfile, image_paths(item)):
            digest = sha256_file(path)
            home, name = self._first.setdefault(digest, (section, path))
            if name != path:
                code = "CHK-010" if home == section else "CHK-009"
                found.append(_finding(code, f"same bytes as {Path(name).name} in {home}"))
        return found


def _same(rows: Iterable[Any]) -> Iterable[Any]:
    return rows


def check_datalist(
    path: str | os.PathLike[str], *, track: Callable[[Iterable[Any]], Iterable[Any]] = _same
) -> dict[str, Any]:
    """Read every image and label of a datalist and report what is wrong.

    Looked at: presence, decoding, shape and affine of label against image, label values against the label map, values
    that are not numbers, constant images, stripes (2D), boxes outside the image, and equal files within and across
    sections. An empty label map is not wrong.

    Args:
        path: the datalist.
        track: wraps the list of items, to show progress.

    Returns:
        ``{"format", "name", "task", "modality", "counts", "errors", "warnings", "findings"}``.

    Raises:
        UserError: the datalist itself is missing or not valid.
    """
    datalist = read_datalist(path)
    classes = {int(key) for key in datalist.get("labels") or {}}
    rows = [(section, item) for section in SECTIONS for item in load_items(path, section, check_files=False)]
    copies = _Copies()
    findings = []
    for section, item in track(rows):
        for finding in _check_item(item, classes, datalist["task"]) + copies.findings(section, item):
            findings.append({"section": section, "item": Path(image_paths(item)[0]).name, **finding})
    severities = [finding["severity"] for finding in findings]
    return {
        "format": CHECK_FORMAT,
        "name": datalist["name"],
        "task": datalist["task"],
        "modality": datalist["modality"],
        "counts": {section: len(datalist[section]) for section in SECTIONS},
        "errors": severities.count("error"),
        "warnings": severities.count("warning"),
        "findings": findings,
    }
