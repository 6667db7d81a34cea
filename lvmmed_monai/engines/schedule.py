"""Learning rates by global step."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lvmmed_monai.errors import UserError

__all__ = ["warmup_cosine"]


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
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
    if total_steps < 1 or warmup_steps < 0:
        raise UserError(
            f"warmup_cosine: expected total_steps >= 1 and warmup_steps >= 0, got {total_steps} and {warmup_steps}; "
            "lr_scheduler; use e.g. warmup_steps=20"
        )
    warmup = min(warmup_steps, total_steps - 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total_steps - warmup))))

    return LambdaLR(optimizer, factor)
