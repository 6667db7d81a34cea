"""``lvmmed check``: read everything a datalist names and say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["check"]

_SHOWN = 20


def _print_report(report: dict[str, Any], limit: int) -> None:
    counts = ", ".join(f"{count} {section}" for section, count in report["counts"].items())
    print(f"{report['name']} ({report['modality']}, {report['task']}): {counts}")
    if not report["findings"]:
        print("nothing wrong")
        return
    rows = sorted(report["findings"], key=lambda finding: (finding["severity"], finding["code"]))
    print(f"{'code':8} {'severity':8} {'section':10} {'item':28} {'measured':40} what to do")
    for row in rows[:limit]:
        print(
            f"{row['code']:8} {row['severity']:8} {row['section']:10} {row['item'][:28]:28} "
            f"{row['measured'][:40]:40} {row['remedy']}"
        )
    if len(rows) > limit:
        print(f"... and {len(rows) - limit} more; --json prints all")
    print(f"{report['errors']} errors, {report['warnings']} warnings")


def check(
    datalist: Annotated[Path, typer.Argument(help="the datalist.json to check")],
    json: Annotated[bool, typer.Option("--json", help="print the whole report as JSON")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Read every image and label of a datalist and report what is wrong; exit 3 when something is.

    Example: lvmmed check ingested/datalist.json
    """
    import json as json_format

    from lvmmed_monai.data.check import check_datalist
    from lvmmed_monai.errors import DataError
    from lvmmed_monai.log import track

    report = check_datalist(datalist, track=lambda rows: track(rows, "checking", quiet=quiet or json))
    if json:
        print(json_format.dumps(report, indent=1, ensure_ascii=False))
    else:
        _print_report(report, _SHOWN)
    if report["errors"]:
        raise DataError(
            f"{report['errors']} errors found; {datalist}; correct the items, or ingest again, then check again"
        )
