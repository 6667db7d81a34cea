"""Progress of a run: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import distributed as dist

__all__ = ["ProgressReporter"]

logger = logging.getLogger(__name__)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _loss(output: Any) -> float:
    """The loss in an engine's output: a dictionary, or a list of them after decollation."""
    found = _first(output)
    value = found.get("loss") if isinstance(found, Mapping) else None
    if isinstance(value, torch.Tensor):
        return float(value.detach().float().mean())
    return math.nan if value is None else float(value)


def _batch_size(batch: Any) -> int:
    if isinstance(batch, list | tuple):
        return len(batch)
    if isinstance(batch, Mapping):
        return next((len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim), 1)
    return 1


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class ProgressReporter:
    """Shows step, epoch, loss, images a second of all processes, and the time left of an engine.

    Args:
        every_s: seconds between two lines where there is no terminal.
        quiet: show nothing.
        description: what runs.
    """

    def __init__(self, every_s: float = 10.0, quiet: bool = False, description: str = "training") -> None:
        self.every_s = every_s
        self.quiet = quiet
        self.description = description
        self._progress: Progress | None = None
        self._images = 0
        self._first_step = 0
        self._started = self._last_line = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or an evaluator."""
        if self.quiet:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._stop)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Any) -> None:
        """At the first epoch, for only then is it known from which step a resumed run goes on."""
        if self._started or engine.state.rank != 0:
            return
        self._started = self._last_line = time.monotonic()
        self._first_step, self._images = engine.state.iteration, 0
        console = Console(stderr=True)
        if not console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._progress.add_task(self.description, total=self._total(engine), completed=engine.state.iteration, text="")
        self._progress.start()

    @staticmethod
    def _total(engine: Any) -> int:
        return engine.state.max_epochs * engine.state.epoch_length

    def _text(self, engine: Any) -> str:
        rate = self._images / max(1e-9, time.monotonic() - self._started)
        loss = _loss(engine.state.output)
        parts = [f"epoch {engine.state.epoch}/{engine.state.max_epochs}", f"{rate:.1f} images/s"]
        return ", ".join(parts if math.isnan(loss) else [parts[0], f"loss {loss:.4f}", parts[1]])

    def _step(self, engine: Any) -> None:
        if not self._started:
            return
        self._images += _batch_size(engine.state.batch) * _processes()
        done, total, now = engine.state.iteration, self._total(engine), time.monotonic()
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done, text=self._text(engine))
        elif now - self._last_line >= self.every_s or done == total:
            left = (now - self._started) / max(1, done - self._first_step) * (total - done)
            self._last_line = now
            logger.info("%s: step %d/%d, %s, %.0f s left", self.description, done, total, self._text(engine), left)

    def _stop(self, engine: Any) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._started = None, 0.0

    def _fail(self, engine: Any, error: BaseException) -> None:
        self._stop(engine)
        raise error
