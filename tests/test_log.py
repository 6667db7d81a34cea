"""Plain lines off a terminal, a bar on one, nothing when quiet."""

from __future__ import annotations

import logging
import sys

import pytest

from lvmmed_monai import log
from lvmmed_monai.log import track


@pytest.fixture(autouse=True)
def _informed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(log.time, "monotonic", lambda: float(next(clock)))
    assert list(track(range(4), "reading")) == [0, 1, 2, 3]
    assert caplog.messages == [
        "reading: 2 of 4, 6 s, about 6 s left",
        "reading: 4 of 4, 12 s, about 0 s left",
        "reading: 4 done in 15.0 s",
    ]


def test_an_iterator_without_length(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(track(iter("ab"), "reading")) == ["a", "b"]
    assert caplog.messages[0] == "reading: 1, 0 s"


def test_quiet(caplog: pytest.LogCaptureFixture) -> None:
    assert list(track([1, 2], "reading", quiet=True)) == [1, 2]
    assert not caplog.messages


def test_quiet_where_information_is_not_logged(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert list(track([1, 2], "reading")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(track([1, 2], "reading")) == [1, 2]
    written = capsys.readouterr()
    assert "2/2" in written.err
    assert written.out == ""


def test_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], "reading")) == []
