"""Jobs on a Dask ``distributed`` cluster: the same results as from child processes of this machine.

Each job runs in a child process of a Dask worker, so that its limits hold there too and the worker goes on
answering its scheduler. A worker that is lost has its jobs done by others. The workers need this package
and must see the source files and the output folder under the same paths.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

from lvmmed_monai._optional import optional_import
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.process_workers import ProcessWorkers
from lvmmed_monai.ingest.worker_child import WorkerLimits, packed, unpacked

__all__ = ["DaskWorkers"]

Job = TypeVar("Job")
Result = TypeVar("Result")

_CONNECT_SECONDS = 10.0
_WITHOUT_WORKERS_SECONDS = 120.0
_LOOK_SECONDS = 5.0
_AHEAD = 2
"""Jobs in flight for each thread of the cluster, so that none waits for the way to us and back."""

_of_thread = threading.local()


def _do_there(limits: WorkerLimits, request: bytes) -> bytes:
    """One job in the Dask worker; each of its threads keeps one child.

    An error comes back as a value: Dask would log the arguments of a failing call, and paths stand in them.
    """
    workers: ProcessWorkers | None = getattr(_of_thread, "workers", None)
    if workers is None or workers.limits != limits:
        workers = _of_thread.workers = ProcessWorkers(1, limits)

    def result() -> Any:
        function, job = pickle.loads(request)
        ((_, found),) = workers.run(function, [job])
        return found

    return packed(result)


class DaskWorkers:
    """The workers of a Dask scheduler.

    Args:
        address: of the scheduler, such as "tcp://host:8786".
        limits: what one job may use.

    Raises:
        UserError: ``distributed`` is not installed, or no scheduler answers there.
    """

    def __init__(self, address: str, limits: WorkerLimits | None = None) -> None:
        distributed = optional_import("distributed", extra="dask")
        self.limits = limits or WorkerLimits()
        self.address = address
        self._distributed = distributed
        for name in ("distributed", "distributed.client"):  # tracebacks of its own; what matters, we raise
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError):
            raise UserError(
                f"no Dask scheduler answers within {_CONNECT_SECONDS:g} s; {address}; "
                "start one with `dask scheduler`, and name its address (tcp://host:8786)"
            ) from None

    def __enter__(self) -> DaskWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a scheduler that is gone needs no farewell
            self._client.close()

    def run(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | DicomError]]:
        """See `Workers.run`. A job under way there goes on when the run is left early."""
        waiting = iter(jobs)
        under_way: dict[Any, Job] = {}
        try:
            while True:
                for job in islice(waiting, max(0, self._room() - len(under_way))):
                    under_way[self._submit(function, job)] = job
                if not under_way:
                    return
                for future in self._finished(under_way):
                    yield under_way.pop(future), self._result(future)
        finally:
            with suppress(OSError, CancelledError):
                self._client.cancel(list(under_way))

    def _threads(self) -> int:
        with self._reached():
            return sum(self._client.nthreads().values())

    def _room(self) -> int:
        return max(1, self._threads()) * _AHEAD

    def _submit(self, function: Callable[[Job], Any], job: Job) -> Any:
        request = pickle.dumps((function, job), pickle.HIGHEST_PROTOCOL)
        with self._reached():
            return self._client.submit(_do_there, self.limits, request, pure=False)

    def _finished(self, futures: Iterable[Any]) -> list[Any]:
        """Wait until a job is done; all that are.

        Raises:
            UserError: the scheduler is gone, or has had no worker for a while.
        """
        since = time.monotonic()
        while True:
            done = self._done(list(futures))
            if done:
                return done
            if self._threads():
                since = time.monotonic()
            elif time.monotonic() - since > _WITHOUT_WORKERS_SECONDS:
                raise UserError(
                    f"the Dask scheduler has had no worker for {_WITHOUT_WORKERS_SECONDS:g} s; {self.address}; "
                    "start some with `dask worker`, then run again"
                )

    def _done(self, futures: list[Any]) -> list[Any]:
        with self._reached(), self._client.as_current():
            try:
                return list(self._distributed.wait(futures, _LOOK_SECONDS, "FIRST_COMPLETED").done)
            except TimeoutError:
                return []

    def _result(self, future: Any) -> Any:
        try:
            with self._reached():
                answer = future.result()
        except self._distributed.KilledWorker:
            return DicomError("F06", "a job that ended several workers", "an object that can be decoded")
        return unpacked(answer)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """What is asked of the scheduler.

        Raises:
            UserError: it is gone, or dropped the work.
        """
        try:
            yield
        except (OSError, CancelledError):
            raise UserError(
                f"the Dask scheduler is gone or dropped the work; {self.address}; see its log, then run again"
            ) from None
