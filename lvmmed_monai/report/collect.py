"""Finding and reading what a report is made of: ``results.json`` and ``qc.json``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import read_json
from lvmmed_monai.results import KINDS, read_results

__all__ = ["Inputs", "Source", "collect"]

QC_FORMAT = "lvmmed-qc/1"


@dataclass(frozen=True)
class Source:
    """A result file that was read: its folder (pictures are relative to it), a short name for it, and its content."""

    folder: Path
    label: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """All that a report is made of. ``problems`` are sentences about files that could not be used."""

    runs: list[Source] = field(default_factory=list)
    ingests: list[Source] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Source]:
        """The runs of one kind (`lvmmed_monai.results.KINDS`), in the order in which they ran."""
        return [run for run in self.runs if run.record["kind"] == kind]


def collect(folders: Sequence[str | os.PathLike[str]]) -> Inputs:
    """Read every result file below ``folders``, each once.

    Raises:
        UserError: a folder is missing, or there is no result file at all.
    """
    inputs = Inputs()
    seen: set[Path] = set()
    for name in folders:
        root = Path(name)
        if not root.is_dir():
            raise UserError(f"not a folder; {root}; name folders that hold results.json or qc.json")
        for path in sorted([*root.rglob("results.json"), *root.rglob("qc.json")]):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                _read(path, _label(path.parent, root), inputs)
    if not inputs.runs and not inputs.ingests:
        reason = f" ({inputs.problems[0]})" if inputs.problems else ""
        places = ", ".join(str(Path(name)) for name in folders)
        raise UserError(
            f"no results.json or qc.json to report on{reason}; {places}; run ingest, training or evaluation first"
        )
    inputs.runs.sort(key=lambda run: (KINDS.index(run.record["kind"]), run.record["created"]))
    return inputs


def _label(folder: Path, root: Path) -> str:
    inside = folder.relative_to(root)
    return str(inside) if inside.parts else folder.resolve().name


def _read(path: Path, label: str, inputs: Inputs) -> None:
    try:
        if path.name == "results.json":
            inputs.runs.append(Source(path.parent, label, read_results(path)))
        else:
            inputs.ingests.append(Source(path.parent, label, _read_qc(path)))
    except UserError as error:
        inputs.problems.append(str(error))


def _read_qc(path: Path) -> dict[str, Any]:
    record = read_json(path, "ingest summary")
    if not isinstance(record, dict) or record.get("format") != QC_FORMAT or not isinstance(record.get("series"), list):
        raise UserError(f"not an ingest summary of format {QC_FORMAT}; {path}; run lvmmed ingest again")
    return record
