"""A process leaves its group without a thread that could outlive the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lvmmed_monai.engines import leave_process_group

PROGRAM = """
import os
from pathlib import Path
import torch
from torch import distributed as dist
from lvmmed_monai.engines import join_process_group, leave_process_group

def gloo_threads():
    return sum("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())

join_process_group("gloo")
join_process_group("gloo")  # joined already: nothing happens
network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
network(torch.ones(1, 2)).sum().backward()
gathered = [torch.empty(1)]
dist.all_gather(gathered, torch.ones(1))
before = gloo_threads()
leave_process_group(network)
print(before, gloo_threads(), dist.is_initialized(), network.module.weight.grad.tolist())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_thread_of_the_group_is_left(tmp_path: Path) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env={**os.environ, **place}, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    before, after, joined, gradient = answer.stdout.split(maxsplit=3)
    assert int(before) > 0
    assert (after, joined, gradient.strip()) == ("0", "False", "[[1.0, 1.0], [1.0, 1.0]]")


def test_without_a_group_nothing_happens() -> None:
    network = torch.nn.Linear(2, 2)
    leave_process_group(network)
    assert network(torch.ones(1, 2)).shape == (1, 2)
