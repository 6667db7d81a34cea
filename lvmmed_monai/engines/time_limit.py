"""How long one start of a run may take."""

from __future__ import annotations

import time

import torch
from torch import distributed as dist

from lvmmed_monai.errors import UserError

__all__ = ["TimeLimit"]


class TimeLimit:
    """Tells when the hours of a start are over, in every process of a group at the same call.

    Args:
        hours: more than 0; None is no limit.

    Raises:
        UserError: hours out of range.
    """

    def __init__(self, hours: float | None) -> None:
        if hours is not None and not hours > 0:
            raise UserError(f"max_hours must be above 0, got {hours}; pre-training; set it to null for no limit")
        self.hours = hours
        self._started = time.monotonic()

    @property
    def hours_gone(self) -> float:
        """Hours since `start`."""
        return (time.monotonic() - self._started) / 3600

    def start(self) -> None:
        """Count from now."""
        self._started = time.monotonic()

    def is_over(self, device: torch.device) -> bool:
        """Whether the time is over; rank 0's clock decides for all, which must all ask.

        Args:
            device: of the training, for the message between the processes.
        """
        if self.hours is None:
            return False
        over = self.hours_gone >= self.hours
        if not (dist.is_available() and dist.is_initialized()):
            return over
        answer = torch.tensor([over], dtype=torch.uint8, device=device)
        dist.broadcast(answer, src=0)
        return bool(answer)
