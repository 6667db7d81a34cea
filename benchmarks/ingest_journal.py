"""How large the ingest's journal gets, and how fast a second run finds its way in it."""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

from lvmmed_monai.ingest.journal import Journal

__all__ = ["journal_figures"]

_SLICES = 40
_SAMPLES = 500  # generating takes longer than writing: the same sources again, under other names


def _name(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _series(number: int) -> tuple[str, dict[str, Any], dict[str, Any], list[tuple[str, str]]]:
    """Mark, result of the checks, outcome (about 1 KB of JSON) and sources of one generated series."""
    folder = "/".join(
        ["/archive/export", _name("patient", number)[:40], _name("study", number), _name("series", number)]
    )
    finding = {
        "code": "W01",
        "severity": "warning",
        "measured": f"SliceThickness {number % 70 / 10} mm",
        "expected": f"{number % 50 / 10} mm by the positions",
        "remedy": "none; positions win",
    }
    outcome = {
        "shape": [512, 512, _SLICES],
        "spacing_mm": [0.7 + number % 97 / 500, 0.7 + number % 97 / 500, 1 + number % 50 / 10],
        "value_range": [-1024.0, 1000.0 + number % 2071],
        "labels": None,
        "label_channels": None,
        "decoders": ["native"],
        "findings": [finding] * 4,
    }
    checked = {"findings": [], "stacks": [{"members": None, "findings": [finding] * 2}]}
    sources = [(f"{folder}/{_name(number, k)[:24]}.dcm", "") for k in range(_SLICES)]
    return _name("mark", number), checked, outcome, sources


def journal_figures(rows: int) -> dict[str, float]:
    """Write a journal of ``rows`` generated series, open it again and look all of them up.

    Returns:
        "series"; "megabytes" on disk; seconds to "write_s" and to "resume_s" (open, and find every series).
    """
    samples = [_series(number) for number in range(min(rows, _SAMPLES))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.sqlite")
        start = time.perf_counter()
        with Journal(path) as journal:
            for number in range(rows):
                mark, checked, outcome, sources = samples[number % len(samples)]
                volume_id = _name("volume", number)[:16]
                journal.keep_outcome(f"check {volume_id}", mark, checked, {})
                journal.keep_outcome(volume_id, mark, outcome, {volume_id: sources})
        written = time.perf_counter() - start
        start = time.perf_counter()
        with Journal(path) as journal:
            found = 0
            for number in range(rows):
                mark, volume_id = samples[number % len(samples)][0], _name("volume", number)[:16]
                both = journal.outcome(f"check {volume_id}", mark), journal.outcome(volume_id, mark)
                found += None not in both
        resumed = time.perf_counter() - start
        if found != rows:
            raise RuntimeError(f"{found} of {rows} series were found again")
        return {"series": rows, "megabytes": path.stat().st_size / 1e6, "write_s": written, "resume_s": resumed}
