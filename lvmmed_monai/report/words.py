"""How the report writes names, numbers, times and sizes."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["amount", "duration", "interval", "memory", "number", "readable"]

_SPELLING = {
    "dice": "Dice",
    "voco": "VoCo",
    "lvmmed": "LVM-Med",
    "2d": "2D",
    "3d": "3D",
    "ct": "CT",
    "mr": "MR",
    "dicom": "DICOM",
    "seg": "SEG",
    "hd95": "HD95",
    "auc": "AUC",
    "knn": "kNN",
    "ssl": "SSL",
    "aug": "(augmented crops)",
    "clean": "(clean crops)",
}
ABSENT = "–"


def readable(name: str) -> str:
    """An identifier as words: ``held_out/matching_accuracy`` becomes ``Held out: matching accuracy``."""
    if name == "dice/mean":
        return "Mean Dice"
    name = name.replace("validation/val_", "validation/")
    parts = [
        " ".join(_SPELLING.get(word.lower(), word) for word in part.replace("_", " ").split())
        for part in name.split("/")
    ]
    text = ": ".join(part for part in parts if part)
    return text[:1].upper() + text[1:]


def number(value: float | None, digits: int = 3) -> str:
    """``0.874``; a dash for a number that could not be computed."""
    if value is None:
        return ABSENT
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 10):
        return f"{int(value):,}".replace(",", " ")
    return f"{value:.{digits}f}" if abs(value) >= 10.0**-digits or value == 0 else f"{value:.1e}"


def interval(bounds: Sequence[float] | None) -> str:
    """``0.85 to 0.90``, or nothing."""
    return "" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def duration(seconds: float | None) -> str:
    """``4.2 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if seconds is None:
        return ABSENT
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(mebibytes: float | None) -> str:
    """``412 MB`` or ``2.1 GB``."""
    if mebibytes is None:
        return ABSENT
    return f"{mebibytes:.0f} MB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GB"


def amount(count: int, one: str, many: str | None = None) -> str:
    """``1 volume``, ``3 volumes``."""
    return f"{count} {one if count == 1 else many or one + 's'}"
