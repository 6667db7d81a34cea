"""What tests of whole runs of methods share."""

from __future__ import annotations

import torch
from ignite.engine import Events

from lvmmed_monai.engines import Pretrainer


class Stop:
    """Interrupts a run after its second step."""

    def attach(self, engine: Pretrainer) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), self._stop)

    def _stop(self) -> None:
        raise KeyboardInterrupt


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
