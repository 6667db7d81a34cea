"""``lvmmed phantom``: studies of generated anatomy, for trying things out and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["phantom"]


def phantom(
    out: Annotated[Path, typer.Argument(help="folder to write to: empty, or a phantom of the same settings")],
    kind: Annotated[str, typer.Option(help="torso_ct or brain_mr")] = "torso_ct",
    subjects: Annotated[int, typer.Option(help="how many subjects")] = 24,
    seed: Annotated[int, typer.Option(help="another seed gives other subjects")] = 0,
    size: Annotated[int, typer.Option(help="columns and rows of an image, 32 to 1024")] = 96,
    slice_mm: Annotated[
        tuple[float, float] | None, typer.Option(help="range of the distance between slices in mm, for example 1 1.5")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Write DICOM studies of generated anatomy, each with its labels as DICOM SEG. No patient is in them.

    Example: lvmmed phantom studies --kind torso_ct --subjects 24 --seed 0
    """
    import json

    from lvmmed_monai.log import track
    from lvmmed_monai.phantom import generate_studies

    studies = generate_studies(out, kind, subjects, seed, size, slice_mm=slice_mm)
    folders = list(track(studies, "writing subjects", total=subjects, quiet=quiet or as_json))
    files = sum(1 for folder in folders for _ in folder.rglob("*.dcm"))
    if as_json:
        print(json.dumps({"output": str(out), "kind": kind, "subjects": len(folders), "files": files}))
    else:
        print(f"{len(folders)} subjects in {files} DICOM files; {out}; next: lvmmed ingest {out} --out ingested")
