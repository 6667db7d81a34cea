"""What the report says about ingest: how much was accepted, what was left out and why, and how it looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvmmed_monai.report.collect import Source
from lvmmed_monai.report.figures import picture
from lvmmed_monai.report.words import duration, number

__all__ = ["ingest_view"]

_MOST_PREVIEWS = 6


def ingest_view(source: Source) -> dict[str, Any]:
    """The values that the template shows for one ``qc.json``."""
    series: list[dict[str, Any]] = source.record["series"]
    accepted = [item for item in series if item.get("accepted")]
    refused = [item for item in series if not item.get("accepted")]
    return {
        "label": source.label,
        "accepted": len(accepted),
        "refused": len(refused),
        "files": _file_count(source.record.get("source", {})),
        "modalities": Counter(item.get("modality") or "unknown" for item in accepted).most_common(),
        "labelled": sum(bool(item.get("labels")) for item in accepted),
        "series": [_series_row(item) for item in [*accepted, *refused]],
        "findings": _findings(series),
        "file_findings": source.record.get("files", []),
        "previews": _previews(accepted, source.folder),
        "timings": {name: duration(seconds) for name, seconds in source.record.get("timings", {}).items()},
    }


def _file_count(source: Any) -> int | None:
    return source.get("files") if isinstance(source, dict) else None


def _series_row(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": item["id"],
        "modality": item.get("modality") or "unknown",
        "accepted": bool(item.get("accepted")),
        "shape": " × ".join(map(str, item.get("shape") or [])),
        "spacing": " × ".join(f"{size:.3g}" for size in item.get("spacing_mm") or []),
        "range": " to ".join(number(value, 0) for value in item.get("value_range") or []),
        "labels": ", ".join(item.get("labels") or []),
        "codes": ", ".join(dict.fromkeys(finding["code"] for finding in item.get("findings", []))),
    }


def _findings(series: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each reason code, those that keep series out first."""
    rows: dict[str, dict[str, Any]] = {}
    for item in series:
        for code, finding in {finding["code"]: finding for finding in item.get("findings", [])}.items():
            row = rows.setdefault(code, {**finding, "series": 0, "kept_out": 0})
            row["series"] += 1
            row["kept_out"] += not item.get("accepted")
    return sorted(rows.values(), key=lambda row: (-row["kept_out"], -row["series"], row["code"]))


def _previews(accepted: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """A few accepted series, spread evenly over all of them, those with labels preferred."""
    shown = [item for item in accepted if item.get("preview") and item.get("labels")]
    shown = shown or [item for item in accepted if item.get("preview")]
    stride = max(1, len(shown) / _MOST_PREVIEWS)
    chosen = [shown[int(index * stride)] for index in range(min(_MOST_PREVIEWS, len(shown)))]
    pictures = [{**_series_row(item), "address": picture(folder / item["preview"])} for item in chosen]
    return [item for item in pictures if item["address"]]
