"""``lvmmed ingest``: a folder of DICOM, or a described public set, becomes volumes and datalists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lvmmed_monai.ingest.pipeline import IngestSummary

__all__ = ["ingest"]

_CODE_WIDTH, _COUNT_WIDTH = 5, 6


def ingest(
    src: Annotated[Path | None, typer.Argument(help="Folder of DICOM files and zip archives.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Output folder.")] = Path("ingested"),
    modality: Annotated[str | None, typer.Option(help="Accept only CT, MR or PET.")] = None,
    site_key: Annotated[Path | None, typer.Option(help="Secret key of the pseudonyms (made on first use).")] = None,
    labels: Annotated[Path | None, typer.Option(help='JSON table of label names: {"1": "liver", ...}.')] = None,
    manifest: Annotated[str | None, typer.Option(help="Manifest (file or id) of a set; needs --root.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the set that --manifest describes.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Turn DICOM studies into NIfTI volumes, label maps and datalists; say what was refused, and why.

    Example: lvmmed ingest /data/export --out ingested
    """
    if manifest is not None or root is not None:
        _ingest_manifest(src, manifest, root, out, as_json)
    else:
        _ingest_dicom(src, out, modality, site_key, labels, quiet, as_json)


def _ingest_manifest(src: Path | None, manifest: str | None, root: Path | None, out: Path, as_json: bool) -> None:
    import json

    from lvmmed_monai.data.import_source import import_source
    from lvmmed_monai.errors import UserError

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


def _ingest_dicom(
    src: Path | None,
    out: Path,
    modality: str | None,
    site_key: Path | None,
    labels: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    import json
    from dataclasses import asdict
    from functools import partial

    from lvmmed_monai.errors import UserError
    from lvmmed_monai.files import read_json
    from lvmmed_monai.ingest.pipeline import ingest as run_ingest
    from lvmmed_monai.log import track

    if src is None:
        raise UserError("the source folder is missing; the command line; write: lvmmed ingest FOLDER --out FOLDER")
    names = read_json(labels, "label table") if labels is not None else None
    if names is not None and not isinstance(names, dict):
        raise UserError(f'the label table is no JSON object; {labels}; write {{"1": "liver", "2": "spleen"}}')
    summary = run_ingest(
        src,
        out,
        site_key=site_key,
        modality=modality,
        label_names=names,
        progress=partial(track, quiet=quiet or as_json),
    )
    print(json.dumps(asdict(summary), default=str) if as_json else _dicom_lines(summary))


def _reason_lines(title: str, rows: tuple[dict[str, Any], ...]) -> list[str]:
    if not rows:
        return []
    table = [f"  {row['code']:<{_CODE_WIDTH}}{row['count']:>{_COUNT_WIDTH}}  {row['remedy']}" for row in rows]
    return [f"{title}: {sum(row['count'] for row in rows)}", *table]


def _dicom_lines(summary: IngestSummary) -> str:
    volumes = f"accepted: {summary.accepted} volumes of {summary.subjects} subjects, {summary.labelled} with labels"
    lines = [
        f"{volumes} ({summary.written} written now, {summary.seconds:.1f} s)",
        *_reason_lines("refused series", summary.refused),
        *_reason_lines("files passed over", summary.files),
        *(f"datalist: {summary.out / name}" for name in summary.datalists),
        f"reasons:  {summary.out / 'qc.json'}",
        f"next:     lvmmed check {summary.out / summary.datalists[0]}",
    ]
    return "\n".join(lines)
