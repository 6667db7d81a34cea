"""Dask workers: the same results as any others, also when one of them is killed half-way."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import worker_jobs

from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest import dask_workers
from lvmmed_monai.ingest.workers import DaskWorkers, WorkerLimits, open_workers

distributed = pytest.importorskip("distributed")

LIMITS = WorkerLimits(memory_bytes=512 * 1024**2, wall_seconds=3.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def workers(cluster: distributed.LocalCluster) -> Iterator[DaskWorkers]:
    with DaskWorkers(cluster.scheduler_address, LIMITS) as workers:
        yield workers


def wait_until(done: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_same_results_as_here(workers: DaskWorkers) -> None:
    found = dict(workers.run(worker_jobs.refuse_odd, range(30)))
    assert [found[number] for number in range(0, 30, 2)] == list(range(0, 30, 2))
    for number in range(1, 30, 2):
        error = found[number]
        assert isinstance(error, DicomError)
        assert (error.code, error.measured) == ("F04", f"{number} bytes")
    ((_, large),) = workers.run(worker_jobs.array_of, [3_000_000])
    assert np.array_equal(large, np.arange(3_000_000))


def test_limits_hold_there(workers: DaskWorkers) -> None:
    found = dict(workers.run(worker_jobs.misbehave, ["one", "memory", "segfault", "time", "two"]))
    assert (found.pop("one"), found.pop("two")) == ("one", "two")
    assert {what: (error.code, error.measured) for what, error in found.items()} == {
        "memory": ("F06", "more than 0.5 GiB of memory"),
        "segfault": ("F06", "a worker process that crashed (signal 11)"),
        "time": ("F06", "no end after 3 s"),
    }


def test_another_error_ends_the_run_as_itself(workers: DaskWorkers) -> None:
    with pytest.raises(KeyError, match="three") as caught:
        list(workers.run(worker_jobs.fail, range(8)))
    assert "in fail" in str(caught.value.__cause__)
    assert dict(workers.run(worker_jobs.square, [4])) == {4: 16}


def test_jobs_are_taken_as_workers_get_free(workers: DaskWorkers) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        while taken < 100_000:
            taken += 1
            yield taken

    run = workers.run(worker_jobs.square, jobs())
    for seen in range(1, 21):
        next(run)
        assert taken <= seen + 4
    run.close()
    assert taken < 30


def test_a_worker_that_is_killed_costs_nothing(tmp_path: Path, cluster: distributed.LocalCluster) -> None:
    def begun() -> list[Path]:
        return sorted(tmp_path.glob("*-*-*"))

    def kill_a_busy_one() -> int:
        try:
            wait_until(begun)
            process = int(begun()[0].name.split("-")[2])
            os.kill(process, signal.SIGKILL)
            return process
        finally:
            (tmp_path / "go").touch()

    processes = [nanny.process.pid for nanny in cluster.workers.values()]
    jobs = [(str(tmp_path), number) for number in range(16)]
    limits = WorkerLimits(LIMITS.memory_bytes)
    with ThreadPoolExecutor(1) as executor, DaskWorkers(cluster.scheduler_address, limits) as workers:
        killed = executor.submit(kill_a_busy_one)
        found = [(number, result) for (_, number), result in workers.run(worker_jobs.marked_square, iter(jobs))]
    assert killed.result() in processes
    assert sorted(found) == [(number, number**2) for number in range(16)]
    # What the killed one had in hand was begun again by another.
    assert len(begun()) > 16


def test_a_job_that_ends_its_workers_is_given_up(workers: DaskWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    class Future:
        def result(self) -> bytes:
            raise distributed.scheduler.KilledWorker("task", None, 3)

    monkeypatch.setattr(workers, "_submit", lambda *_: Future())
    monkeypatch.setattr(workers, "_done", lambda futures: futures)
    monkeypatch.setattr(workers._client, "cancel", lambda _: None)
    ((_, error),) = workers.run(worker_jobs.square, [1])
    assert isinstance(error, DicomError)
    assert error.code == "F06"


@pytest.mark.parametrize("error", [distributed.comm.CommClosedError, distributed.client.FutureCancelledError])
def test_a_scheduler_that_goes_is_one_sentence(
    workers: DaskWorkers, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def gone(*_: object) -> None:
        raise error("in 1.2.840.1", "why")

    run = workers.run(worker_jobs.square, range(1000))
    next(run)
    monkeypatch.setattr(distributed, "wait", gone)
    monkeypatch.setattr(workers._client, "cancel", gone)
    with pytest.raises(UserError, match="scheduler is gone") as caught:
        list(run)
    assert str(caught.value).count(";") == 2
    assert "1.2.840" not in str(caught.value)


def test_no_scheduler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_workers, "_CONNECT_SECONDS", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    for wrong in (address, "no address at all"):
        with pytest.raises(UserError, match="no Dask scheduler answers") as caught:
            open_workers(None, wrong)
        assert str(caught.value).count(";") == 2
    assert time.monotonic() - start < 10


def test_no_worker_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_workers, "_WITHOUT_WORKERS_SECONDS", 0.5)
    monkeypatch.setattr(dask_workers, "_LOOK_SECONDS", 0.2)
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as empty,
        DaskWorkers(empty.scheduler_address) as workers,
        pytest.raises(UserError, match="no worker for"),
    ):
        list(workers.run(worker_jobs.square, range(3)))


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'lvmmed-monai\[dask\]'"):
        open_workers(None, "tcp://127.0.0.1:8786")
