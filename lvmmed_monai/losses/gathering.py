"""Tensors of all processes in each of them, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["gathered", "processes"]


def processes() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gathered(tensor: Tensor) -> Tensor:
    """(B, ...) of each process to (processes B, ...), in the order of their ranks; all must have equal shapes.

    The gradient of a process's rows is the sum of what all processes have for them. Where each computes the whole
    loss, the mean over processes that data-parallel training takes of its parameters' gradients then makes these the
    gradients of one process.

    torch's own ``all_gather`` with gradients mixes up their elements on gloo when a gradient is not contiguous: it
    receives into memory of the gradient's strides what was sent without them (seen with torch 2.13).
    """
    return tensor if processes() == 1 else _Gathered.apply(tensor)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        own = tensor.contiguous()
        parts = [torch.empty_like(own) for _ in range(processes())]
        distributed.all_gather(parts, own)
        ctx.rows = len(own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        first = distributed.get_rank() * ctx.rows
        return total[first : first + ctx.rows]
