"""The child's side of `ProcessWorkers`: limits first, then one job after the other until the parent goes.

Run as ``python -m lvmmed_monai.ingest.worker_child FILE_DESCRIPTOR PARENT_PID``.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from lvmmed_monai.dicom.problems import DicomError

__all__ = ["OUT_OF_MEMORY", "WorkerLimits", "attempt", "packed", "serve", "unpacked"]

OUT_OF_MEMORY = 112
"""Exit code of a child that got no more memory: it then cannot be trusted to write a message."""

_DEATH_SIGNAL_OPTION = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_FIRST_TO_BE_ENDED = "800"


@dataclass(frozen=True)
class WorkerLimits:
    """What one job may use.

    Attributes:
        memory_bytes: address space, beyond what the child has mapped when it starts.
        wall_seconds: time until the answer.
        cpu_seconds: computing time; ends a job also while nobody looks at the clock.
    """

    memory_bytes: int = 3 * 1024**3
    wall_seconds: float = 600.0
    cpu_seconds: int = 600


class WorkerTracebackError(Exception):
    """The traceback of an error in another process, as text; it is the error's cause here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def attempt(function: Callable[[Any], Any], job: Any) -> Any:
    """The result of a job, or the `DicomError` that it raised, free of the frames and errors behind it."""
    try:
        return function(job)
    except DicomError as error:
        return DicomError(error.code, error.measured, error.expected)
    except RecursionError:
        return DicomError("F06", f"nesting beyond {sys.getrecursionlimit()} calls", "an object of few levels")


def packed(compute: Callable[[], Any]) -> bytes:
    """What ``compute`` gives or raises, as a message for `unpacked`.

    Raises:
        MemoryError: as it came.
    """
    try:
        return pickle.dumps((compute(), None, ""), pickle.HIGHEST_PROTOCOL)
    except MemoryError:
        raise
    except Exception as error:
        return pickle.dumps((None, _portable(error), traceback.format_exc()), pickle.HIGHEST_PROTOCOL)


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign class raises when it is copied
        return RuntimeError(f"{type(error).__name__} in a worker process")
    return error


def unpacked(answer: bytes) -> Any:
    """The value in a message of `packed`; an error in it is raised, with its traceback as its cause."""
    value, error, text = pickle.loads(answer)
    if error is not None:
        raise error from WorkerTracebackError(text)
    return value


def _end_with(parent: int) -> None:
    """Have the system end this process when the thread that started it ends, however that happens."""
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(_DEATH_SIGNAL_OPTION, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _limit_memory(memory_bytes: int) -> None:
    import resource

    with open("/proc/self/statm", encoding="ascii") as stream:
        mapped = int(stream.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + memory_bytes
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # Where the machine itself runs short, it is to end a child and not the run.
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
        stream.write(_FIRST_TO_BE_ENDED)


def _allow_seconds(cpu_seconds: int) -> None:
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(usage.ru_utime + usage.ru_stime) + 1 + cpu_seconds
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, most))


def _confine(limits: WorkerLimits, parent: int) -> None:
    import resource

    import numpy  # noqa: F401 (loaded now, so that the limits are counted from here)
    import pydicom  # noqa: F401

    # They quote header values. Both streams lead nowhere already; this also saves making the texts.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an image of the memory would hold names
    if sys.platform == "linux":
        _end_with(parent)
        _limit_memory(limits.memory_bytes)


def _answer(request: bytes) -> bytes:
    return packed(lambda: attempt(*pickle.loads(request)))


def serve(connection: Connection, parent: int) -> None:
    """Answer the requests of ``connection`` until it closes; an empty message says that the child is ready.

    Args:
        connection: gives the `WorkerLimits`, then pickled pairs of function and job.
        parent: process id.
    """
    limits: WorkerLimits = connection.recv()
    _confine(limits, parent)
    connection.send_bytes(b"")
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            return
        _allow_seconds(limits.cpu_seconds)
        connection.send_bytes(_answer(request))


def _main(connection: Connection, parent: int) -> int:
    os.set_inheritable(connection.fileno(), False)  # a program that a job starts must not keep it open
    try:
        serve(connection, parent)
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:  # sys.exit in a job, too: the parent is to see the end, and nothing is to be printed
        return 1
    return 0


if __name__ == "__main__":
    # Held here to the end: when the pipe closes, the process has really gone, with its exit code.
    _to_parent = Connection(int(sys.argv[1]))
    os._exit(_main(_to_parent, int(sys.argv[2])))
