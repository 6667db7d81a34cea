"""The ingest: a folder of DICOM in; NIfTI, label maps, previews, datalists and ``qc.json`` out.

    inventory -> headers -> route -> group -> checks -> pair labels -> decode -> write -> datalists

A series becomes a volume only after a positive geometric check; everything else is listed with its reason.
Nothing that is written or logged holds a path, a name or a header value, but for ``journal.sqlite``, which
is readable by its owner only.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.privacy import default_site_key_path, load_site_key
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import output_folder
from lvmmed_monai.ingest.findings import ERROR, Finding
from lvmmed_monai.ingest.inventory import Inventory, Progress, no_progress, read_headers, take_inventory
from lvmmed_monai.ingest.journal import Journal
from lvmmed_monai.ingest.labels import label_table
from lvmmed_monai.ingest.outputs import QC_FORMAT, file_rows, write_datalists, write_qc
from lvmmed_monai.ingest.routes import DATALIST_MODALITIES, route
from lvmmed_monai.ingest.series import Series, group_series
from lvmmed_monai.ingest.stages import Run, SeriesLabels, check_series, make_volume, pair_with_series, read_labels
from lvmmed_monai.ingest.volumes import pixel_digest

__all__ = ["DEFAULT_SPLIT", "IngestSummary", "ingest"]

DEFAULT_SPLIT = (0.7, 0.1, 0.2)
_COMPRESSION = 4  # NIfTI of noisy images shrinks by less: a lower bound of the space needed


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did.

    Attributes:
        out: output folder.
        accepted: number of volumes.
        labelled: number of volumes with a label map.
        written: volumes made in this run; the others were there already.
        subjects: number of subjects among the volumes.
        refused: reason codes of each series that was refused (the first counts), with counts and remedies.
        files: reason codes of single files, with counts and remedies.
        datalists: file names in ``out``.
        seconds: time taken.
    """

    out: Path
    accepted: int
    labelled: int
    written: int
    subjects: int
    refused: tuple[dict[str, Any], ...]
    files: tuple[dict[str, Any], ...]
    datalists: tuple[str, ...]
    seconds: float


def _need_bytes(accepted: Sequence[Series]) -> int:
    return sum(s.first.rows * s.first.columns * len(s.kept) * 2 for s in accepted) // _COMPRESSION


def _timed(run: Run, stage: str, start: float) -> None:
    run.timings[stage] = round(time.monotonic() - start, 3)


def _write_volumes(run: Run, checked: Sequence[tuple[Series, list[Finding]]], labels: SeriesLabels) -> None:
    """Make the volumes of all series that passed.

    Raises:
        UserError: too little space, or the journal cannot be written to.
    """
    output_folder(run.out, need_bytes=_need_bytes([series for series, _ in checked]))
    try:
        journal = Journal(run.out / "journal.sqlite")
        for (series, findings), (pairings, notes) in run.progress(
            list(zip(checked, labels, strict=True)), "writing volumes", len(checked)
        ):
            make_volume(run, journal, series, findings + notes, pairings)
    except sqlite3.OperationalError as error:
        raise UserError(
            f"the ingest journal cannot be written to ({error}); {run.out}; "
            "free some space or choose a writable folder, then run again"
        ) from None


def _process(run: Run, headers: Sequence[Header], names: Mapping[str, str] | None) -> None:
    """From headers to volumes on disk."""
    start = time.monotonic()
    images = [header for header in headers if route(header) != "segmentation"]
    checked = check_series(run, group_series(images, pixel_digest(run.reader)))
    accepted = [series for series, _ in checked]
    labels = read_labels(run, [header for header in headers if route(header) == "segmentation"])
    of_series = pair_with_series(run, labels, accepted)
    run.table = label_table([pairing.label for pairings, _ in of_series for pairing in pairings], names)
    _timed(run, "checks", start)
    start = time.monotonic()
    if accepted:
        _write_volumes(run, checked, of_series)
    _timed(run, "volumes", start)


def _refused_rows(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first reason of each refused series, counted."""
    first = [
        next(finding for finding in entry["findings"] if finding["severity"] == ERROR)
        for entry in entries
        if not entry["accepted"]
    ]
    counts = Counter(finding["code"] for finding in first)
    remedies = {finding["code"]: finding["remedy"] for finding in first}
    return [{"code": code, "count": counts[code], "remedy": remedies[code]} for code in sorted(counts)]


def _nothing_accepted(run: Run, files: Sequence[Mapping[str, Any]]) -> DataError:
    refused = _refused_rows(run.entries)
    if not run.entries:
        reasons = ", ".join(f"{row['count']} {row['code']}" for row in files)
        return DataError(
            f"no DICOM image was found ({reasons or 'no files'}); the source folder; "
            "name the folder that holds the exported studies"
        )
    reasons = ", ".join(f"{row['count']} series {row['code']}" for row in refused)
    return DataError(
        f"no series could be accepted as a volume ({reasons}); the reasons stand in {run.out / 'qc.json'}; "
        f"for {refused[0]['code']}: {refused[0]['remedy']}"
    )


class _NewFolders:
    """Folders that did not exist before, so that a refused run leaves none of them behind empty."""

    def __init__(self, out: Path) -> None:
        self.folders = [folder for folder in (out, *out.parents) if not folder.exists()]

    def remove_empty(self) -> None:
        """Remove them from the inside out, as far as they are empty."""
        for folder in self.folders:
            if not folder.is_dir() or any(folder.iterdir()):
                return
            folder.rmdir()


def _checked_paths(src: Path, out: Path, site_key: Path) -> None:
    if not src.exists():
        raise UserError(f"the source folder does not exist; {src}; check the path")
    if out.resolve() == src.resolve():
        raise UserError(f"output and source are the same folder; {out}; choose another output folder")
    if out.resolve() in site_key.resolve().parents:
        raise UserError(f"the site key would lie in the output folder; {site_key}; keep it apart from what is shared")


def _wanted_modality(modality: str | None) -> str | None:
    if modality is None:
        return None
    wanted = DATALIST_MODALITIES.get(modality.upper(), modality.upper())
    if wanted not in DATALIST_MODALITIES.values():
        known = ", ".join(DATALIST_MODALITIES.values())
        raise UserError(f"modality must be one of {known}, got {modality!r}; --modality; choose one of them")
    return wanted


def _record(
    run: Run, inventory: Inventory, headers: int, files: list[dict[str, Any]], names: list[str]
) -> dict[str, Any]:
    source = {"files": inventory.files, "archives": inventory.archives, "instances": headers}
    return {
        "format": QC_FORMAT,
        "source": source,
        "series": run.entries,
        "files": files,
        "datalists": names,
        "timings": run.timings,
    }


def _run_in(
    run: Run, site_key: Path, names: Mapping[str, str] | None, split: Sequence[float], seed: int
) -> IngestSummary:
    begin = time.monotonic()
    inventory = take_inventory(run.src, [run.out, site_key], run.progress)
    _timed(run, "inventory", begin)
    start = time.monotonic()
    headers, bad_files = read_headers(inventory.sources, run.reader, run.progress)
    _timed(run, "headers", start)
    files = file_rows([*inventory.findings, *bad_files])
    if headers:
        _process(run, headers, names)
    datalists: list[str] = []
    if run.volumes:
        datalists = write_datalists(run.out, run.volumes, run.table, split, seed)
    if run.entries:
        write_qc(run.out / "qc.json", _record(run, inventory, len(headers), files, datalists))
    if not run.volumes:
        raise _nothing_accepted(run, files)
    return IngestSummary(
        out=run.out,
        accepted=len(run.volumes),
        labelled=sum(volume.labelled for volume in run.volumes),
        written=run.written,
        subjects=len({volume.subject for volume in run.volumes}),
        refused=tuple(_refused_rows(run.entries)),
        files=tuple(files),
        datalists=tuple(datalists),
        seconds=time.monotonic() - begin,
    )


def ingest(
    src: Path,
    out: Path,
    *,
    site_key: Path | None = None,
    modality: str | None = None,
    split: Sequence[float] = DEFAULT_SPLIT,
    seed: int = 0,
    label_names: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> IngestSummary:
    """Turn DICOM studies into volumes, labels and datalists.

    A second run on the same input changes nothing and decodes nothing. Files are whole or absent.

    Args:
        src: folder (or one file) of DICOM; zip archives in it are read too.
        out: output folder.
        site_key: secret key of the pseudonyms; None for the user's own, made on first use.
        modality: accept only "CT", "MR" or "PET".
        split: shares of training, validation and test subjects.
        seed: of the split.
        label_names: label names by index ({"1": "liver"}); None derives them from the label objects.
        progress: shows how far a stage is; called with an iterable, a description and a total.

    Raises:
        UserError: a path, the key or an option is wrong, or the output cannot be written to.
        DataError: nothing was accepted; ``qc.json`` says why if any series was found.
    """
    src, out = Path(src), Path(out)
    key_file = Path(site_key) if site_key is not None else default_site_key_path()
    _checked_paths(src, out, key_file)
    wanted = _wanted_modality(modality)
    new_folders = _NewFolders(out)
    output_folder(out)
    try:
        with SourceReader() as reader:
            run = Run(src, out, load_site_key(key_file), wanted, progress, reader)
            return _run_in(run, key_file, label_names, split, seed)
    finally:
        new_folders.remove_empty()
