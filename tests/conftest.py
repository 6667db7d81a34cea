"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread a process: the tests run in parallel processes, and single-threaded sums are repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("LVMMED_REAL_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """``real_data(name)`` gives the folder of a real data set, or skips the test with the reason."""

    def folder(name: str) -> Path:
        path = REAL_DATA / name
        if not path.is_dir():
            pytest.skip(f"real data set {name!r} is not here; set LVMMED_REAL_DATA to the folder that holds it")
        return path

    return folder
