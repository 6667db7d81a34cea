"""From a manifest and the folder of its source to a datalist, with a report of what was left out and why."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvmmed_monai.data._source import DROP_CODES, Source, SourceItem, as_list, find_files
from lvmmed_monai.data._source_layouts import LAYOUTS
from lvmmed_monai.data._source_sections import assign_sections, excluded_keys, with_subjects
from lvmmed_monai.data.datalist import FORMAT, SECTIONS, validate_datalist, write_datalist
from lvmmed_monai.data.images import is_image, spatial_shape
from lvmmed_monai.data.manifest import manifest_parts, read_manifest
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import output_folder, write_json

__all__ = ["QC_FORMAT", "import_source"]

QC_FORMAT = "lvmmed-qc/1"
_EXAMPLES = 5
_ABOUT_SUFFIXES = (".md", ".txt", ".csv", ".json", ".pdf")


def _readable(item: SourceItem) -> bool:
    """True when the headers open and a label map has its image's shape."""
    try:
        shape = spatial_shape(item.image)
        return not isinstance(item.label, Path) or spatial_shape(item.label) == shape
    except DataError:
        return False


def _read_part(part: Mapping[str, Any], source: Source, excluded: set[str]) -> list[SourceItem]:
    items = LAYOUTS[part["layout"]["kind"]](part, source)
    kept = []
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise UserError(
                f"two images have the id {item.key!r}; manifest; make {{id}} in its patterns name one image"
            )
        seen.add(item.key)
        if item.key in excluded:
            source.drop("SRC-003", item.image)
        elif _readable(item):
            kept.append(item)
        else:
            source.drop("SRC-008", item.image)
    return kept


def _note_leftovers(parts: list[dict[str, Any]], source: Source, out: Path) -> None:
    """Note labels that belong to no image, and files that nothing in the manifest accounts for."""
    patterns = [pattern for part in parts for pattern in as_list(part["layout"].get("label"))]
    for path in find_files(source.root, patterns):
        if path not in source.claimed:
            source.claimed.add(path)
            source.drop("SRC-002", path)
    for path in sorted(source.root.rglob("*")):
        about = path.suffix.lower() in _ABOUT_SUFFIXES and not is_image(path)
        hidden = any(step.startswith(".") for step in path.relative_to(source.root).parts)
        if path.is_file() and not about and not hidden and path not in source.claimed and not path.is_relative_to(out):
            source.drop("SRC-009", path)


def _entry(item: SourceItem, subject: str, source: Source) -> dict[str, Any]:
    """A datalist item: new files relative to the output, files of the source absolute."""

    def shown(path: Path) -> str:
        return path.relative_to(source.staging).as_posix() if path.is_relative_to(source.staging) else str(path)

    entry: dict[str, Any] = {"image": shown(item.image)}
    if item.label is not None:
        entry["label"] = shown(item.label) if isinstance(item.label, Path) else item.label
    if item.boxes is not None:
        entry["box"] = item.boxes
    return {**entry, "subject": subject}


def _datalist(
    part: Mapping[str, Any], manifest: Mapping[str, Any], rows: list[tuple[SourceItem, str, str]], source: Source
) -> dict[str, Any]:
    datalist: dict[str, Any] = {"format": FORMAT, "name": manifest["id"]}
    datalist |= {key: part[key] for key in ("task", "modality", "flip_safe")}
    if part["labels"]:
        datalist["labels"] = part["labels"]
    datalist["licence"] = manifest["licence"]["name"]
    for section in SECTIONS:
        entries = [_entry(item, subject, source) for item, subject, own in rows if own == section]
        if entries:
            datalist[section] = entries
    problems = validate_datalist(datalist)
    if problems:
        raise DataError(
            f"the source gives no valid datalist ({problems[0]}); manifest {manifest['id']}; "
            "correct the split or the manifest"
        )
    return datalist


def _drop_rows(source: Source) -> list[dict[str, Any]]:
    return [
        {
            "code": code,
            "what": DROP_CODES[code][0],
            "count": len(names),
            "remedy": DROP_CODES[code][1],
            "examples": sorted(set(names))[:_EXAMPLES],
        }
        for code, names in sorted(source.dropped.items())
    ]


def _publish(staging: Path, out: Path) -> None:
    """Move new files to their place, each by a rename."""
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            target = out / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


def _collect(manifest: Mapping[str, Any], source: Source, out: Path) -> dict[str, dict[str, Any]]:
    """Datalists by file name."""
    parts = manifest_parts(manifest)
    excluded = excluded_keys(manifest, source)
    read = [with_subjects(_read_part(part, source, excluded), manifest, source) for part in parts]
    assigned = assign_sections(read, manifest, source, out)
    _note_leftovers(parts, source, out)
    datalists = {}
    for part, rows in zip(parts, assigned, strict=True):
        if rows:
            name = "datalist.json" if len(parts) == 1 else f"datalist_{part['modality'].lower()}.json"
            datalists[name] = _datalist(part, manifest, rows, source)
    if not datalists:
        reasons = ", ".join(f"{row['count']} x {row['what']}" for row in _drop_rows(source)) or "no file matches"
        raise DataError(
            f"no usable image ({reasons}); {source.root}; name the folder that manifest {manifest['id']} describes"
        )
    return datalists


def _read_source(manifest: Mapping[str, Any], root: Path, out: Path) -> tuple[Source, dict[str, dict[str, Any]]]:
    """Read the source and put new files in their place; on an error nothing new is left behind."""
    existed = out.exists()
    target = output_folder(out)
    staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=target))
    try:
        source = Source(root, staging)
        datalists = _collect(manifest, source, target)
        _publish(staging, target)
        return source, datalists
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(target.iterdir()):
            target.rmdir()


def _qc(manifest: Mapping[str, Any], source: Source, datalists: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "format": QC_FORMAT,
        "source": {
            "manifest": manifest["id"],
            "name": manifest["name"],
            "licence": manifest["licence"]["name"],
            "files": sum(path.is_file() for path in source.root.rglob("*")),
        },
        "series": [],
        "files": _drop_rows(source),
        "counts": {
            name: {section: len(made.get(section, [])) for section in SECTIONS} for name, made in datalists.items()
        },
        "datalists": list(datalists),
        "timings": {"import": round(seconds, 3)},
    }


def import_source(
    manifest: str | os.PathLike[str], root: str | os.PathLike[str], out: str | os.PathLike[str]
) -> dict[str, Any]:
    """Make the datalist of a source that a manifest describes.

    Images stay where they are and stand in the datalist by absolute path; arrays of an npz file and labels whose
    values change are written to ``<out>/images`` and ``<out>/labels``. A source with several modalities gives
    ``datalist_<modality>.json`` for each. Importing again into the same folder keeps earlier subjects in their
    section where the split is drawn.

    Args:
        manifest: a manifest file, or the id of one that comes with the package.
        root: folder of the source.
        out: folder for ``datalist.json`` and ``qc.json``.

    Returns:
        ``{"id", "datalists": [paths], "counts": {file name: {section: n}}, "dropped": [{code, what, count, remedy,
        examples}], "qc": path}``.

    Raises:
        UserError: the manifest, the root, a table or the output folder is wrong.
        DataError: no usable image is found, or a subject stands in two sections.
    """
    start = time.perf_counter()
    content = read_manifest(manifest)
    folder = Path(root).resolve()
    if not folder.is_dir():
        raise UserError(
            f"the source's folder is not there; {root}; name the folder that manifest {content['id']} describes"
        )
    target = Path(out).resolve()
    source, datalists = _read_source(content, folder, target)
    target.mkdir(parents=True, exist_ok=True)
    for name, datalist in datalists.items():
        write_datalist(target / name, datalist)
    qc = _qc(content, source, datalists, time.perf_counter() - start)
    write_json(target / "qc.json", qc)
    return {
        "id": content["id"],
        "datalists": [str(target / name) for name in datalists],
        "counts": qc["counts"],
        "dropped": qc["files"],
        "qc": str(target / "qc.json"),
    }
