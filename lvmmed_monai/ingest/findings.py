"""What a check reports, and the runner that applies checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TypeVar

__all__ = ["ERROR", "NOTE", "WARNING", "Finding", "codes", "counted", "refuses", "run_checks"]

ERROR = "error"
"""The file, series or label is not used."""
WARNING = "warning"
"""It is used; somebody should look."""
NOTE = "note"
"""It is used; for the record."""

Subject = TypeVar("Subject")


@dataclass(frozen=True)
class Finding:
    """One thing that a check found. No part of it identifies anybody: numbers, units and our own words only.

    Attributes:
        code: reason code; never reused for another meaning.
        severity: `ERROR`, `WARNING` or `NOTE`.
        measured: what was found, with units.
        expected: what would have been right.
        remedy: what the user can do.
    """

    code: str
    severity: str
    measured: str
    expected: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        """As it stands in ``qc.json``."""
        return asdict(self)


def counted(number: int, noun: str) -> str:
    """ "1 slice", "2 slices"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def run_checks(checks: Iterable[Callable[[Subject], list[Finding]]], subject: Subject) -> list[Finding]:
    """Apply each check and gather what they find, in order."""
    return [finding for check in checks for finding in check(subject)]


def refuses(findings: Iterable[Finding]) -> bool:
    """Whether any finding is an error."""
    return any(finding.severity == ERROR for finding in findings)


def codes(findings: Iterable[Finding], severity: str = ERROR) -> list[str]:
    """Codes of a severity, each once, in the order found."""
    return list(dict.fromkeys(finding.code for finding in findings if finding.severity == severity))
