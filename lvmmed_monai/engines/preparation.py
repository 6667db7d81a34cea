"""The network as the loop trains it: compiled, with batch statistics of all processes, wrapped for several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lvmmed_monai.errors import UserError

__all__ = ["compile_encoder", "distribute", "statistics_of_own_batch", "synchronise_batch_norm"]


def compile_encoder(encoder: nn.Module, choice: bool | str) -> None:
    """Compile the forward pass of an encoder in place with `torch.compile`.

    Only the encoder: the losses of our methods look at values (the matching solver runs outside torch). In place the
    names of the tensors stay as they are, so checkpoints and encoder files fit runs with and without. It is compiled
    at its first step, once for training and once for the monitors; results may differ from uncompiled ones by
    roundings.

    Args:
        encoder: of the network that is trained.
        choice: whether, or a backend: "eager" and "aot_eager" need no compiler; true is "inductor", which needs a C++
            compiler or a GPU with Triton.

    Raises:
        UserError: an unknown backend.
    """
    if choice is False:
        return
    backend = "inductor" if choice is True else choice
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise UserError(f"compile = {choice!r}; pre-training; use true, false or one of {', '.join(known)}")
    encoder.compile(backend=backend)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Batch normalisation whose statistics are those of all processes; weights and names stay what they are.

    Raises:
        UserError: the device is no GPU: torch has it on GPUs only.
    """
    if device.type != "cuda":
        raise UserError(
            f"sync_batch_norm needs GPUs, the device is {device.type}; pre-training; "
            "set it to false or use an encoder without batch normalisation"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def distribute(network: nn.Module, device: torch.device, *, sync_batch_norm: bool) -> nn.Module:
    """Wrap a network on its device for a group of processes."""
    if sync_batch_norm:
        network = synchronise_batch_norm(network, device)
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def statistics_of_own_batch(network: nn.Module) -> AbstractContextManager[None]:
    """Within, synchronised layers look at this process alone: others would be waited for, who do not come."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.SyncBatchNorm)]
    return _alone(layers) if layers else nullcontext()


@contextmanager
def _alone(layers: list[nn.SyncBatchNorm]) -> Iterator[None]:
    groups = [layer.process_group for layer in layers]
    own = dist.new_group([dist.get_rank()], use_local_synchronization=True) if dist.is_initialized() else None
    for layer in layers:
        layer.process_group = own
    try:
        yield
    finally:
        for layer, group in zip(layers, groups, strict=True):
            layer.process_group = group
        if own is not None:
            dist.destroy_process_group(own)
