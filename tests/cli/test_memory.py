"""A request for more memory than there is ends in an error, not in a killed process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lvmmed_monai.cli._memory import memory_gb

ASK = """
import sys
from lvmmed_monai.cli import _memory, app
_memory.memory_gb = lambda: (64.0, 0.4)
import torch
torch.zeros(10).sum()
_memory.limit_memory()
torch.zeros(10**7).sum()
def attempt():
    torch.zeros(10**9)
import typer
cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
cli.callback()(app._global_options)
cli.command("try")(attempt)
app.build_app = lambda: cli
sys.exit(app.execute(["try"]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much a process uses")
def test_too_much_is_one_sentence() -> None:
    answer = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 2
    assert "choose a smaller batch_size" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_this_machine_has_memory() -> None:
    sizes = memory_gb()
    assert sizes is None or 0 < sizes[1] <= sizes[0]
