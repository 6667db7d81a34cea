"""Jobs in child processes with limits, so that a hostile or broken file costs its own job and nothing else.

The children are new interpreters, not copies of this process (which may hold threads and locks), and load
neither torch nor this program's main module. Linux; elsewhere the memory limit does not hold.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Pipe, wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.worker_child import OUT_OF_MEMORY, WorkerLimits, unpacked

__all__ = ["ProcessWorkers"]

Job = TypeVar("Job")
Result = TypeVar("Result")

_START_SECONDS = 120.0
_LOOK_SECONDS = 1.0
_END_SECONDS = 5.0
# One thread each: the processes already fill the cores.
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONPATH": os.pathsep.join(sys.path)}
    module = "lvmmed_monai.ingest.worker_child"
    return subprocess.Popen(
        # -P: the working directory may be a folder of strangers' files.
        [sys.executable, "-P", "-m", module, str(descriptor), str(os.getpid())],
        pass_fds=[descriptor],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C on the terminal is for the parent alone; and what a job starts is ended with the child.
        start_new_session=True,
    )


class _Child(Generic[Job]):
    """One child process and the job that it has.

    Attributes:
        connection: to it.
        job: what it works on, while ``busy``.
        busy: whether an answer is awaited.
        started: whether it has said that it is ready.
        answers: number of jobs that it has done.
        deadline: monotonic time by which it has to say something.
    """

    job: Job

    def __init__(self, limits: WorkerLimits) -> None:
        self.limits = limits
        self.connection, theirs = Pipe()
        self.process = _start(theirs.fileno())
        theirs.close()
        self.busy = self.started = False
        self.answers = 0
        self.deadline = time.monotonic() + _START_SECONDS
        self._send(pickle.dumps(limits))

    def _send(self, message: bytes) -> None:
        # A child that is gone is noticed where its answer is awaited.
        with suppress(ConnectionError):
            self.connection.send_bytes(message)

    def take(self, function: Callable[[Job], Any], job: Job) -> None:
        """Hand over a job; a child that still starts finds it waiting."""
        request = pickle.dumps((function, job), pickle.HIGHEST_PROTOCOL)
        self.job, self.busy = job, True
        if self.started:
            self.deadline = time.monotonic() + self.limits.wall_seconds
        self._send(request)

    def receive(self) -> bytes | None:
        """The answer; None if it only said that it is ready.

        Raises:
            EOFError, OSError: it is gone.
        """
        message = self.connection.recv_bytes()
        if not self.started:
            self.started = True
            self.deadline = time.monotonic() + self.limits.wall_seconds
            return None
        self.busy = False
        self.answers += 1
        return message

    def lost(self) -> bool:
        """Whether it has ended without a word, in case something else holds its end of the pipe open."""
        return self.process.poll() is not None and not self.connection.poll()

    def end(self) -> int | None:
        """Kill it with all that it started; its exit code (minus the signal's number), if it really went."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        # A process that hangs in a dead network share cannot be killed; it is left behind.
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)
        self.connection.close()
        return self.process.returncode


class ProcessWorkers:
    """``count`` child processes, started when there are jobs for them.

    A job that breaks a limit or its process gives ``DicomError("F06", ...)``; the child is replaced. A process
    that breaks after other jobs may have been broken by them: its job is tried once more in a new one, so that
    no result depends on what ran before. The system ends the children when the thread that started them ends.

    Args:
        count: number of processes.
        limits: what one job may use.
    """

    def __init__(self, count: int, limits: WorkerLimits | None = None) -> None:
        if count < 1:
            raise UserError(f"the number of worker processes must be at least 1, got {count}; workers; give 1 or more")
        self.count = count
        self.limits = limits or WorkerLimits()
        self._children: list[_Child[Any]] = []
        self._again: list[Any] = []
        self._running = False

    def __enter__(self) -> ProcessWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(self._children)

    def run(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | DicomError]]:
        """See `Workers.run`. One run at a time; leaving it early ends the jobs under way."""
        if self._running:
            raise RuntimeError("these workers have a run under way; end it first")
        self._running = True
        waiting = iter(jobs)
        finished: list[tuple[Job, Result | DicomError]] = []
        try:
            while True:
                waiting = self._hand_out(function, waiting)
                yield from finished  # the children work meanwhile
                if not any(child.busy for child in self._children):
                    return
                finished = self._collect()
        finally:
            self._running = False
            self._again.clear()
            self._end([child for child in self._children if child.busy])

    def _new_child(self) -> _Child[Any]:
        self._children.append(_Child(self.limits))
        return self._children[-1]

    def _hand_out(self, function: Callable[[Any], Any], waiting: Iterator[Any]) -> Iterator[Any]:
        """Give jobs to all children that are free; the rest of the jobs comes back."""
        while self._again:
            self._new_child().take(function, self._again.pop())
        idle = [child for child in self._children if not child.busy]
        while idle or len(self._children) < self.count:
            for job in waiting:
                (idle.pop() if idle else self._new_child()).take(function, job)
                break
            else:
                return iter(())  # an iterator that has ended is not asked again
        return waiting

    def _collect(self) -> list[tuple[Any, Any]]:
        """Wait for what comes first, an answer or a deadline, and take all that is there."""
        busy = [child for child in self._children if child.busy]
        left = min(child.deadline for child in busy) - time.monotonic()
        ready = wait([child.connection for child in busy], timeout=min(max(left, 0.0), _LOOK_SECONDS))
        return list(chain.from_iterable(self._outcome(child, child.connection in ready) for child in busy))

    def _outcome(self, child: _Child[Any], ready: bool) -> list[tuple[Any, Any]]:
        """The finished job of a child with its result, or nothing yet."""
        if not ready:
            if time.monotonic() >= child.deadline:
                return self._buried(child, overdue=True)
            return self._buried(child, overdue=False) if child.lost() else []
        try:
            answer = child.receive()
        except (EOFError, OSError):
            return self._buried(child, overdue=False)
        return [] if answer is None else [(child.job, unpacked(answer))]

    def _buried(self, child: _Child[Any], overdue: bool) -> list[tuple[Any, Any]]:
        self._children.remove(child)
        code = child.end()
        if not child.started:
            raise UserError(
                f"a worker process could not start (exit code {code}); the workers; "
                "check that memory and processes are left, or run with 0 workers"
            )
        if overdue:
            seconds = self.limits.wall_seconds
            return [(child.job, DicomError("F06", f"no end after {seconds:g} s", f"at most {seconds:g} s"))]
        if child.answers and code != -signal.SIGXCPU:
            self._again.append(child.job)
            return []
        return [(child.job, self._death(code))]

    def _death(self, code: int | None) -> DicomError:
        if code == OUT_OF_MEMORY:
            limit = f"{self.limits.memory_bytes / 1024**3:.2g} GiB of memory"
            return DicomError("F06", f"more than {limit}", f"at most {limit}")
        if code == -signal.SIGXCPU:
            limit = f"{self.limits.cpu_seconds} s of computing"
            return DicomError("F06", f"more than {limit}", f"at most {limit}")
        how = f"exit code {code}" if code is None or code >= 0 else f"signal {-code}"
        return DicomError("F06", f"a worker process that crashed ({how})", "an object that can be decoded")

    def _end(self, children: Iterable[_Child[Any]]) -> None:
        for child in list(children):
            self._children.remove(child)
            child.end()
