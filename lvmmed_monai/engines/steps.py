"""Parts of a training step that know no method: seeds, devices, precision, and what can go wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import sha256_json

__all__ = [
    "autocast_dtype",
    "check_parts",
    "clip_gradients",
    "gradients_exchanged",
    "mean_numbers",
    "plain_options",
    "split_batch",
    "step_errors_as_user_errors",
    "step_seed",
    "structure_hash",
    "to_device",
]


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of one step in one process, 0 to 2^63 - 1: the same whether the run was interrupted or not."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with every tensor in it (in dictionaries, lists, tuples) on ``device``."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def check_parts(batch_size: int, accumulate: int) -> None:
    """Whether a batch can be cut into ``accumulate`` parts.

    Raises:
        UserError: it cannot.
    """
    if accumulate < 1 or batch_size % accumulate:
        raise UserError(
            f"a batch of {batch_size} cannot be cut into {accumulate} equal parts; accumulate; "
            "choose a number that divides batch_size"
        )


def split_batch(batch: Any, parts: int) -> list[Any]:
    """A batch (tensors in dictionaries, lists, tuples) cut along the first axis; other things go to each part."""
    if parts == 1:
        return [batch]
    if isinstance(batch, torch.Tensor):
        return list(batch.chunk(parts))
    if isinstance(batch, Mapping):
        pieces = {key: split_batch(value, parts) for key, value in batch.items()}
        return [{key: piece[number] for key, piece in pieces.items()} for number in range(parts)]
    if isinstance(batch, list | tuple):
        columns = [split_batch(value, parts) for value in batch]
        return [type(batch)(column[number] for column in columns) for number in range(parts)]
    return [batch] * parts


@contextmanager
def gradients_exchanged(network: nn.Module, now: bool) -> Iterator[None]:
    """Backward passes within: a `DistributedDataParallel` network averages over the processes only ``now``."""
    if now or not isinstance(network, DistributedDataParallel):
        yield
    else:
        with network.no_sync():
            yield


def mean_numbers(outputs: Sequence[Mapping[str, torch.Tensor | float]]) -> dict[str, float]:
    """The means of the numbers that the parts of a batch gave, without gradients."""
    return {name: sum(_number(output[name]) for output in outputs) / len(outputs) for name in outputs[0]}


def _number(value: torch.Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


def autocast_dtype(amp: bool, device: torch.device) -> torch.dtype | None:
    """The reduced precision to compute in: bfloat16 where the GPU has it, else float16; None on a CPU."""
    if not amp or device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def clip_gradients(network: nn.Module, largest: float | None) -> torch.Tensor:
    """The norm of all gradients together; larger ones are scaled down to ``largest``, unless it is None."""
    weights = [weight for weight in network.parameters() if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    if largest is not None:
        nn.utils.clip_grads_with_norm_(weights, largest, norm)
    return norm


@contextmanager
def step_errors_as_user_errors(batch_size: int) -> Iterator[None]:
    """Turn what a user can mend into a `UserError`: running out of memory (GPU or CPU), and a failed compilation."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise UserError(
                f"the encoder cannot be compiled ({' '.join(str(error).split())[:160]}); compile; "
                "set it to false, or to 'aot_eager', which needs no compiler"
            ) from error
        full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        raise UserError(
            f"the training step does not fit into memory at batch size {batch_size}; batch_size; "
            "raise accumulate, or use a smaller batch size, smaller images, amp, or use_checkpoint in encoder_options"
        ) from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def plain_options(thing: object) -> dict[str, Any]:
    """Public attributes of an object that are plain values: the options it was made with."""
    plain = {
        key: value
        for key, value in vars(thing).items()
        if not key.startswith("_") and key != "training" and _is_plain(value)
    }
    return json.loads(json.dumps(plain))


def structure_hash(state: Mapping[str, torch.Tensor] | Sequence[tuple[str, torch.Tensor]]) -> str:
    """Hash of the names and shapes of a state dict."""
    return sha256_json([[name, list(tensor.shape)] for name, tensor in dict(state).items()])
