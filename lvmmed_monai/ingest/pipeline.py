"""The ingest: a folder of DICOM in; NIfTI, label maps, PNG, previews, datalists and a quality record out.

    inventory -> headers -> route -> group -> checks -> pair labels -> decode -> write -> datalists

A series becomes a volume only after a positive geometric check; everything else is listed with its reason.
Nothing that is written or logged holds a path, a name or a header value, but for ``journal.sqlite``, which
holds paths and is readable by its owner only.
"""

from __future__ import annotations

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
from lvmmed_monai.ingest.checking import Candidate, check_all
from lvmmed_monai.ingest.export import export_deidentified
from lvmmed_monai.ingest.findings import ERROR
from lvmmed_monai.ingest.hold import hold
from lvmmed_monai.ingest.inventory import BadFile, Progress, no_progress, take_inventory
from lvmmed_monai.ingest.jobs import make_images, make_volume
from lvmmed_monai.ingest.journal import Journal
from lvmmed_monai.ingest.making import make
from lvmmed_monai.ingest.mosaic import make_mosaic
from lvmmed_monai.ingest.outputs import QC_FORMAT, file_rows, write_datalists, write_qc
from lvmmed_monai.ingest.page import write_page
from lvmmed_monai.ingest.pairing import pair_with_volumes
from lvmmed_monai.ingest.products import MosaicProduct, PlanarProduct, SketchProduct, VolumeProduct
from lvmmed_monai.ingest.reading import read_headers
from lvmmed_monai.ingest.routes import LABEL_ROUTES, MODALITIES, route
from lvmmed_monai.ingest.run import Options, Run
from lvmmed_monai.ingest.series import group_headers
from lvmmed_monai.ingest.sketch import draw_sketch
from lvmmed_monai.ingest.workers import open_workers

__all__ = ["DEFAULT_SPLIT", "IngestSummary", "ingest"]

DEFAULT_SPLIT = (0.7, 0.1, 0.2)
_COMPRESSION = 4  # NIfTI of noisy images shrinks by less: a lower bound of the space needed


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did.

    Attributes:
        out: output folder.
        accepted: number of volumes and planar images.
        labelled: number of volumes with a label map.
        written: volumes and images made in this run; the others were there already.
        subjects: number of subjects among them.
        refused: reason codes of each series that was refused (the first counts), with counts and remedies.
        files: reason codes of single files, with counts and remedies.
        datalists: file names in ``out``.
        failures: number of series and files that were refused: all but those that are no images of patients (R codes)
            and what is not DICOM (F02).
        exported: number of instances in the folder of the de-identified export, None without one.
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
    failures: int
    exported: int | None
    seconds: float


def _need_bytes(candidates: Sequence[Candidate]) -> int:
    sizes = (candidate.first.rows * candidate.first.columns * len(candidate.slices) for candidate in candidates)
    return sum(sizes) * 2 // _COMPRESSION


class _Stages:
    """Seconds that each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def done(self, name: str) -> None:
        """A stage ends, and the next one begins."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def _process(
    run: Run,
    headers: Sequence[Header],
    bad_files: Sequence[BadFile],
    names: Mapping[str, Any] | None,
    stages: _Stages,
) -> None:
    """From headers to volumes and images on disk."""
    label_headers = [header for header in headers if route(header) in LABEL_ROUTES]
    series = group_headers(header for header in headers if route(header) not in LABEL_ROUTES)
    passed = check_all(run, series, bad_files)
    pair_with_volumes(run, label_headers, passed.volumes, names, first_place=len(series))
    stages.done("checks")
    output_folder(run.out, need_bytes=_need_bytes(passed.volumes))
    make(run, [VolumeProduct(run, one) for one in passed.volumes], make_volume, "writing volumes")
    make(run, [MosaicProduct(run, one) for one in passed.mosaics], make_mosaic, "converting mosaics")
    make(run, [PlanarProduct(run, one) for one in passed.planar], make_images, "writing images")
    make(run, [SketchProduct(run, place) for place in run.to_show], draw_sketch, "drawing what was refused")
    stages.done("volumes")


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


def _nothing_found(files: Sequence[Mapping[str, Any]]) -> DataError:
    reasons = ", ".join(f"{row['count']} {row['code']}" for row in files)
    return DataError(
        f"no DICOM image was found ({reasons or 'no files'}); the source folder; "
        "name the folder that holds the exported studies"
    )


def _nothing_accepted(out: Path, entries: Sequence[Mapping[str, Any]]) -> DataError:
    refused = _refused_rows(entries)
    reasons = ", ".join(f"{row['count']} series {row['code']}" for row in refused)
    return DataError(
        f"no series could be accepted ({reasons}); the reasons stand in {out / 'qc.html'}; "
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
    wanted = {"PT": "PET"}.get(modality.upper(), modality.upper())
    if wanted not in MODALITIES:
        known = ", ".join(MODALITIES)
        raise UserError(f"modality must be one of {known}, got {modality!r}; --modality; choose one of them")
    return wanted


@dataclass(frozen=True)
class _Settings:
    """What concerns the whole ingest."""

    names: Mapping[str, Any] | None
    split: Sequence[float]
    seed: int
    deidentified: Path | None


def _failures(entries: Sequence[Mapping[str, Any]], files: Sequence[Mapping[str, Any]]) -> int:
    rows = [*_refused_rows(entries), *files]
    return sum(row["count"] for row in rows if not row["code"].startswith("R") and row["code"] != "F02")


def _export(run: Run, folder: Path | None) -> int | None:
    """Write the de-identified form of what was accepted."""
    if folder is None:
        return None
    with SourceReader() as reader:
        done = export_deidentified(run.used, reader, run.key, folder, run.progress)
    return done.written + done.present


def _written(
    run: Run, settings: _Settings, source: Mapping[str, int], files: list[dict[str, Any]], stages: _Stages
) -> IngestSummary:
    """Write what stands beside the images.

    Raises:
        DataError: nothing was accepted.
    """
    entries = [run.entries[place] for place in sorted(run.entries)]
    images = [run.images[place] for place in sorted(run.images)]
    split = (settings.split, settings.seed, run.journal)
    datalists = write_datalists(run.out, images, run.table, *split) if images else []
    record = {
        "format": QC_FORMAT,
        "source": source,
        "series": entries,
        "files": files,
        "datalists": datalists,
        "timings": stages.seconds,
    }
    write_qc(run.out / "qc.json", record)
    write_page(run.out / "qc.html", record)
    if not images:
        raise _nothing_accepted(run.out, entries)
    exported = _export(run, settings.deidentified)
    return IngestSummary(
        out=run.out,
        accepted=len(images),
        labelled=sum(image.labelled for image in images),
        written=run.written,
        subjects=len({image.subject for image in images}),
        refused=tuple(_refused_rows(entries)),
        files=tuple(files),
        datalists=tuple(datalists),
        failures=_failures(entries, files),
        exported=exported,
        seconds=sum(stages.seconds.values()),
    )


def ingest(
    src: Path,
    out: Path,
    *,
    site_key: Path | None = None,
    modality: str | None = None,
    strict: bool = False,
    keep_burned_in: bool = False,
    split: Sequence[float] = DEFAULT_SPLIT,
    seed: int = 0,
    label_names: Mapping[str, Any] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    expected: Mapping[str, int] | None = None,
    deidentified: Path | None = None,
    progress: Progress = no_progress,
) -> IngestSummary:
    """Turn DICOM studies into volumes, images, labels and datalists.

    A second run on the same input changes nothing and decodes nothing; an interrupted one is continued by the same
    call. Files are whole or absent. A bad file or series never stops a run.

    Args:
        src: folder, file, archive or DICOMDIR; zip and tar archives in a folder are read too.
        out: output folder.
        site_key: secret key of the pseudonyms; None for the user's own, made on first use.
        modality: accept only one of `MODALITIES`.
        strict: smaller geometric tolerances, and tilted series are refused instead of repaired.
        keep_burned_in: accept images whose header says that text is burned in.
        split: shares of training, validation and test subjects.
        seed: of the split.
        label_names: label names by index ({"1": "liver"}, or {"1": ["liver", "hepar"]} with other names for it);
            None derives them from the label objects.
        workers: number of worker processes; None for one a core, 0 for this process, without limits.
        scheduler: address of a Dask scheduler that spreads the work, instead of ``workers``.
        expected: number of instances in the archive of series that are here in part only, by SeriesInstanceUID.
        deidentified: folder for de-identified DICOM of what was accepted, with a list of what remains in it.
        progress: shows how far a stage is; called with an iterable, a description and a total.

    Raises:
        UserError: a path, the key or an option is wrong, or the output cannot be written to.
        DataError: nothing was accepted; ``qc.json`` says why if any series was found.
    """
    src, out = Path(src), Path(out)
    key_file = Path(site_key) if site_key is not None else default_site_key_path()
    _checked_paths(src, out, key_file)
    options = Options(_wanted_modality(modality), strict, keep_burned_in)
    settings = _Settings(label_names, split, seed, deidentified)
    skipped = [out, key_file, *([deidentified] if deidentified else [])]
    new_folders = _NewFolders(out)
    output_folder(out)
    try:
        key = load_site_key(key_file)
        with hold(out) as scratch, open_workers(workers, scheduler) as pool:
            stages = _Stages()
            inventory = take_inventory(src, skipped, progress, scratch)
            stages.done("inventory")
            headers, unread = read_headers(inventory.sources, pool, progress)
            stages.done("headers")
            bad_files = [*inventory.bad, *unread]
            files = file_rows(bad.finding for bad in bad_files)
            if not headers:
                raise _nothing_found(files)
            source = {"files": inventory.files, "archives": inventory.archives, "instances": len(headers)}
            with Journal(out / "journal.sqlite") as journal:
                run = Run(out, key, options, progress, pool, journal, expected or {})
                _process(run, headers, bad_files, settings.names, stages)
                return _written(run, settings, source, files, stages)
    finally:
        new_folders.remove_empty()
