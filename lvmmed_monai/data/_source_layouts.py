"""How the files of a source lie: one reader for each layout kind of a manifest.

A reader gives the items it finds and tells the `Source` what it leaves out, with a code of `DROP_CODES`.
A new kind is a function here, its line in `LAYOUTS`, and its part in ``data_manifests/schema.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lvmmed_monai.data._source import Source, SourceItem, as_list, find_files, read_table
from lvmmed_monai.data.images import NIFTI_SUFFIXES, image_stem, read_content
from lvmmed_monai.errors import DataError, UserError

__all__ = ["LAYOUTS"]


def _class_number(value: str, labels: Mapping[str, str]) -> int | None:
    """Number of a class given by name or by number; None when the map has neither."""
    text = value.strip()
    by_name = {name: int(number) for number, name in labels.items()}
    if text in by_name:
        return by_name[text]
    return int(text) if text in labels else None


def _mapped_label(path: Path, key: str, values: Mapping[str, int], source: Source) -> Path | None:
    """Write a label anew with the numbers of the label map; None (and a note) when a value is unknown."""
    import numpy as np

    try:
        content = read_content(path)
    except DataError:
        source.drop("SRC-008", path)
        return None
    mapped = np.zeros(content.array.shape, dtype=np.uint8)
    for value in np.unique(content.array):
        if str(int(value)) not in values or value != int(value):
            source.drop("SRC-006", path)
            return None
        mapped[content.array == value] = values[str(int(value))]
    suffix = ".png" if content.affine is None else NIFTI_SUFFIXES[0]
    target = source.staging / "labels" / f"{key}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if content.affine is None:
        from PIL import Image

        Image.fromarray(mapped).save(target)
    else:
        import nibabel

        nibabel.save(nibabel.Nifti1Image(mapped, content.affine), target)
    return target


def _read_folders(part: Mapping[str, Any], source: Source) -> list[SourceItem]:
    layout = part["layout"]
    label_patterns = as_list(layout.get("label"))
    labels = find_files(source.root, label_patterns)
    images = {
        path: key for path, key in find_files(source.root, as_list(layout["image"])).items() if path not in labels
    }
    items = []
    for path, key in images.items():
        source.claimed.add(path)
        candidates = [source.root / pattern.replace("{id}", key) for pattern in label_patterns]
        label: Path | None = next((candidate for candidate in candidates if candidate.is_file()), None)
        if label is not None:
            source.claimed.add(label)
            if "label_values" in layout:
                label = _mapped_label(label, key, layout["label_values"], source)
                if label is None:
                    continue
        elif part["task"] == "segmentation":
            source.drop("SRC-001", path)
            continue
        items.append(SourceItem(key, path, label))
    return items


def _row_label(row: Mapping[str, str], columns: list[str], labels: Mapping[str, str]) -> Any:
    """Class number of one column, numbers of several; None when there is no such class or number."""
    if len(columns) == 1:
        return _class_number(row[columns[0]], labels)
    try:
        return [float(row[column]) for column in columns]
    except ValueError:
        return None


def _read_csv(part: Mapping[str, Any], source: Source) -> list[SourceItem]:
    layout = part["layout"]
    columns = list(layout.get("label_columns", []))
    table = source.file(layout["file"], "table of images")
    items = []
    for row in read_table(table, [layout["image_column"], *columns]):
        relative = layout["image"].replace("{value}", row[layout["image_column"]])
        path = source.root / relative
        # A table may come from anywhere: it must not lead out of the source's folder.
        if not path.is_file() or not path.resolve().is_relative_to(source.root.resolve()):
            source.drop("SRC-007", Path(relative).name)
            continue
        source.claimed.add(path)
        label = _row_label(row, columns, part["labels"]) if columns else None
        if columns and label is None:
            source.drop("SRC-006", path)
            continue
        items.append(SourceItem(image_stem(path), path, label))
    return items


def _voc_boxes(path: Path, labels: Mapping[str, str], source: Source) -> tuple[list[list[float]], list[int]]:
    """Usable boxes and classes of one annotation file; the others are noted."""
    boxes, classes = [], []
    for entry in ElementTree.parse(path).getroot().iter("object"):
        number = _class_number(entry.findtext("name", ""), labels)
        corners = [float(entry.findtext(f"bndbox/{corner}", "nan")) for corner in ("xmin", "ymin", "xmax", "ymax")]
        if number is None:
            source.drop("SRC-006", path)
        elif not (corners[0] < corners[2] and corners[1] < corners[3]):
            source.drop("SRC-004", path)
        else:
            boxes.append(corners)
            classes.append(number)
    return boxes, classes


def _read_voc(part: Mapping[str, Any], source: Source) -> list[SourceItem]:
    layout = part["layout"]
    annotations = {key: path for path, key in find_files(source.root, [layout["annotations"]]).items()}
    images = {key: path for path, key in find_files(source.root, [layout["image"]]).items()}
    source.claimed.update(annotations.values(), images.values())
    for key in sorted(images.keys() - annotations.keys()):
        source.drop("SRC-001", images[key])
    items = []
    for key, path in annotations.items():
        if key not in images:
            source.drop("SRC-002", path)
            continue
        try:
            boxes, classes = _voc_boxes(path, part["labels"], source)
        except (ElementTree.ParseError, ValueError):
            source.drop("SRC-008", path)
            continue
        items.append(SourceItem(key, images[key], classes, boxes))
    return items


def _read_npz(part: Mapping[str, Any], source: Source) -> list[SourceItem]:
    import numpy as np
    from PIL import Image

    layout = part["layout"]
    path = source.file(layout["file"], "npz file")
    folder = source.staging / "images"
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    with np.load(path, allow_pickle=False) as arrays:
        for section, names in layout["arrays"].items():
            missing = [name for name in names.values() if name not in arrays]
            if missing:
                raise UserError(f"no array {missing[0]!r}; {path.name}; it holds {', '.join(arrays.files)}")
            images = arrays[names["images"]]
            classes = arrays[names["labels"]].reshape(len(images), -1) if "labels" in names else None
            if images.dtype != np.uint8 or images.ndim not in (3, 4):
                raise UserError(
                    f"images must be (n, rows, columns[, 3]) uint8, got {images.shape} {images.dtype}; {path.name}; "
                    "convert them"
                )
            for index, image in enumerate(images):
                key = f"{section}_{index:05d}"
                label = None if classes is None else _class_number(str(classes[index, 0]), part["labels"])
                if classes is not None and label is None:
                    source.drop("SRC-006", key)
                    continue
                Image.fromarray(image).save(folder / f"{key}.png")
                items.append(SourceItem(key, folder / f"{key}.png", label, section=section))
    return items


LAYOUTS: dict[str, Callable[[Mapping[str, Any], Source], list[SourceItem]]] = {
    "image_label_folders": _read_folders,
    "csv_table": _read_csv,
    "voc_boxes": _read_voc,
    "npz_arrays": _read_npz,
}
