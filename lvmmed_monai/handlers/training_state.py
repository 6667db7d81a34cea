"""Resume of a supervised MONAI training at the boundary of its epochs."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd

from lvmmed_monai.handlers.checkpoint import bare, read_state, write_state

__all__ = ["TrainingState"]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of one epoch in one process; 32 bits, the most that NumPy's and MONAI's generators take."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint32)[0])


def _best(validator: Any) -> list[Any]:
    return [float(validator.state.best_metric), int(validator.state.best_metric_epoch)]


class TrainingState:
    """Makes a MONAI trainer continue after an interruption as if it had never stopped.

    A handler in ``train#handlers`` cannot be given the trainer (the configuration would be circular),
    so it takes the engine when it is attached and stores that engine's epoch, iteration, scaler and
    ``state.measured`` (the curves of `ResultsWriter`) itself. At the start of each epoch the
    transforms, the sampler and torch are seeded from (seed, epoch, rank): MONAI saves no generator
    state and would repeat the first epoch's shuffle and augmentation after a resume. The loader must
    not keep its workers between epochs (``persistent_workers``), for they keep their generators too.

    The file exists while a run is unfinished; a finished training that is run again trains again.

    Args:
        path: the state file, in ``output_dir``.
        seed: seed of the run.
        objects: what to store by name: network, optimizer, lr_scheduler, ... (anything with
            ``state_dict`` and ``load_state_dict``).
        validator: the evaluator whose best metric is stored too; None if there is none.
        settings: plain values that must be equal for a stored state to be continued.

    Raises:
        UserError: at the start, when the file is damaged or belongs to a run with other settings.
    """

    def __init__(
        self,
        path: PathLike,
        seed: int,
        objects: Mapping[str, Any],
        validator: Any | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.seed = seed
        self.objects = {
            name: bare(thing) if isinstance(thing, torch.nn.Module) else thing for name, thing in objects.items()
        }
        self.validator = validator
        self.settings = dict(settings or {})

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._save)
        engine.add_event_handler(Events.EPOCH_STARTED, self._reseed)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def _start(self, engine: Any) -> None:
        if not self.path.is_file():
            return
        state = read_state(self.path, self._all_settings(engine), engine.state.device)
        for name, thing in self.objects.items():
            thing.load_state_dict(state["objects"][name])
        if engine.scaler is not None and state["scaler"] is not None:
            engine.scaler.load_state_dict(state["scaler"])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        engine.state.measured = state["measured"] or getattr(engine.state, "measured", {})
        if self.validator is not None and state["best"] is not None:
            self.validator.state.best_metric, self.validator.state.best_metric_epoch = state["best"]
        logger.info("resuming after epoch %d of %d (%s)", engine.state.epoch, engine.state.max_epochs, self.path)

    def _all_settings(self, engine: Any) -> dict[str, Any]:
        own = {"seed": self.seed, "max_epochs": engine.state.max_epochs, "epoch_length": engine.state.epoch_length}
        return {**own, "objects": sorted(self.objects), **self.settings}

    def _reseed(self, engine: Any) -> None:
        seed = _epoch_seed(self.seed, engine.state.epoch, engine.state.rank)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        set_rnd(engine.data_loader.dataset, seed)

    def _save(self, engine: Any) -> None:
        """Store the epoch before: when a new one starts, validation, scheduler and savers of the last are done."""
        done = engine.state.epoch - 1
        if engine.state.rank != 0 or done == 0:
            return
        state = {
            "epoch": done,
            "iteration": engine.state.iteration,
            "scaler": None if engine.scaler is None else engine.scaler.state_dict(),
            "best": None if self.validator is None else _best(self.validator),
            "measured": getattr(engine.state, "measured", {}),
            "objects": {name: thing.state_dict() for name, thing in self.objects.items()},
        }
        write_state(self.path, self._all_settings(engine), state)

    def _complete(self, engine: Any) -> None:
        if engine.state.rank == 0:
            self.path.unlink(missing_ok=True)
