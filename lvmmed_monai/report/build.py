"""Putting the page together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lvmmed_monai import __version__
from lvmmed_monai.files import write_text
from lvmmed_monai.report.collect import Inputs, collect
from lvmmed_monai.report.ingest_view import ingest_view
from lvmmed_monai.report.run_view import key_metric, measures, run_view, total_seconds
from lvmmed_monai.report.words import amount, duration, memory, readable

__all__ = ["Headline", "build_report", "headlines"]

_TEMPLATES = Path(__file__).resolve().parent / "templates"
# Section of the page -> kind of run, in reading order.
_SECTIONS = {
    "pretraining": "Pre-training",
    "training": "Training",
    "evaluation": "Evaluation",
    "inference": "Inference",
    "benchmark": "Benchmarks",
}


@dataclass(frozen=True)
class Headline:
    """One number that sums up a step, and what to read it against."""

    title: str
    value: str
    note: str = ""


def headlines(inputs: Inputs) -> list[Headline]:
    """The numbers to read first: what was taken in, one measure for each pre-training and evaluation, cost."""
    found = []
    for source in inputs.ingests:
        accepted = sum(bool(item.get("accepted")) for item in source.record["series"])
        refused = len(source.record["series"]) - accepted
        found.append(
            Headline(
                "Series taken in", str(accepted), f"{refused} left out, with reasons" if refused else "none left out"
            )
        )
    for kind in ("pretraining", "evaluation"):
        found += [headline for run in inputs.of_kind(kind) if (headline := _run_headline(run.record)) is not None]
    seconds = [total for run in inputs.runs if (total := total_seconds(run.record)) is not None]
    if seconds:
        found.append(Headline("Time in the runs", duration(sum(seconds)), amount(len(seconds), "run")))
    peaks = [peak for run in inputs.runs if (peak := run.record.get("peak_memory_mb")) is not None]
    if peaks:
        found.append(Headline("Peak memory", memory(max(peaks)), "of one process"))
    return found


def _run_headline(record: dict[str, Any]) -> Headline | None:
    name = key_metric(record)
    if name is None:
        return None
    row = next(row for row in measures(record) if row["name"] == name)
    notes = [f"{kind} {value}" for kind, value in row["beside"].items()]
    if row["interval"]:
        notes.insert(0, f"95 % interval {row['interval']}")
    return Headline(f"{readable(record['name'])}: {row['title']}", row["text"], "; ".join(notes))


def build_report(
    folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, title: str = "From studies to models"
) -> Path:
    """Write one HTML file from all ``results.json`` and ``qc.json`` below ``folders``.

    The file holds its style, diagrams and pictures, runs no script and refers to no other file.

    Args:
        folders: searched at any depth.
        out: the file to write.
        title: its heading.

    Returns:
        The path of the file.

    Raises:
        UserError: a folder is missing or holds nothing to report on.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    inputs = collect(folders)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = [run_view(run) for run in inputs.runs]
    sections = [(heading, [run for run in runs if run["kind"] == kind]) for kind, heading in _SECTIONS.items()]
    page = environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        headlines=headlines(inputs),
        ingests=[ingest_view(source) for source in inputs.ingests],
        sections=[(heading, members) for heading, members in sections if members],
        runs=runs,
        problems=inputs.problems,
    )
    write_text(out, page)
    return Path(out)
