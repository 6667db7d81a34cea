"""``lvmmed report``."""

from __future__ import annotations

from pathlib import Path

import pytest

from lvmmed_monai.cli.app import execute
from lvmmed_monai.results import new_results, write_results


def test_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "run" / "results.json", new_results("benchmark", "speed", seed=0))
    out = tmp_path / "new folder" / "report.html"
    assert execute(["report", str(tmp_path), "--out", str(out), "--title", "Ours"]) == 0
    assert "<h1>Ours</h1>" in out.read_text(encoding="utf-8")
    assert str(out) in capsys.readouterr().out


def test_nothing_to_report_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert capsys.readouterr().err.startswith("lvmmed: no results.json or qc.json")
    assert not (tmp_path / "r.html").exists()
