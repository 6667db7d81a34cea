"""Training in a process that is killed: it saves often, and one save can be made to stop half way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events

from lvmmed_monai.engines import Pretrainer
from lvmmed_monai.handlers import ResumableCheckpoint, checkpoint


def train_with_saves(build: Callable[[list[Any]], Pretrainer], folder: Path, break_save: bool) -> None:
    """Train with a checkpoint every three steps; with ``break_save`` the second save stops half way.

    Files ``started`` and ``saving`` in the folder tell the parent where the training is.

    Args:
        build: the pre-trainer with these handlers.
    """
    if break_save:
        saved = torch.save
        calls = []

        def half(content: Any, path: Any) -> None:
            saved(content, path)
            calls.append(path)
            if len(calls) == 2:
                os.truncate(path, os.path.getsize(path) // 2)
                (folder / "saving").touch()
                time.sleep(60)

        checkpoint.torch.save = half
    engine = build([ResumableCheckpoint(folder / "checkpoint.pt", interval_steps=3)])
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: (folder / "started").touch())
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: time.sleep(0.01))
    engine.run()
