"""Learning rates by global step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lvmmed_monai.errors import UserError

__all__ = ["SCHEDULES", "LearningRate", "described", "lr_schedule", "warmup_cosine", "warmup_halving"]

_HALVINGS = 4


class LearningRate(LambdaLR):
    """A schedule that says what it is, so that a stored run is not continued with another one.

    Args:
        optimizer: its ``lr`` is the highest rate.
        factor: of that rate, by step.
        description: what tells schedules apart.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], description: str) -> None:
        self.description = description
        super().__init__(optimizer, factor)


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LearningRate:
    """Linear warm-up to the optimizer's rate, then half a cosine to 0 (Loshchilov and Hutter 2017).

    Step it once after each optimiser step. Step ``s`` of ``w`` warm-up steps has ``(s + 1) / w`` of the
    rate; the last step of all has almost 0.

    Args:
        optimizer: its ``lr`` is the highest rate.
        warmup_steps: at least 0, fewer than ``total_steps``; more are cut to ``total_steps - 1``.
        total_steps: steps of the whole run, at least 1.

    Raises:
        UserError: a number out of range.
    """
    warmup = _warmup("warmup_cosine", warmup_steps, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total_steps - warmup))))

    return LearningRate(optimizer, factor, f"cosine after {warmup} steps")


def warmup_halving(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LearningRate:
    """Linear warm-up to the optimizer's rate, which is halved after 20, 40, 60 and 80 % of all steps.

    LVM-Med halves its rate four times (Nguyen et al. 2023, implementation details); when is not published: equal parts
    are our choice. The warm-up is ours, too, and its factor is multiplied to the halvings. Arguments and errors as for
    `warmup_cosine`; with ``warmup_steps`` 0 the first step has the whole rate.
    """
    warmup = _warmup("warmup_halving", warmup_steps, total_steps)

    def factor(step: int) -> float:
        halved = min(_HALVINGS, (_HALVINGS + 1) * step // total_steps)
        return min(1.0, (step + 1) / max(1, warmup)) * 0.5**halved

    return LearningRate(optimizer, factor, f"halving, {warmup} steps of warm-up")


#: Schedules by the name that ``lr_schedule`` of a configuration gives.
SCHEDULES: dict[str, Callable[[Optimizer, int, int], LearningRate]] = {
    "cosine": warmup_cosine,
    "halving": warmup_halving,
}


def lr_schedule(name: str, optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LearningRate:
    """A schedule of `SCHEDULES`.

    Raises:
        UserError: no such schedule, or a number out of range.
    """
    if name not in SCHEDULES:
        raise UserError(f"unknown schedule {name!r}; lr_schedule; choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](optimizer, warmup_steps, total_steps)


def described(lr_scheduler: Any | None) -> str | None:
    """What tells a schedule from others: its own description, or its class."""
    if lr_scheduler is None:
        return None
    return getattr(lr_scheduler, "description", type(lr_scheduler).__name__)


def _warmup(schedule: str, warmup_steps: int, total_steps: int) -> int:
    if total_steps < 1 or warmup_steps < 0:
        raise UserError(
            f"{schedule}: expected total_steps >= 1 and warmup_steps >= 0, got {total_steps} and {warmup_steps}; "
            "lr_scheduler; use e.g. warmup_steps=20"
        )
    return min(warmup_steps, total_steps - 1)
