"""``lvmmed phantom``: what it prints and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvmmed_monai.cli.phantom import phantom
from lvmmed_monai.errors import UserError


def test_prints_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantom(tmp_path / "out", subjects=1, size=32, kind="brain_mr", quiet=True)
    printed = capsys.readouterr()
    files = len(list((tmp_path / "out").rglob("*.dcm")))
    assert f"1 subjects in {files} DICOM files" in printed.out
    assert printed.err == ""
    phantom(tmp_path / "out", subjects=1, size=32, kind="brain_mr", as_json=True)
    assert json.loads(capsys.readouterr().out)["files"] == files


def test_wrong_kind_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown kind .*torso_ct, brain_mr"):
        phantom(tmp_path / "out", kind="elbow", quiet=True)
