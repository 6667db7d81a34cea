"""What a fresh interpreter loads: the command answers at once, and reading DICOM needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

HEAVY = (
    "torch",
    "monai",
    "ignite",
    "numpy",
    "scipy",
    "pydicom",
    "highdicom",
    "nibabel",
    "matplotlib",
    "transformers",
    "numba",
)
# The promise is 0.5 s on an idle machine; tests run beside others, hence the margin.
PROMISED_SECONDS, MARGIN = 0.5, 4.0


def loaded_by(statements: str) -> set[str]:
    """Top-level modules loaded after ``statements`` in a new interpreter."""
    code = f"import sys, json\n{statements}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return set(json.loads(answer.stdout.splitlines()[-1]))


def test_the_package_alone_loads_nothing_heavy() -> None:
    assert not loaded_by("import lvmmed_monai") & {*HEAVY, "typer", "rich"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["report", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    call = f"from lvmmed_monai.cli.app import execute\nassert execute({arguments!r}) == 0"
    assert not loaded_by(call) & set(HEAVY)


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, "-m", "lvmmed_monai", "--help"], capture_output=True, text=True, check=False
        )
        seconds.append(time.perf_counter() - start)
        assert answer.returncode == 0, answer.stderr
        assert "ingest" in answer.stdout
    assert min(seconds) < PROMISED_SECONDS * MARGIN


@pytest.mark.parametrize(
    "module",
    [
        "lvmmed_monai.dicom",
        "lvmmed_monai.ingest",
        "lvmmed_monai.phantom",
        "lvmmed_monai.data",
        "lvmmed_monai.data.manifest",
        "lvmmed_monai.data.datalist",
        "lvmmed_monai.report",
    ],
)
def test_imports_without_torch(module: str) -> None:
    assert not loaded_by(f"import {module}") & {"torch", "monai", "ignite", "highdicom", "transformers"}
