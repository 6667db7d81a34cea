"""State of an unfinished run on disk, and the best model so far."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path

__all__ = ["BestModelSaver", "ResumableCheckpoint", "bare", "read_state", "write_state"]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
FORMAT = "lvmmed-checkpoint/1"
# What a shell reports for a process that ended on SIGTERM.
_TERMINATED = 128 + int(signal.SIGTERM)


def write_state(path: PathLike, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a state with the settings it belongs to, atomically."""
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, "settings": dict(settings), "state": dict(state)}, temporary)


def read_state(path: PathLike, settings: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Read a state that was written with the same settings.

    Raises:
        UserError: the file is damaged, or it belongs to a run with other settings (they are named).
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        stored, state = content["settings"], content["state"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise UserError(
            f"the checkpoint cannot be read ({type(error).__name__}); {path}; remove it or use another output_dir"
        ) from None
    other = sorted(key for key in stored.keys() | dict(settings).keys() if stored.get(key) != settings.get(key))
    if other:
        raise UserError(
            f"the checkpoint belongs to a run with other settings ({', '.join(other)}); {path}; "
            "remove it or use another output_dir"
        )
    return state


def bare(network: nn.Module) -> nn.Module:
    """A network without its distributed wrapper."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


class ResumableCheckpoint:
    """Saves a `Pretrainer` every few steps and at its end, and takes it up where the file left it.

    When the file exists at the start, the run continues from its step; a finished run only writes its
    outputs again. SIGTERM saves at the end of the step and ends the process with status 143.

    Args:
        path: the checkpoint file.
        interval_steps: steps between two saves, at least 1.

    Raises:
        UserError: at the start, when the file is damaged or belongs to a run with other settings.
    """

    def __init__(self, path: PathLike, interval_steps: int = 100) -> None:
        if interval_steps < 1:
            raise UserError(
                f"ResumableCheckpoint: interval_steps must be at least 1, got {interval_steps}; train#handlers; "
                "use e.g. 100"
            )
        self.path = Path(path)
        self.interval_steps = interval_steps
        self._terminated = False
        self._previous: Any = None

    def attach(self, engine: Any) -> None:
        """Attach to an engine that has ``settings``, ``checkpoint()``, ``restore(state)``, ``is_writer``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Any) -> None:
        self._terminated = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        if not self.path.is_file():
            return
        engine.restore(read_state(self.path, engine.settings, engine.state.device))
        if engine.state.iteration >= engine.total_steps:
            logger.info("this run is already finished (%s): its outputs are written again", self.path)
        else:
            logger.info("resuming at step %d of %d (%s)", engine.state.iteration, engine.total_steps, self.path)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True

    def _step(self, engine: Any) -> None:
        if self._terminated or engine.state.iteration % self.interval_steps == 0:
            self._save(engine)
        if self._terminated:
            self._release()
            logger.warning(
                "stopped by SIGTERM at step %d of %d; run the same command again to continue",
                engine.state.iteration,
                engine.total_steps,
            )
            raise SystemExit(_TERMINATED)

    def _complete(self, engine: Any) -> None:
        self._save(engine)
        self._release()

    def _fail(self, engine: Any, error: BaseException) -> None:
        self._release()
        raise error

    def _save(self, engine: Any) -> None:
        if engine.is_writer:
            write_state(self.path, engine.settings, engine.checkpoint())

    def _release(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


class BestModelSaver:
    """Writes the bare state dict of a network whenever the evaluator's key metric is the best so far.

    Unlike MONAI's `CheckpointSaver` it keeps no list of its own: it asks the evaluator, whose best
    metric `TrainingState` restores, so a resumed run does not replace a better model by its first one;
    and the file is whole at every moment.

    Args:
        path: e.g. ``models/model.pt``.
        network: the network, bare or wrapped for distributed training.
    """

    def __init__(self, path: PathLike, network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator with a key metric."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: Any) -> None:
        best_now = engine.state.best_metric_epoch == engine.state.epoch
        if best_now and engine.state.rank == 0:
            with atomic_path(self.path) as temporary:
                torch.save(bare(self.network).state_dict(), temporary)
