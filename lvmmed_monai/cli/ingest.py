"""``lvmmed ingest``: a folder of DICOM, or a described public set, becomes volumes and datalists."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.log import track

if TYPE_CHECKING:
    from lvmmed_monai.ingest.pipeline import IngestSummary

__all__ = ["ingest"]

_CODE_WIDTH, _COUNT_WIDTH = 5, 6


def ingest(
    src: Annotated[
        Path | None,
        typer.Argument(help="Folder, archive (zip, tar) or DICOMDIR; with --dicomweb, the folder to fetch into."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("ingested"),
    modality: Annotated[str | None, typer.Option(help="Accept only CT, MR, PET, XR, US, COLOR or OTHER.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help='JSON table of label names: {"1": "liver", "2": ["spleen", "lien"], ...}.')
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Smaller tolerances; refuse tilted series.")] = False,
    keep_burned_in: Annotated[
        bool, typer.Option("--keep-burned-in", help="Accept images that have, or may have, text in their pixels.")
    ] = False,
    site_key: Annotated[Path | None, typer.Option(help="Secret key of the pseudonyms (made on first use).")] = None,
    deidentified: Annotated[
        Path | None, typer.Option(help="Folder for de-identified DICOM of what is accepted.")
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(min=0, help="Exit with 3 if more series and files than this are refused.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Worker processes; default: one a core. 0: this process, no limits.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Dask scheduler (tcp://host:8786) to work on.")] = None,
    dicomweb: Annotated[str | None, typer.Option(help="Address of a DICOMweb archive to fetch from.")] = None,
    query: Annotated[str | None, typer.Option(help="What to fetch: PatientID=...&Modality=CT&StudyDate=...")] = None,
    credentials: Annotated[
        Path | None, typer.Option(help="File of mode 0600 with user and password, or token, of the archive.")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(help="Certificates that the archive is checked against.")] = None,
    allow_http: Annotated[bool, typer.Option("--allow-http", help="Allow an archive without encryption.")] = False,
    manifest: Annotated[str | None, typer.Option(help="Manifest (file or id) of a set; needs --root.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the set that --manifest describes.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Turn DICOM studies into NIfTI volumes, PNG images, label maps and datalists; say what was refused, and why.

    Run it again after an interruption, or when files were added: what is done is not done again.

    Example: lvmmed ingest /data/export --out ingested

    Example: lvmmed ingest fetched --dicomweb https://pacs/dicom-web --query "Modality=CT&StudyDate=20260101-"
    """
    if manifest is not None or root is not None:
        _ingest_manifest(src, manifest, root, out, as_json)
        return
    if src is None:
        raise UserError("the source folder is missing; the command line; write: lvmmed ingest FOLDER --out FOLDER")
    options: dict[str, Any] = {
        "site_key": site_key,
        "modality": modality,
        "strict": strict,
        "keep_burned_in": keep_burned_in,
        "deidentified": deidentified,
        "label_names": _label_names(labels),
        "workers": workers,
        "scheduler": scheduler,
        "progress": partial(track, quiet=quiet or as_json),
    }
    if dicomweb is not None or query is not None:
        archive = {"credentials": credentials, "ca_file": ca_file, "allow_http": allow_http}
        options["expected"] = _fetch(src, dicomweb, query, archive, site_key, options["progress"])
    _ingest_dicom(src, out, options, max_failures, as_json)


def _fetch(
    folder: Path,
    address: str | None,
    query: str | None,
    archive: dict[str, Any],
    site_key: Path | None,
    progress: Any,
) -> dict[str, int]:
    """Fetch what is missing from an archive; the number of instances of series that did not arrive whole."""
    from lvmmed_monai.dicom.privacy import load_site_key
    from lvmmed_monai.dicom.web import DicomWeb
    from lvmmed_monai.dicom.web_access import load_credentials
    from lvmmed_monai.ingest.download import download

    if address is None or not query:
        raise UserError(
            "--dicomweb and --query go together; the command line; "
            "write: lvmmed ingest FOLDER --dicomweb URL --query Modality=CT --out FOLDER"
        )
    access = load_credentials(archive["credentials"])
    with closing(DicomWeb(address, access, ca_file=archive["ca_file"], allow_http=archive["allow_http"])) as web:
        done = download(web, query, folder, load_site_key(site_key), progress)
    return {series: wanted for series, (_, wanted) in done.incomplete.items()}


def _label_names(path: Path | None) -> dict[str, Any] | None:
    from lvmmed_monai.files import read_json

    names = read_json(path, "label table") if path is not None else None
    if names is not None and not isinstance(names, dict):
        raise UserError(f'the label table is no JSON object; {path}; write {{"1": "liver", "2": "spleen"}}')
    return names


def _ingest_manifest(src: Path | None, manifest: str | None, root: Path | None, out: Path, as_json: bool) -> None:
    import json

    from lvmmed_monai.data.import_source import import_source

    if manifest is None or root is None or src is not None:
        raise UserError(
            "--manifest and --root go together, without a DICOM folder; the command line; "
            "write: lvmmed ingest --manifest FILE --root FOLDER --out FOLDER"
        )
    result: Any = import_source(manifest, root, out)
    print(json.dumps(result, default=str) if as_json else _manifest_lines(result))


def _manifest_lines(result: dict[str, Any]) -> str:
    counts = [
        f"{name}: " + ", ".join(f"{count} {section}" for section, count in sections.items())
        for name, sections in result["counts"].items()
    ]
    datalists = [f"datalist: {path}" for path in result["datalists"]]
    following = f"next:     lvmmed check {result['datalists'][0]}"
    return "\n".join([*counts, *_reason_lines("passed over", tuple(result["dropped"])), *datalists, following])


def _ingest_dicom(src: Path, out: Path, options: dict[str, Any], max_failures: int | None, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from lvmmed_monai.ingest.pipeline import ingest as run_ingest

    summary = run_ingest(src, out, **options)
    print(json.dumps(asdict(summary), default=str) if as_json else _dicom_lines(summary))
    if max_failures is not None and summary.failures > max_failures:
        raise DataError(
            f"{summary.failures} series and files were refused, more than --max-failures {max_failures}; "
            f"{out / 'qc.html'}; look at the reasons there"
        )


def _reason_lines(title: str, rows: tuple[dict[str, Any], ...]) -> list[str]:
    if not rows:
        return []
    table = [f"  {row['code']:<{_CODE_WIDTH}}{row['count']:>{_COUNT_WIDTH}}  {row['remedy']}" for row in rows]
    return [f"{title}: {sum(row['count'] for row in rows)}", *table]


def _dicom_lines(summary: IngestSummary) -> str:
    volumes = f"accepted: {summary.accepted} images of {summary.subjects} subjects, {summary.labelled} with labels"
    lines = [
        f"{volumes} ({summary.written} written now, {summary.seconds:.1f} s)",
        *_reason_lines("refused series", summary.refused),
        *_reason_lines("files passed over", summary.files),
        *(f"datalist: {summary.out / name}" for name in summary.datalists),
        *([f"exported: {summary.exported} de-identified instances"] if summary.exported is not None else []),
        f"reasons:  {summary.out / 'qc.html'}",
        f"next:     lvmmed check {summary.out / summary.datalists[0]}",
    ]
    return "\n".join(lines)
