"""Workers: order does not matter, nothing is taken ahead, and a job that misbehaves costs itself alone."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import worker_jobs

from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.workers import InlineWorkers, ProcessWorkers, WorkerLimits, Workers, open_workers

SMALL = WorkerLimits(memory_bytes=512 * 1024**2, wall_seconds=1.5, cpu_seconds=600)
linux = pytest.mark.skipif(sys.platform != "linux", reason="these limits are Linux's")


@pytest.fixture(scope="module")
def shared() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2, SMALL) as workers:
        yield workers


@pytest.fixture(params=["inline", "processes"])
def workers(request: pytest.FixtureRequest, shared: ProcessWorkers) -> Workers:
    return InlineWorkers() if request.param == "inline" else shared


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_each_job_once_with_its_result(workers: Workers) -> None:
    found = list(workers.run(worker_jobs.square, range(200)))
    assert sorted(found) == [(number, number**2) for number in range(200)]
    assert list(workers.run(worker_jobs.square, [])) == []


def test_a_dicom_error_is_a_result(workers: Workers) -> None:
    found = dict(workers.run(worker_jobs.refuse_odd, range(6)))
    assert {number: result for number, result in found.items() if number % 2 == 0} == {0: 0, 2: 2, 4: 4}
    for number in (1, 3, 5):
        error = found[number]
        assert isinstance(error, DicomError)
        assert (error.code, error.measured, error.expected) == ("F04", f"{number} bytes", "an even number")
        assert error.__traceback__ is None
        assert error.__context__ is None


def test_a_dicom_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(DicomError("G01", "3 gaps", "none")))
    assert (error.code, error.measured, error.expected, str(error)) == (
        "G01", "3 gaps", "none", "G01: 3 gaps; expected none",
    )  # fmt: skip


def test_another_error_ends_the_run_as_itself(workers: Workers) -> None:
    with pytest.raises(KeyError, match="three") as caught:
        list(workers.run(worker_jobs.fail, range(8)))
    if isinstance(workers, ProcessWorkers):
        assert "in fail" in str(caught.value.__cause__)
        assert 'raise KeyError("three")' in str(caught.value.__cause__)
    assert dict(workers.run(worker_jobs.square, [4])) == {4: 16}


def test_errors_that_cannot_cross_are_named(shared: ProcessWorkers) -> None:
    with pytest.raises(RuntimeError, match="OddError in a worker process") as caught:
        list(shared.run(worker_jobs.fail_oddly, [1]))
    assert "1 and 1" in str(caught.value.__cause__)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        list(shared.run(worker_jobs.give_function, [1]))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        list(shared.run(lambda number: number, [1]))
    with pytest.raises(ModuleNotFoundError):
        list(shared.run(ByName("no_such_module_here"), [1]))
    assert dict(shared.run(worker_jobs.square, [4])) == {4: 16}


class ByName:
    """Pickled as a function of a module that cannot be imported there."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __reduce__(self):
        return __import__, (self.module,)

    def __call__(self, job: int) -> int:
        return job


def test_results_come_as_they_are_ready() -> None:
    with ProcessWorkers(2, SMALL) as workers:
        list(workers.run(worker_jobs.square, range(4)))  # both are up
        found = [job for job, _ in workers.run(worker_jobs.process_of, [0.6, 0.0, 0.1])]
        assert found == [0.0, 0.1, 0.6]
        processes = {result for _, result in workers.run(worker_jobs.process_of, [0.1] * 6)}
        assert len(processes) == 2
        assert os.getpid() not in processes


def test_jobs_are_taken_as_workers_get_free(workers: Workers) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        while taken < 100_000:
            taken += 1
            yield taken

    run = workers.run(worker_jobs.square, jobs())
    for seen in range(1, 51):
        next(run)
        assert taken <= seen + 4
    run.close()
    assert taken < 60
    assert dict(workers.run(worker_jobs.square, [7])) == {7: 49}


def test_as_many_processes_as_jobs() -> None:
    with ProcessWorkers(8) as workers:
        assert dict(workers.run(worker_jobs.square, [3])) == {3: 9}
        assert len(workers._children) == 1


def test_large_jobs_and_results_pass(shared: ProcessWorkers) -> None:
    counts = [3_000_000, 10, 4_000_000, 2_500_000]
    for count, result in shared.run(worker_jobs.array_of, counts):
        assert np.array_equal(result, np.arange(count))
    large = [bytes([number]) * 20_000_000 for number in range(4)]
    assert sorted(size for _, size in shared.run(len, large)) == [20_000_000] * 4


@linux
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("memory", "more than 0.5 GiB of memory"),
        ("slow memory", "more than 0.5 GiB of memory"),
        ("time", "no end after 1.5 s"),
        ("computing", "no end after 1.5 s"),
        ("exit", "crashed (exit code 9)"),
        ("sys.exit", "crashed (exit code 1)"),
        ("segfault", "crashed (signal 11)"),
        ("recursion", "nesting beyond"),
    ],
)
def test_a_job_that_misbehaves_costs_itself_alone(shared: ProcessWorkers, what: str, words: str) -> None:
    found = dict(shared.run(worker_jobs.misbehave, ["one", what, "two", "three"]))
    error = found.pop(what)
    assert found == {"one": "one", "two": "two", "three": "three"}
    assert isinstance(error, DicomError)
    assert error.code == "F06"
    assert words in error.measured


@linux
def test_computing_time_is_limited_apart() -> None:
    with ProcessWorkers(1, WorkerLimits(cpu_seconds=1)) as workers:
        ((_, error),) = workers.run(worker_jobs.misbehave, ["computing"])
    assert isinstance(error, DicomError)
    assert (error.code, error.measured) == ("F06", "more than 1 s of computing")


def test_inline_too_deep_nesting_is_a_result() -> None:
    ((_, error),) = InlineWorkers().run(worker_jobs.misbehave, ["recursion"])
    assert isinstance(error, DicomError)
    assert error.code == "F06"


def test_no_result_depends_on_the_job_before() -> None:
    with ProcessWorkers(2) as workers:
        jobs = [str(number) for number in range(8)]
        assert sorted(workers.run(worker_jobs.break_the_next, jobs)) == [(job, job) for job in jobs]


def test_a_child_that_is_killed_meanwhile_is_replaced(shared: ProcessWorkers) -> None:
    list(shared.run(worker_jobs.square, range(4)))
    for child in shared._children:
        os.kill(child.process.pid, signal.SIGKILL)
    assert dict(shared.run(worker_jobs.square, range(4))) == {0: 0, 1: 1, 2: 4, 3: 9}


def test_a_consumer_that_takes_its_time_costs_nobody() -> None:
    found = []
    with ProcessWorkers(2, WorkerLimits(wall_seconds=0.4)) as workers:
        for _, result in workers.run(worker_jobs.square, range(4)):
            time.sleep(0.3)
            found.append(result)
    assert sorted(found) == [0, 1, 4, 9]


@linux
def test_children_are_light_and_use_one_thread(shared: ProcessWorkers) -> None:
    ((_, modules),) = shared.run(worker_jobs.loaded_modules, [0])
    assert modules == ["numpy", "pydicom"]
    assert [found for _, found in shared.run(worker_jobs.threads_of, [0])] == [("1", 1)]


def test_children_say_nothing(shared: ProcessWorkers, capfd: pytest.CaptureFixture[str]) -> None:
    assert dict(shared.run(worker_jobs.be_noisy, ["DOE^JANE"])) == {"DOE^JANE": "DOE^JANE"}
    assert "".join(capfd.readouterr()) == ""


def test_leaving_a_run_ends_its_jobs(tmp_path: Path) -> None:
    marker = tmp_path / "process"

    def jobs() -> Iterator[str]:
        yield str(marker)
        wait_until(marker.exists)
        raise KeyboardInterrupt

    with ProcessWorkers(2) as workers:
        with pytest.raises(KeyboardInterrupt):
            list(workers.run(worker_jobs.note_and_wait, jobs()))
        assert not alive(int(marker.read_text()))
        assert dict(workers.run(worker_jobs.square, [2])) == {2: 4}
        processes = [child.process.pid for child in workers._children]
        assert all(alive(process) for process in processes)
    assert not any(alive(process) for process in processes)


def test_two_runs_at_once_are_refused(shared: ProcessWorkers) -> None:
    first = shared.run(worker_jobs.square, range(9))
    next(first)
    with pytest.raises(RuntimeError, match="under way"):
        next(shared.run(worker_jobs.square, [1]))
    assert len(list(first)) == 8


PARENT = """
import signal
import sys
# A shell's background commands, and all that they start, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
import worker_jobs
from lvmmed_monai.ingest.workers import ProcessWorkers

with ProcessWorkers(2) as workers:
    list(workers.run(worker_jobs.note_and_wait, sys.argv[1:]))
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_child_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    markers = [tmp_path / "one", tmp_path / "two"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *map(str, markers)], env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: all(marker.exists() for marker in markers))
    processes = [int(marker.read_text()) for marker in markers]
    assert all(alive(process) for process in processes)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)
    wait_until(lambda: not any(alive(process) for process in processes), seconds=10)
    # The parent's own KeyboardInterrupt is its traceback; the children add nothing.
    assert said.count("Traceback") == (number == signal.SIGINT)
    assert "worker_child" not in said


def test_a_child_that_cannot_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with ProcessWorkers(2) as workers, pytest.raises(UserError, match="could not start") as caught:
        list(workers.run(worker_jobs.square, [1]))
    assert str(caught.value).count(";") == 2


def test_choice_of_workers() -> None:
    assert isinstance(open_workers(0), InlineWorkers)
    three = open_workers(3)
    assert isinstance(three, ProcessWorkers)
    assert three.count == 3
    usual = open_workers()
    assert isinstance(usual, ProcessWorkers)
    assert 1 <= usual.count <= len(os.sched_getaffinity(0))
    with pytest.raises(UserError, match="at least 0"):
        open_workers(-1)
    with pytest.raises(UserError, match="at least 1"):
        ProcessWorkers(0)
