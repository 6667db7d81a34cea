"""What makes a datalist valid: each rule gives the problems it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["FORMAT", "MODALITIES", "SECTIONS", "TASKS", "image_paths", "validate_datalist"]

FORMAT = "lvmmed-datalist/1"
TASKS = ("unlabelled", "segmentation", "classification", "detection", "registration")
MODALITIES = ("CT", "MR", "XR", "US", "PET", "COLOR", "OTHER")
SECTIONS = ("training", "validation", "test")
_LABELLED = ("segmentation", "classification", "detection")


def image_paths(item: Mapping[str, Any]) -> list[str]:
    """Paths of an item's image, one for each channel file."""
    image = item["image"]
    return [str(path) for path in image] if isinstance(image, list) else [str(image)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _head_problems(datalist: Mapping[str, Any]) -> list[str]:
    problems = []
    if not _is_text(datalist.get("name")):
        problems.append(f"name: expected a text, got {datalist.get('name')!r}")
    for key, allowed in (("task", TASKS), ("modality", MODALITIES)):
        if datalist.get(key) not in allowed:
            problems.append(f"{key}: expected one of {', '.join(allowed)}, got {datalist.get(key)!r}")
    if not isinstance(datalist.get("flip_safe", False), bool):
        problems.append(f"flip_safe: expected true or false, got {datalist['flip_safe']!r}")
    for section in SECTIONS:
        if not isinstance(datalist.get(section, []), list):
            problems.append(f"{section}: expected a list, got {type(datalist[section]).__name__}")
    if not any(datalist.get(section) for section in SECTIONS):
        problems.append(f"no items: expected some in {', '.join(SECTIONS)}")
    return problems


def _label_map_problems(datalist: Mapping[str, Any]) -> list[str]:
    task, labels = datalist.get("task"), datalist.get("labels")
    if labels is None or labels == {}:
        return [f"labels: {task} needs a label map"] if task in _LABELLED else []
    if not isinstance(labels, dict) or not all(map(_is_text, labels.values())):
        return [f'labels: expected names by number such as {{"0": "background"}}, got {labels!r}']
    problems = []
    if set(labels) != {str(number) for number in range(len(labels))}:
        problems.append(f"labels: expected the numbers 0 to {len(labels) - 1} without gaps, got {', '.join(labels)}")
    if len(set(labels.values())) < len(labels):
        problems.append("labels: a name is used twice")
    if task == "segmentation" and labels.get("0") != "background":
        problems.append(f"labels: 0 must be 'background' for segmentation, got {labels.get('0')!r}")
    return problems


def _segmentation_problems(item: Mapping[str, Any], classes: set[int]) -> list[str]:
    return [] if _is_text(item.get("label")) else [f"label: expected a path, got {item.get('label')!r}"]


def _class_problem(value: Any, classes: set[int]) -> list[str]:
    if isinstance(value, int) and not isinstance(value, bool) and value in classes:
        return []
    return [f"label: {value!r} is not a number of the label map"]


def _classification_problems(item: Mapping[str, Any], classes: set[int]) -> list[str]:
    label = item.get("label")
    if not isinstance(label, list):
        return _class_problem(label, classes)
    return [] if label and all(map(_is_number, label)) else [f"label: expected numbers, got {label!r}"]


def _detection_problems(item: Mapping[str, Any], classes: set[int]) -> list[str]:
    boxes, labels = item.get("box"), item.get("label")
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        return ["box and label: expected two lists of the same length"]
    problems = []
    for box in boxes:
        if not isinstance(box, list) or len(box) not in (4, 6) or not all(map(_is_number, box)):
            problems.append(f"box: expected 4 (2D) or 6 (3D) numbers, got {box!r}")
        elif any(low >= high for low, high in zip(box[: len(box) // 2], box[len(box) // 2 :], strict=True)):
            problems.append(f"box: expected lower corner before upper corner, got {box!r}")
    return problems + [problem for label in labels for problem in _class_problem(label, classes)]


_ITEM_RULES: dict[str, Callable[[Mapping[str, Any], set[int]], list[str]]] = {
    "segmentation": _segmentation_problems,
    "classification": _classification_problems,
    "detection": _detection_problems,
}


def _item_problems(item: Any, task: Any, classes: set[int]) -> list[str]:
    if not isinstance(item, dict):
        return [f"expected an object, got {type(item).__name__}"]
    problems = []
    image = item.get("image")
    if not _is_text(image) and not (isinstance(image, list) and image and all(map(_is_text, image))):
        problems.append(f"image: expected a path or a list of paths, got {image!r}")
    if not _is_text(item.get("subject")):
        problems.append(f"subject: expected a pseudonym, got {item.get('subject')!r}")
    rule = _ITEM_RULES.get(task)
    return problems + (rule(item, classes) if rule else [])


def _split_problems(datalist: Mapping[str, Any]) -> list[str]:
    """Subjects in two sections and images that stand twice."""
    home: dict[str, str] = {}
    seen: set[tuple[str, ...]] = set()
    problems: dict[str, None] = {}
    for section in SECTIONS:
        for item in datalist.get(section, []):
            first = home.setdefault(item["subject"], section)
            if first != section:
                problems[f"subject {item['subject']!r} is in {first} and in {section}"] = None
            images = tuple(image_paths(item))
            if images in seen:
                problems[f"image {images[0]!r} stands twice"] = None
            seen.add(images)
    return list(problems)


def validate_datalist(datalist: Any) -> list[str]:
    """Problems of a datalist's text (no file is opened); an empty list when it is valid."""
    if not isinstance(datalist, dict):
        return [f"expected an object, got {type(datalist).__name__}"]
    if datalist.get("format") != FORMAT:
        return [f"format: expected {FORMAT!r}, got {datalist.get('format')!r}"]
    problems = _head_problems(datalist) + _label_map_problems(datalist)
    if problems:
        return problems
    classes = {int(key) for key in datalist.get("labels") or {}}
    for section in SECTIONS:
        for position, item in enumerate(datalist.get(section, [])):
            problems += [f"{section}[{position}].{text}" for text in _item_problems(item, datalist["task"], classes)]
    return problems or _split_problems(datalist)
