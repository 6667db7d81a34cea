"""De-identified DICOM of what the ingest can use: files named by pseudonyms, and a list of what remains in them.

Only slices and multi-frame volumes of CT, MR and PET and segmentations are exported; whatever often has text in its
pixels, or is text, stays inside and is counted with its reason. The list is for a person to read before anything
leaves the site: the pixels were not looked at, and faces were not removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.deidentify import Options, Remains, deidentify, list_remains
from lvmmed_monai.dicom.headers import Header, header_from_dataset, read_dataset
from lvmmed_monai.dicom.privacy import pseudonym
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path, output_folder, read_json, remove_partial, write_json, write_text
from lvmmed_monai.ingest.checks.privacy import risk_of_text
from lvmmed_monai.ingest.inventory import Progress, no_progress

__all__ = ["REMAINING_FORMAT", "ExportSummary", "export_deidentified"]

REMAINING_FORMAT = "lvmmed-remaining/1"
_RECORD, _TEXT = "remaining.json", "remaining.md"
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_IMAGES = {_STORAGE + kind for kind in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130")}
_SEGMENTATIONS = {_STORAGE + kind for kind in ("66.4", "66.7")}
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class ExportSummary:
    """What an export did.

    Attributes:
        folder: where the files lie.
        written: instances written in this run.
        present: instances that an earlier run had written.
        excluded: codes and reasons of the instances that were not exported, with counts.
        patients, series: how many of each are in the folder.
    """

    folder: Path
    written: int
    present: int
    excluded: tuple[dict[str, Any], ...]
    patients: int
    series: int


@dataclass
class _Tally:
    """What was counted so far."""

    written: int = 0
    present: int = 0
    excluded: Counter[tuple[str, str]] = field(default_factory=Counter)
    names: set[Path] = field(default_factory=set)
    attributes: Counter[tuple[str, str]] = field(default_factory=Counter)
    burned_in: Counter[str] = field(default_factory=Counter)
    heads: set[str] = field(default_factory=set)

    def add(self, name: Path, remains: Remains) -> None:
        self.names.add(name)
        self.attributes.update(remains.attributes.items())
        self.burned_in[remains.burned_in] += 1
        if remains.head:
            self.heads.add(name.parent.name)


def _refuse(header: Header) -> None:
    """Raise for an object that is not exported.

    Raises:
        DicomError: P01 text may be burned in, R03 colour, R04 mosaic, R05 another kind of object, P04 without UIDs.
    """
    expected = "slices and volumes of CT, MR and PET, and segmentations"
    risk = risk_of_text(header)
    if risk:
        raise DicomError("P01", f"text may be burned into the pixels: {risk}", "pixels without text")
    if header.sop_class not in _IMAGES | _SEGMENTATIONS:
        raise DicomError("R05", "a kind of object that is not exported", expected)
    if header.samples != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomError("R03", "a colour image", expected)
    if header.mosaic:
        raise DicomError("R04", "a mosaic, which is of no use without its private elements", expected)
    if not header.sop_uid or not (header.patient or header.study_uid):
        raise DicomError("P04", "an object without instance UID, or without patient and study", expected)


def _name(header: Header, key: bytes) -> Path:
    """``<patient>/<study>/<series>/<instance>.dcm`` in the pseudonyms of the ingest."""
    study = (header.patient, header.study_uid)
    return Path(
        pseudonym(key, "patient", header.patient or header.study_uid),
        pseudonym(key, "study", "\0".join(study)),
        pseudonym(key, "series", "\0".join((*study, header.series_uid or header.sop_uid))),
        pseudonym(key, "instance", header.sop_uid) + ".dcm",
    )


def _save(dataset: Dataset, path: Path) -> None:
    with atomic_path(path) as temporary, silent_pydicom():
        dataset.save_as(temporary, enforce_file_format=True)


def _earlier_remains(path: Path, head: bool) -> Remains:
    with silent_pydicom():
        return list_remains(pydicom.dcmread(path, stop_before_pixels=True), head=head)


def _export_one(
    source: Source, reader: SourceReader, key: bytes, options: Options, folder: Path, tally: _Tally
) -> None:
    """Write one instance, unless it is there.

    Raises:
        DicomError: it is not exported.
    """
    dataset = read_dataset(reader.read(source), pixels=True)
    with silent_pydicom():
        header = header_from_dataset(dataset, source)
    if header.sop_class == _MEDIA_DIRECTORY:
        return
    _refuse(header)
    name = _name(header, key)
    if name in tally.names:
        raise DicomError("D01", "an instance UID that was exported from another file", "each instance once")
    if (folder / name).is_file():
        tally.add(name, _earlier_remains(folder / name, header.head))
        tally.present += 1
        return
    result, remains = deidentify(dataset, key, options)
    _save(result, folder / name)
    tally.add(name, remains)
    tally.written += 1


def _guarded(source: Source, reader: SourceReader, key: bytes, options: Options, folder: Path, tally: _Tally) -> None:
    """`_export_one`; whatever one object brings about costs this object and not the run."""
    try:
        _export_one(source, reader, key, options, folder, tally)
    except DicomError as error:
        tally.excluded[error.code, error.measured] += 1
    except (OSError, UserError):
        raise
    except Exception as error:
        # From looking at a broken header, or from writing what it left; the texts of these errors hold values.
        tally.excluded["P04", f"ended with {type(error).__name__}"] += 1


def _record(tally: _Tally, options: Options, complete: bool) -> dict[str, Any]:
    return {
        "format": REMAINING_FORMAT,
        "complete": complete,
        "profile": "PS3.15 annex E basic profile with an allow-list; not certified",
        "options": asdict(options),
        "instances": len(tally.names),
        "attributes": [
            {"keyword": name, "value": kind, "instances": count}
            for (name, kind), count in sorted(tally.attributes.items())
        ],
        "pixels": {"looked_at_for_text": False, "burned_in_annotation": dict(sorted(tally.burned_in.items()))},
        "faces": {"removed": False, "series_of_the_head": sorted(tally.heads)},
        "excluded": _excluded(tally),
    }


def _excluded(tally: _Tally) -> list[dict[str, Any]]:
    return [{"code": c, "reason": reason, "instances": n} for (c, reason), n in sorted(tally.excluded.items())]


def _lines(record: Mapping[str, Any]) -> list[str]:
    """``remaining.md``."""
    options = record["options"]
    dates = "moved by whole days, one number for each patient" if options["keep_intervals"] else "removed or emptied"
    person = "age (at most 89), sex, size and weight kept" if options["keep_characteristics"] else "removed or emptied"
    stated = ", ".join(f"{name} in {count}" for name, count in record["pixels"]["burned_in_annotation"].items())
    heads = record["faces"]["series_of_the_head"]
    return [
        "# What remains in these files",
        "",
        f"{record['instances']} instances. Made by rules ({record['profile']}); nobody has looked at them.",
        "Read this list, and look at the images, before anything leaves the site.",
        "",
        f"- Text in the pixels: not looked for. BurnedInAnnotation: {stated or 'no instance'}.",
        f"- Faces: not removed. Series that name the head: {len(heads)}.",
        *(f"  - {name}" for name in heads),
        f"- Dates: {dates}.",
        f"- About the person: {person}.",
        "- Private elements, overlays, curves, free text: removed. UIDs: replaced, consistently.",
        "",
        "## Attributes that still have a value",
        "",
        "| attribute | what kind of value | instances |",
        "|---|---|---|",
        *(f"| {row['keyword']} | {row['value']} | {row['instances']} |" for row in record["attributes"]),
        "",
        "## Not exported",
        "",
        *(f"- {row['code']}: {row['reason']}: {row['instances']}" for row in record["excluded"]),
    ]


def _checked_folder(folder: Path, options: Options) -> None:
    """A folder in which everything was made with the same options.

    Raises:
        UserError: it cannot be written to, or was made with others.
    """
    output_folder(folder)
    earlier = read_json(folder / _RECORD, "list of what remains") if (folder / _RECORD).is_file() else None
    # The very first file of an export that was killed may be a half-written list.
    remove_partial(folder, below=earlier is not None)
    if earlier is None and any(folder.iterdir()):
        raise UserError(f"the export folder holds other files; {folder}; choose an empty folder")
    if earlier is not None and earlier.get("options") != asdict(options):
        raise UserError(
            f"the export folder was made with other options; {folder}; choose another folder, or the options of then"
        )


def export_deidentified(
    sources: Sequence[Source],
    reader: SourceReader,
    key: bytes,
    folder: Path,
    progress: Progress = no_progress,
    options: Options | None = None,
) -> ExportSummary:
    """Write the de-identified form of all instances that may be exported, and what remains in them.

    Files are whole or absent. After an interruption the same call continues; an instance that is there is not made
    again. Of several files with one instance UID the first is exported.

    Args:
        sources: instances, in an order that is the same every time.
        reader: of the sources.
        key: the site's secret key.
        folder: new, empty, or of an earlier export with the same options.
        progress: shows how far it is.
        options: what to keep beyond the basic profile; None for nothing.

    Raises:
        UserError: the folder cannot be used.
    """
    options = options or Options()
    _checked_folder(folder, options)
    if not (folder / _RECORD).is_file():
        write_json(folder / _RECORD, _record(_Tally(), options, complete=False))
    tally = _Tally()
    for source in progress(sources, "exporting", len(sources)):
        _guarded(source, reader, key, options, folder, tally)
    record = _record(tally, options, complete=True)
    write_json(folder / _RECORD, record)
    write_text(folder / _TEXT, "\n".join(_lines(record)) + "\n")
    return ExportSummary(
        folder=folder,
        written=tally.written,
        present=tally.present,
        excluded=tuple(_excluded(tally)),
        patients=len({name.parts[0] for name in tally.names}),
        series=len({name.parts[2] for name in tally.names}),
    )
