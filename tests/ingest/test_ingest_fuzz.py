"""Mutated bytes of a small generated series: no crash, no hang, bounded memory, no wrong volume."""

from __future__ import annotations

from damage import oblique_series
from mutations import run
from synthetic_dicom import save


def test_mutated_files_never_give_a_wrong_volume(tmp_path):
    save(oblique_series(7, rows=20, columns=24), tmp_path / "clean")
    found = run(tmp_path / "clean", tmp_path / "mutated", 400)
    assert found["failures"] == []
    assert found["peak_mib"] < 1024
    assert found["outcomes"]["accepted"] > 40
    assert len([name for name in found["outcomes"] if name.startswith("refused ")]) > 8
