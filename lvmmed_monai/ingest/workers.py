"""Who does the jobs of an ingest: this process, child processes with limits, or a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.dask_workers import DaskWorkers
from lvmmed_monai.ingest.process_workers import ProcessWorkers
from lvmmed_monai.ingest.worker_child import WorkerLimits, attempt

__all__ = ["DaskWorkers", "InlineWorkers", "ProcessWorkers", "WorkerLimits", "Workers", "open_workers"]

Job = TypeVar("Job")
Result = TypeVar("Result")

_MOST_PROCESSES = 32
_TYPICAL_BYTES = 1024**3  # what a process with a large series in hand needs


class Workers(Protocol):
    """Does jobs in any order; a context manager that leaves nothing running behind."""

    def __enter__(self) -> Self:
        """Nothing is started before there are jobs."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything at once."""

    def run(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | DicomError]]:
        """Do jobs; yields each with its result as soon as it is there, in any order.

        Args:
            function: of a module, so that it can be pickled, like the jobs and the results.
            jobs: taken as workers get free, so that there may be any number of them.

        Yields:
            The job, and its result or the `DicomError` that it raised; F06 if it hit a limit.

        Raises:
            Exception: what else ``function`` raised, with the traceback of the worker as its cause.
        """


class InlineWorkers:
    """The jobs one after the other in this process, without limits."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def run(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | DicomError]]:
        """See `Workers.run`."""
        for job in jobs:
            try:
                result = attempt(function, job)
            except MemoryError:
                result = DicomError("F06", "more memory than this machine has left", "an object that fits")
            yield job, result


def _usable_processes() -> int:
    """Number of processes that this machine's cores and memory carry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores, memory // _TYPICAL_BYTES, _MOST_PROCESSES))


def open_workers(count: int | None = None, scheduler: str | None = None) -> Workers:
    """Choose who does the jobs.

    Args:
        count: number of child processes; 0 for this process; None for as many as the machine carries.
        scheduler: address of a Dask scheduler ("tcp://host:8786"), which then has the workers.

    Raises:
        UserError: the count is negative, or the scheduler cannot be used.
    """
    if count is not None and count < 0:
        raise UserError(f"the number of workers must be at least 0, got {count}; --workers; give 0 or more")
    if scheduler is not None:
        return DaskWorkers(scheduler)
    if count == 0:
        return InlineWorkers()
    return ProcessWorkers(_usable_processes() if count is None else count)
