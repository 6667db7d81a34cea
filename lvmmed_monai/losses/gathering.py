"""Losses over the samples of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather

__all__ = ["gathered"]


def gathered(tensor: Tensor) -> Tensor:
    """The rows of all processes, one after the other; gradients are summed back to where they belong.

    Each process computes the whole loss, so a row's gradient comes once from each; the mean over processes that
    data-parallel training takes of its parameters' gradients then makes it that of one process.

    Args:
        tensor: (M, ...), of equal shape in all processes; without a process group it comes back.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    return torch.cat(all_gather(tensor.contiguous()))
