"""Plain lines off a terminal, a bar on one, nothing when quiet."""

from __future__ import annotations

import sys

import pytest

from lvmmed_monai.cli import _progress
from lvmmed_monai.cli._progress import track


def test_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(_progress.time, "monotonic", lambda: float(next(clock)))
    assert list(track(range(4), "reading")) == [0, 1, 2, 3]
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == [
        "reading: 2 of 4, 6 s, about 6 s left",
        "reading: 4 of 4, 12 s, about 0 s left",
        "reading: 4 done in 15.0 s",
    ]


def test_an_iterator_without_length(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(track(iter("ab"), "reading")) == ["a", "b"]
    assert capsys.readouterr().err.startswith("reading: 1, 0 s")


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2], "reading", quiet=True)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(track([1, 2], "reading")) == [1, 2]
    written = capsys.readouterr()
    assert "2/2" in written.err
    assert written.out == ""


def test_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], "reading")) == []
