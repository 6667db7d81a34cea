"""The reason codes: every code that the code base uses is explained, and the page of codes is up to date."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvmmed_monai.ingest.reasons import FAMILIES, REASONS, check_functions, code_page, codes_of

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = (REPOSITORY / "lvmmed_monai" / "ingest", REPOSITORY / "lvmmed_monai" / "dicom")
CODE = re.compile(r"[A-Z]\d\d")
REGENERATE = "regenerate it: python -m lvmmed_monai.ingest.reasons > docs/ingest_codes.md"


def codes_in(node: ast.AST | None) -> Iterator[str]:
    for part in ast.walk(node) if node is not None else ():
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and CODE.fullmatch(part.value):
            yield part.value


def used_codes(tree: ast.AST) -> Iterator[str]:
    """Codes that a module reports: in the first argument of Finding and DicomError, and in tables of constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Finding", "DicomError"):
            yield from codes_in(node.args[0] if node.args else None)
            yield from (code for word in node.keywords if word.arg == "code" for code in codes_in(word.value))
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            yield from codes_in(node.value)


def test_the_scan_finds_what_it_looks_for():
    source = 'Finding("A01", x)\nraise DicomError("A02" if wide else "A03", x)\nREMEDIES = {"A04": "x"}\n'
    source += '_ROUTES = {"way": ("A05", "what", "do")}\nFinding(code="A06")\nother("A07")\n'
    assert list(sorted(used_codes(ast.parse(source)))) == ["A01", "A02", "A03", "A04", "A05", "A06"]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_code_in_use_is_explained(room):
    used = {
        code: path.name
        for path in sorted(room.rglob("*.py"))
        if not path.name.startswith("reason")
        for code in used_codes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert len(used) > 5
    assert {code: name for code, name in used.items() if code not in REASONS} == {}, "explain them in reason_table.py"


@pytest.mark.parametrize("check", check_functions(), ids=lambda check: f"{check.__module__}.{check.__name__}")
def test_every_check_begins_with_its_codes(check):
    assert codes_of(check), 'begin the docstring with the code: "G01: slices are missing inside."'
    assert set(codes_of(check)) <= set(REASONS)


def test_codes_of_a_docstring():
    def check():
        """R01 to R03, G04 and W05: several of them. G01 is only spoken of."""

    def mute():
        """Nothing before G01: no code."""

    assert codes_of(check) == ["R01", "R02", "R03", "G04", "W05"]
    assert codes_of(mute) == []
    assert len(check_functions()) > 20


def test_reasons_are_whole():
    assert list(REASONS) == sorted(REASONS, key=lambda code: (list(FAMILIES).index(code[0]), code))
    for code, reason in REASONS.items():
        assert CODE.fullmatch(code)
        assert all(reason), code
        sentences = [text.endswith(".") for text in reason]
        assert sentences == [False, True, False, True], code
    assert len({reason.title for reason in REASONS.values()}) == len(REASONS)


def test_the_page_shows_every_code_and_check():
    page = code_page()
    for code, reason in REASONS.items():
        assert f'<a id="{code.lower()}"></a>\n### {code} {reason.title}\n' in page
    for check in check_functions():
        module = check.__module__.rpartition(".")[2]
        assert page.count(f"- Check `{module}.{check.__name__}`: ") == len(codes_of(check))


def test_the_committed_page_is_up_to_date():
    committed = (REPOSITORY / "docs" / "ingest_codes.md").read_text(encoding="utf-8")
    assert committed == code_page(), f"docs/ingest_codes.md is not what the code says; {REGENERATE}"
