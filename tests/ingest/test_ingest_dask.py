"""A whole ingest on a Dask cluster gives what it gives here, also when a worker is killed half-way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ingest_studies import difference, outputs, write_ten

from lvmmed_monai.ingest.pipeline import ingest

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sources, the site key, and the output of this process alone."""
    folder = tmp_path_factory.mktemp("ten")
    write_ten(folder / "src", count=8, size=64)
    ingest(folder / "src", folder / "here", site_key=folder / "site.key", workers=0)
    return folder


def test_same_output_as_here(ten: Path, tmp_path: Path, cluster: distributed.LocalCluster) -> None:
    summary = ingest(ten / "src", tmp_path / "out", site_key=ten / "site.key", scheduler=cluster.scheduler_address)
    assert (summary.accepted, summary.labelled, summary.written) == (14, 3, 14)
    assert difference(outputs(tmp_path / "out"), outputs(ten / "here")) == []


def test_same_output_when_a_worker_is_killed_half_way(
    ten: Path, tmp_path: Path, cluster: distributed.LocalCluster
) -> None:
    processes = [nanny.process.pid for nanny in cluster.workers.values()]
    assert len(processes) == 2
    killed = []

    def progress(iterable: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
        for number, item in enumerate(iterable):
            if (description, number) == ("writing volumes", 3):
                os.kill(processes[0], signal.SIGKILL)
                killed.append(processes[0])
            yield item

    address = cluster.scheduler_address
    summary = ingest(ten / "src", tmp_path / "out", site_key=ten / "site.key", scheduler=address, progress=progress)
    assert len(killed) == 1
    assert (summary.accepted, summary.written, summary.failures) == (14, 14, 0)
    assert difference(outputs(tmp_path / "out"), outputs(ten / "here")) == []
