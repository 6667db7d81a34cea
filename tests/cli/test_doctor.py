"""Ten lines that are true of this machine."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import pytest

from lvmmed_monai.cli import doctor as doctor_module
from lvmmed_monai.cli.app import execute
from lvmmed_monai.cli.doctor import examine


def test_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert platform.python_version() in lines[0]


def test_json_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in checks] == [check.name for check in examine(Path.cwd())]
    assert all(check["status"] in ("ok", "note", "missing") for check in checks)


def test_what_is_missing_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    real = doctor_module._version
    monkeypatch.setattr(doctor_module, "_version", lambda name: None if name in ("highdicom", "onnx") else real(name))
    checks = {check.name: check for check in examine(tmp_path)}
    assert "dicom3tools" in checks["tools"].remedy
    assert (checks["dicom"].status, checks["dicom"].remedy) == ("missing", "pip install highdicom")
    assert "onnx" in checks["extras"].found


def test_a_missing_part_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_version", lambda name: None)
    assert execute(["doctor"]) == 1


def test_little_memory_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "memory_gb", lambda: (8.0, 2.0))
    assert doctor_module._memory().status == "note"
    monkeypatch.setattr(doctor_module, "memory_gb", lambda: None)
    assert "does not say" in doctor_module._memory().found
