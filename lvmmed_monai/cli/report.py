"""``lvmmed report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with results.json or qc.json at any depth.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "From studies to models",
) -> None:
    """Gather what ingest, training and evaluation left into one HTML file that needs nothing else.

    Example: lvmmed report demo --out demo/report.html
    """
    from lvmmed_monai.report import build_report

    path = build_report(folders, out, title=title)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
