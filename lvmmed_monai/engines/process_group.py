"""Joining and leaving the group of processes that train together."""

from __future__ import annotations

import torch.distributed.nn.functional  # noqa: F401  imported later, its default arguments would hold the group for good
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["join_process_group", "leave_process_group"]


def join_process_group(backend: str) -> None:
    """Join the group that the environment variables of ``torchrun`` describe, unless it is joined already.

    Args:
        backend: ``nccl`` for GPUs, ``gloo`` for CPUs.
    """
    if not dist.is_initialized():
        dist.init_process_group(backend=backend)


def leave_process_group(network: nn.Module) -> None:
    """Leave the group and end its threads; does nothing where none was joined.

    gloo's threads end with the last reference to the group. A thread that lives on into the shutdown of
    the interpreter may release a tensor of the last collective there, which aborts the process after a
    training that went well (pytorch/pytorch#190489). ``destroy_process_group`` alone does not help: the
    `DistributedDataParallel` wrapper keeps references.

    Args:
        network: the trained network, bare or wrapped; a wrapper cannot be trained any further.
    """
    if not dist.is_initialized():
        return
    if isinstance(network, DistributedDataParallel):
        for reference in ("reducer", "logger", "process_group"):
            vars(network).pop(reference, None)
    dist.destroy_process_group()
