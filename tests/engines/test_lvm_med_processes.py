"""LVM-Med in two processes, killed, and asked to stop."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_lvm_med
import torch
from torch import distributed as dist

from lvmmed_monai.handlers import ResumableCheckpoint

# Second-order matching with everything that is drawn or gathered: noise, cuts, node orders, maps, message passing.
SECOND_ORDER = {
    "preset": "paper",
    "projector": "linear",
    "map_level": -1,
    "features": 8,
    "loss_options": {"nodes_per_graph": 8, "neighbours": 3, "regroup": 2, "standardise": True, "lam": 5.0},
}
METHODS: dict[str, dict[str, Any]] = {"recommended": {}, "second order": SECOND_ORDER}


def processes() -> Any:
    """Processes that are forked from one that has imported the heavy modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "lvmmed_monai.engines", "lvmmed_monai.handlers", "lvmmed_monai.methods.lvm_med"]
    )
    return context


def run(datalist: Path, batch_size: int, name: str, gather: str) -> dict[str, torch.Tensor]:
    method = METHODS[name]
    options = {**method, "loss_options": {**method.get("loss_options", {}), "gather": gather}}
    # A large eps, for Adam's own would turn what is zero but for rounding into whole steps.
    engine = tiny_lvm_med.build(
        datalist,
        steps=4,
        batch_size=batch_size,
        lvm_med=options,
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-3, eps=1e-3),
    )
    engine.run()
    return engine.inner_network.state_dict()


def share(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    datalist = Path(folder) / "set.json"
    found = {name: run(datalist, 8, name, "global") for name in METHODS}
    found["local"] = run(datalist, 8, "recommended", "local")
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_gloo_processes_with_half_the_batch_equal_one(tmp_path: Path) -> None:
    datalist = tiny_lvm_med.write_pictures(tmp_path)
    alone = {name: run(datalist, 16, name, "global") for name in METHODS}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    workers = [processes().Process(target=share, args=(rank, port, str(tmp_path))) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    start = tiny_lvm_med.build(datalist, steps=1).inner_network.state_dict()
    for name, expected in alone.items():
        assert all(torch.equal(value, two[name][key]) for key, value in one[name].items())
        for key, value in expected.items():
            torch.testing.assert_close(one[name][key], value, rtol=0, atol=1e-6)
    moved = max(float((value - start[key]).abs().max()) for key, value in alone["recommended"].items())
    assert moved > 1e-4
    # Graphs of a process's own images teach something else.
    apart = max(float((value - one["local"][key]).abs().max()) for key, value in alone["recommended"].items())
    assert apart > 1e-5


def end_when(marker: Path, process: Any, delay: float, number: signal.Signals) -> int:
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(process.pid, number)
    process.join(30)
    marker.unlink()
    return process.exitcode


def without_times(history: dict[str, Any]) -> str:
    curves = {name: points for name, points in history["curves"].items() if name != "matching_share"}
    return json.dumps([curves, history["monitors"], history["alarms"]])


@pytest.mark.slow
@pytest.mark.parametrize("small_views", [False, True])
def test_killed_at_random_moments_and_terminated_it_ends_like_an_uninterrupted_run(
    tmp_path: Path, small_views: bool
) -> None:
    datalist = tiny_lvm_med.write_pictures(tmp_path)
    # As in the processes, where a checkpoint's copy of the history stands for the run before.
    whole = tiny_lvm_med.monitored(datalist, small_views, handlers=[ResumableCheckpoint(tmp_path / "whole.pt")])
    whole.run()
    cut = tmp_path / "cut"
    cut.mkdir()
    stored, random = cut / "checkpoint.pt", np.random.default_rng(15)

    def start(*, break_save: bool = False) -> Any:
        arguments = (str(datalist), str(cut), small_views, break_save)
        process = processes().Process(target=tiny_lvm_med.train_until_killed, args=arguments)
        process.start()
        return process

    steps = []
    for moment in range(5):
        in_a_save = moment == 2
        marker = cut / ("saving" if in_a_save else "started")
        delay = 0 if in_a_save else random.uniform(0, 0.2)
        assert end_when(marker, start(break_save=in_a_save), delay, signal.SIGKILL) == -signal.SIGKILL
        (cut / "started").unlink(missing_ok=True)
        steps.append(torch.load(stored, weights_only=True)["state"]["step"] if stored.exists() else 0)
    assert steps == sorted(steps)
    # Of the run that died while saving, the save before the broken one is there.
    assert steps[2] == steps[1] + 3
    assert 0 < steps[-1] < tiny_lvm_med.STEPS
    assert end_when(cut / "started", start(), 0, signal.SIGTERM) == 128 + signal.SIGTERM
    terminated = torch.load(stored, weights_only=True)["state"]["step"]
    assert steps[-1] < terminated < tiny_lvm_med.STEPS
    process = start()
    process.join(60)
    assert process.exitcode == 0
    found = torch.load(stored, weights_only=True)["state"]
    expected = whole.network.state_dict()
    assert found["network"].keys() == expected.keys()
    assert all(torch.equal(expected[key], found["network"][key]) for key in expected)
    assert without_times(found["history"]) == without_times(whole.history)
    assert [step for step, _ in found["history"]["monitors"]] == [0, 8, 16, 24, 30]
