"""Two processes share the batch of one, and only the first writes."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import tiny_voco
import torch
from ignite.engine import Events
from tiny_method import TinyMethod, build, weights
from torch import distributed as dist
from torch import multiprocessing

from lvmmed_monai.handlers import ResultsWriter, ResumableCheckpoint


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    own = Path(folder) / f"rank{rank}"
    handlers = [
        ResumableCheckpoint(own / "checkpoint.pt"),
        ResultsWriter(own / "results.json", "pretraining", "tiny", seed=3),
    ]
    # Noise is drawn by rank and statistics by process: without them two processes compute what one does.
    method = TinyMethod(noise=0.0, batch_norm=False)
    build(method, epochs=1, batch_size=2, handlers=handlers, encoder_path=own / "encoder.pt").run()
    dist.destroy_process_group()


@pytest.mark.slow
def test_point_25_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, args=(free_port(), str(tmp_path)), nprocs=2)
    method = TinyMethod(noise=0.0, batch_norm=False)
    build(method, epochs=1, batch_size=4).run()
    found = weights(tmp_path / "rank0" / "checkpoint.pt")
    assert found.keys() == method.network().state_dict().keys()
    for key, expected in method.network().state_dict().items():
        torch.testing.assert_close(found[key], expected, rtol=1e-4, atol=1e-5)
    assert {path.name for path in (tmp_path / "rank0").iterdir()} == {"checkpoint.pt", "results.json", "encoder.pt"}
    assert not (tmp_path / "rank1").exists()


def voco_run(datalist: Path, batch_size: int, inter: float, **options: object) -> dict[str, torch.Tensor]:
    # Few steps and a large eps, for roundings grow: Adam's own would move what is zero but for rounding, and the
    # loss has kinks.
    engine = tiny_voco.build(datalist, steps=3, batch_size=batch_size, voco={"dropout": 0.0}, eps=1e-3, **options)
    engine.method.loss.weights = (1.0, inter, 1.0)
    engine.run()
    return engine.inner_network.state_dict()


def voco_worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    datalist = Path(folder) / "set.json"
    found = {
        "without inter": voco_run(datalist, 2, 0.0),
        "in parts": voco_run(datalist, 2, 0.0, accumulate=2),
        "with inter": voco_run(datalist, 2, 1.0),
    }
    # Rank 0's time is over first; rank 1 alone would train on.
    limited = tiny_voco.build(datalist, batch_size=2, max_hours=(0.2 if rank == 0 else 60) / 3600)
    limited.add_event_handler(Events.ITERATION_COMPLETED, lambda: time.sleep(0.02))
    limited.run()
    torch.save({**found, "stopped at": limited.state.iteration}, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_point_25_voco_in_two_gloo_processes(tmp_path: Path) -> None:
    """Statistics are a volume's own, so two processes equal one; what is local is the neighbour of the inter term."""
    datalist = tiny_voco.write_volumes(tmp_path)
    alone = {inter: voco_run(datalist, 4, inter) for inter in (0.0, 1.0)}
    tiny_voco.quick_processes()
    arguments = (free_port(), str(tmp_path))
    multiprocessing.start_processes(voco_worker, args=arguments, nprocs=2, start_method="forkserver")
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for run in ("without inter", "in parts", "with inter"):
        assert all(torch.equal(value, two[run][name]) for name, value in one[run].items())
    for run in ("without inter", "in parts"):
        for name, expected in alone[0.0].items():
            torch.testing.assert_close(one[run][name], expected, rtol=1e-4, atol=1e-5)
    apart = [
        not torch.allclose(one["with inter"][name], value, rtol=1e-4, atol=1e-5) for name, value in alone[1.0].items()
    ]
    assert any(apart)
    assert one["stopped at"] == two["stopped at"] < tiny_voco.STEPS
