"""The reason codes of the ingest and the checks behind them.

``python -m lvmmed_monai.ingest.reasons`` prints the page of all codes.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from types import ModuleType
from typing import Any

from lvmmed_monai.ingest.reason_table import FAMILIES, REASONS, Reason

__all__ = ["FAMILIES", "REASONS", "Reason", "check_functions", "code_page", "codes_of"]

_LEADING_CODES = re.compile(r"[A-Z]\d\d(?:(?:, | and | to )[A-Z]\d\d)*(?=:)")
_PAGE_HEAD = """\
# Reason codes of the ingest

Whatever `lvmmed ingest` refuses, leaves out or wonders about carries one of these codes in `qc.json` and `qc.html`,
with the number measured, what was expected and what to do. A code never changes its meaning.

This page is generated: `python -m lvmmed_monai.ingest.reasons > docs/ingest_codes.md`."""


def check_functions() -> list[Callable[..., Any]]:
    """Every check of `lvmmed_monai.ingest.checks`: what its ``CHECKS`` lists hold, and what begins with a code."""
    package = importlib.import_module("lvmmed_monai.ingest.checks")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return [check for name in names for check in _checks_in(importlib.import_module(f"{package.__name__}.{name}"))]


def _checks_in(module: ModuleType) -> list[Callable[..., Any]]:
    listed = [check for name, value in vars(module).items() if name.endswith("CHECKS") for check in value]
    own = [value for _, value in inspect.getmembers(module, inspect.isfunction) if value.__module__ == module.__name__]
    found = [*listed, *(function for function in own if codes_of(function))]
    return list(dict.fromkeys(found))


def codes_of(check: Callable[..., Any]) -> list[str]:
    """The codes that a check may report: those its docstring begins with ("G01:", "R01 to R05, G04:")."""
    found = _LEADING_CODES.match(inspect.getdoc(check) or "")
    codes: list[str] = []
    for part in re.split(r", | and ", found.group()) if found else []:
        first, _, last = part.partition(" to ")
        numbers = range(int(first[1:]), int((last or first)[1:]) + 1)
        codes += [f"{first[0]}{number:02d}" for number in numbers]
    return codes


def _by_code() -> dict[str, list[Callable[..., Any]]]:
    found: dict[str, list[Callable[..., Any]]] = defaultdict(list)
    for check in check_functions():
        for code in codes_of(check):
            found[code].append(check)
    return found


def _section(code: str, checks: list[Callable[..., Any]]) -> list[str]:
    reason = REASONS[code]
    # The anchor by hand: a link to a code then does not depend on the words of its title.
    lines = [f'<a id="{code.lower()}"></a>', f"### {code} {reason.title}", "", reason.meaning, ""]
    lines += [f"- Measured: {reason.measured}", f"- What to do: {reason.remedy}"]
    for check in checks:
        module = check.__module__.rpartition(".")[2]
        said = " ".join((inspect.getdoc(check) or "").split("\n\n")[0].split()).partition(": ")[2]
        lines.append(f"- Check `{module}.{check.__name__}`: {said}")
    return [*lines, ""]


def code_page() -> str:
    """The page of all codes, in Markdown: what each means, and what its checks say of themselves."""
    checks = _by_code()
    lines = [_PAGE_HEAD, ""]
    for letter, title in FAMILIES.items():
        lines += [f"## {title}", ""]
        for code in REASONS:
            if code.startswith(letter):
                lines += _section(code, checks[code])
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(code_page())
