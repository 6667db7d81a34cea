"""A training process that is really killed, and one that is asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_voco
import torch
from tiny_method import TinyMethod, build, weights

SCRIPT = Path(__file__).with_name("run_tiny.py")


def start(folder: Path, *, workers: int = 0, step_seconds: float = 0.0) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(folder), str(workers), str(step_seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_terminated_runs_end_like_an_uninterrupted_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    method = TinyMethod()
    build(method, epochs=4).run()
    expected = method.network().state_dict()

    # Killed in the middle of an epoch, between two saves; continued with worker processes; then asked to stop.
    cut = tmp_path / "cut"
    process = start(cut, step_seconds=0.05)
    wait_for(cut / "checkpoint.pt", process)
    time.sleep(0.12)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    step = torch.load(cut / "checkpoint.pt", weights_only=True)["state"]["step"]
    assert 0 < step < 40
    assert step % 10 != 0
    assert not (cut / "encoder.pt").exists()

    process = start(cut, workers=2, step_seconds=0.1)
    assert process.stderr is not None
    assert f"resuming at step {step} of 40" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    later = torch.load(cut / "checkpoint.pt", weights_only=True)["state"]["step"]
    assert step < later < 40
    assert f"stopped by SIGTERM at step {later} of 40" in process.stderr.read()

    process = start(cut)
    assert process.wait(120) == 0, process.stderr.read()
    found = weights(cut / "checkpoint.pt")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    encoder = torch.load(cut / "encoder.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, encoder[key]) for key, value in method.encoder().state_dict().items())
    assert (cut / "results.json").exists()


def kill_when(marker: Path, process: Any, delay: float) -> None:
    deadline = time.monotonic() + 120
    while not marker.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    marker.unlink()


@pytest.mark.slow
def test_point_24_voco_killed_at_random_moments_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    datalist = tiny_voco.write_volumes(tmp_path)
    whole = tiny_voco.build(datalist)
    whole.run()
    cut = tmp_path / "cut"
    cut.mkdir()
    random, context = np.random.default_rng(24), tiny_voco.quick_processes()

    def start(*, break_save: bool = False) -> Any:
        process = context.Process(target=tiny_voco.train_until_killed, args=(str(datalist), str(cut), break_save))
        process.start()
        return process

    steps = []
    for moment in range(5):
        in_a_save = moment == 2
        process = start(break_save=in_a_save)
        kill_when(cut / ("saving" if in_a_save else "started"), process, 0 if in_a_save else random.uniform(0, 0.25))
        (cut / "started").unlink(missing_ok=True)
        stored = cut / "checkpoint.pt"
        steps.append(torch.load(stored, weights_only=True)["state"]["step"] if stored.exists() else 0)
    assert steps == sorted(steps)
    # Of the run that died while saving, the save before the broken one is there.
    assert steps[2] == steps[1] + 3
    assert 0 < steps[-1] < tiny_voco.STEPS
    process = start()
    process.join(120)
    assert process.exitcode == 0
    found = weights(cut / "checkpoint.pt")
    expected = whole.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
