"""``qc.html``: what was taken in, what was left out and why, with a picture of every series.

One file without network; pictures are linked beside it (``previews/``), so that it stays small with thousands of
series. It holds no date and no timing: the same record gives the same page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvmmed_monai.files import write_text
from lvmmed_monai.ingest.findings import ERROR, NOTE
from lvmmed_monai.ingest.reason_table import REASONS

__all__ = ["MOST_SERIES", "page_text", "write_page"]

MOST_SERIES = 2000
"""The page shows so many series; the others stand in ``qc.json``."""
_TEMPLATES = Path(__file__).resolve().parent / "templates"

Entry = Mapping[str, Any]

_PARTS = {
    "refused": ("Refused", "Not used. These were meant as images, and something is wrong with them."),
    "look": ("Accepted, but look at these", "Used. Something was found that a person should see."),
    "accepted": ("Accepted", "Used. Nothing was found that asks for a look."),
    "aside": ("Set aside", "Not used for what they are, such as localizers, captures and reports."),
}
"""The parts of the page, what needs attention first: title and explanation."""


def write_page(path: Path, record: Mapping[str, Any]) -> None:
    """Write the page of a ``qc.json`` record, unless it stands there already.

    Args:
        path: of the page, in the output folder: pictures are looked for beside it.
        record: format ``lvmmed-qc/1``.
    """
    text = page_text(record)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def page_text(record: Mapping[str, Any], most: int = MOST_SERIES) -> str:
    """The page as HTML.

    Args:
        record: format ``lvmmed-qc/1``.
        most: number of series shown; each group gets a fair share of it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    entries: Sequence[Entry] = record["series"]
    groups = _groups(entries, most)
    environment.filters["thousands"] = "{:,}".format
    return environment.get_template("qc.html.j2").render(
        tiles=_tiles(record, entries),
        modalities=_modality_rows(entries),
        bars=_bars(groups),
        files=[{**row, "title": _title(row["code"])} for row in record["files"]],
        parts=[
            {"name": name, "title": title, "note": note, "count": sum(g["count"] for g in members), "groups": members}
            for name, (title, note) in _PARTS.items()
            if (members := [group for group in groups if group["part"] == name])
        ],
        codes=_codes(record),
        datalists=record["datalists"],
    )


def _title(code: str) -> str:
    return REASONS[code].title if code in REASONS else ""


def _asks(finding: Mapping[str, str]) -> bool:
    """Whether a finding of an accepted series wants to be looked at."""
    return finding["severity"] != NOTE and not finding["remedy"].startswith("none")


def _main_finding(entry: Entry) -> Mapping[str, str] | None:
    """What a series is listed under: its first error, else its first warning that asks for a look."""
    errors = (finding for finding in entry["findings"] if finding["severity"] == ERROR)
    return next(errors, None) or next((finding for finding in entry["findings"] if _asks(finding)), None)


def _part(entry: Entry) -> str:
    main = _main_finding(entry)
    if entry["accepted"]:
        return "look" if main else "accepted"
    return "aside" if main and main["code"].startswith("R") else "refused"


def _heading(entry: Entry) -> str:
    """What a series is grouped by within its part: a code, or the modality where nothing was found."""
    main = _main_finding(entry)
    return main["code"] if main else entry["modality"]


def _groups(entries: Sequence[Entry], most: int) -> list[dict[str, Any]]:
    """Series of one part and one heading; errors first, then the largest group first."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        found.setdefault((_part(entry), _heading(entry)), []).append(entry)
    shares = dict(zip(found, _fair_shares([len(members) for members in found.values()], most), strict=True))
    groups = [_group(part, name, members, shares[part, name]) for (part, name), members in found.items()]
    return sorted(groups, key=lambda group: (not group["error"], -group["count"], group["name"]))


def _fair_shares(counts: Sequence[int], most: int) -> list[int]:
    """How many of each group to show, at most ``most`` in all: small groups whole, large ones equally cut."""
    shares = [0] * len(counts)
    left = most
    for place, index in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[index] = min(counts[index], left // (len(counts) - place))
        left -= shares[index]
    return shares


def _group(part: str, name: str, members: Sequence[Entry], share: int) -> dict[str, Any]:
    mains = [main for entry in members if (main := _main_finding(entry))]
    common = {key: _common([main[key] for main in mains]) for key in ("expected", "remedy")}
    return {
        "part": part,
        "name": name,
        "code": name if mains else "",
        "title": _title(name) if mains else name,
        "meaning": REASONS[name].meaning if mains and name in REASONS else "",
        "common": common,
        "error": any(main["severity"] == ERROR for main in mains),
        "count": len(members),
        "hidden": len(members) - share,
        "series": [_card(entry, common) for entry in members[:share]],
    }


def _common(texts: Sequence[str]) -> str:
    """What all of several say alike, to be said once."""
    return texts[0] if len(texts) > 1 and len(set(texts)) == 1 else ""


def _card(entry: Entry, common: Mapping[str, str]) -> dict[str, Any]:
    """One series. What the heading of its group says is not repeated, nor what nobody needs to do."""
    main = _main_finding(entry)
    findings = []
    for finding in entry["findings"]:
        if finding is main:
            unsaid = [key for key, text in common.items() if text]
        else:
            # Warnings about a series that is not used anyway are for the record.
            unsaid = ["expected", "remedy"] if not entry["accepted"] and finding["severity"] != ERROR else []
        findings.append({**finding, **dict.fromkeys(unsaid, "")})
    return {
        "id": entry["id"],
        "modality": entry["modality"],
        "preview": entry["preview"],
        "facts": _facts(entry),
        "findings": sorted(findings, key=lambda finding: (finding["severity"] == NOTE, finding["severity"] != ERROR)),
    }


def _facts(entry: Entry) -> list[str]:
    """What is known of a series, as short texts."""
    get = entry.get
    unit = " HU" if entry["modality"] == "CT" else ""
    facts = [
        f"time point {entry['time_point']} of {entry['time_points']}" if get("time_point") else "",
        _numbers(get("shape"), " × "),
        f"{_numbers(get('spacing_mm'), ' × ')} mm" if get("spacing_mm") else "",
        _many(entry["frames"], "frame") if (get("frames") or 0) > 1 else "",
        f"{_numbers(get('value_range'), ' to ')}{unit}" if get("value_range") else "",
        f"labels: {_words(get('labels'))}" if get("labels") else "",
        f"label channels: {_words(get('label_channels'))}" if get("label_channels") else "",
        f"decoded by {_words(get('decoders'))}" if get("decoders") else "",
    ]
    return [fact for fact in facts if fact]


def _numbers(values: Iterable[float] | None, between: str) -> str:
    return between.join(f"{value:g}" if value == int(value) else f"{value:.4g}" for value in values or ())


def _words(values: Iterable[str] | None) -> str:
    return ", ".join(values or ())


def _tiles(record: Mapping[str, Any], entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """The numbers to read first: (title, value, note)."""
    parts = Counter(_part(entry) for entry in entries)
    accepted = [entry for entry in entries if entry["accepted"]]
    images = sum(entry.get("kind") == "image" for entry in accepted)
    labelled = sum(bool(entry.get("labels")) for entry in accepted)
    kinds = _many(len(accepted) - images, "volume") + (f", {_many(images, 'image')}" if images else "")
    source = record["source"]
    archives = f", archives among them: {source['archives']:,}" if source.get("archives") else ""
    return [
        ("Refused", f"{parts['refused']:,}", "something is wrong with them"),
        ("Accepted", f"{len(accepted):,}", f"{kinds}; {labelled:,} with labels"),
        ("To look at", f"{parts['look']:,}", "of those accepted"),
        ("Set aside", f"{parts['aside']:,}", "for what they are"),
        ("Files passed over", f"{sum(row['count'] for row in record['files']):,}", f"of {source['files']:,}{archives}"),
    ]


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _modality_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Accepted, refused and set aside by modality, the most frequent first, with shares in percent for the bars."""
    counts = Counter((entry["modality"], _part(entry)) for entry in entries)
    totals = Counter(entry["modality"] for entry in entries)
    largest = max(totals.values(), default=1)
    rows = []
    for name, total in totals.most_common():
        numbers = {
            "accepted": counts[name, "accepted"] + counts[name, "look"],
            "refused": counts[name, "refused"],
            "aside": counts[name, "aside"],
        }
        widths = {kind: round(100 * number / largest, 2) for kind, number in numbers.items()}
        rows.append({"name": name, "total": total, "numbers": numbers, "widths": widths})
    return rows


def _bars(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One bar for each reason that kept series out."""
    rows = [group for group in groups if group["part"] in ("refused", "aside")]
    largest = max((row["count"] for row in rows), default=1)
    return [{**row, "width": round(100 * row["count"] / largest, 2)} for row in rows]


def _codes(record: Mapping[str, Any]) -> dict[str, Any]:
    """The explanation of every code on the page."""
    found = {finding["code"] for entry in record["series"] for finding in entry["findings"]}
    found |= {row["code"] for row in record["files"]}
    return {code: reason for code, reason in REASONS.items() if code in found}
