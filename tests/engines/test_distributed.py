"""Two processes share the batch of one, and only the first writes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
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
def test_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, args=(free_port(), str(tmp_path)), nprocs=2)
    method = TinyMethod(noise=0.0, batch_norm=False)
    build(method, epochs=1, batch_size=4).run()
    found = weights(tmp_path / "rank0" / "checkpoint.pt")
    assert found.keys() == method.network().state_dict().keys()
    for key, expected in method.network().state_dict().items():
        torch.testing.assert_close(found[key], expected, rtol=1e-4, atol=1e-5)
    assert {path.name for path in (tmp_path / "rank0").iterdir()} == {"checkpoint.pt", "results.json", "encoder.pt"}
    assert not (tmp_path / "rank1").exists()
