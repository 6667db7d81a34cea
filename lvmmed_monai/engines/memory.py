"""How much memory a training step needs, computed before the first one without using any.

The network's forward and backward pass run once on fake tensors, which have shapes and storages but no memory; every
storage that lives at the same time is counted. What libraries take beside (cuDNN's workspace, the allocator's gaps,
the loss) is not in it: the estimate is a lower bound.

A module that looks at values, as a loss with a solver in it, may have ``stand_in(...)``: called with the same arguments
in its place, it gives a scalar with the same gradients' shapes and makes the largest tensors that the module makes.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from lvmmed_monai.errors import UserError

__all__ = ["StepMemory", "announce_memory", "check_memory", "optimizer_bytes", "step_memory"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step.

    Attributes:
        weights: parameters and buffers.
        optimizer: state of the optimiser.
        step: most of what lives beside these during the step: gradients, kept and passing activations.
    """

    weights: int
    optimizer: int
    step: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.optimizer + self.step


class _Measured(Exception):  # noqa: N818  (leaves a method's step, no error)
    """The network was called and measured: the rest of the step is not needed."""


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, until they are freed."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(found)[0]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._free, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


class _Probe:
    """Stands for the network in a method's step, measures its forward and backward pass, and ends the step."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.peak = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            make = mode.from_tensor
            state: dict[str, Tensor] = {name: make(value) for name, value in self._tensors().items()}
            args, kwargs = tree_map_only(Tensor, make, (args, kwargs))
            live = _LiveBytes(list(state.values()))
            with live, _stand_ins(self._network):
                # Tying exchanges a module that stands in two places twice, and leaves fake weights behind.
                found = torch.func.functional_call(self._network, state, args, kwargs, tie_weights=False)
                outputs = [one for one in tree_flatten(found)[0] if isinstance(one, Tensor) and one.requires_grad]
                torch.autograd.backward(outputs, [torch.ones_like(one) for one in outputs])
        self.peak = live.peak
        raise _Measured

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self._network.named_parameters()), **dict(self._network.named_buffers())}


@contextmanager
def _stand_ins(network: nn.Module) -> Iterator[None]:
    """Within, modules that cannot be followed without values are represented by what they have for that."""
    modules: list[Any] = [module for module in network.modules() if hasattr(module, "stand_in")]
    for module in modules:
        module.forward = module.stand_in
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of its state after a step: what a copy of it keeps for one small weight, for all weights."""
    weight = nn.Parameter(torch.zeros(8))
    known = inspect.signature(type(optimizer)).parameters
    options: Any = {name: value for name, value in optimizer.defaults.items() if name in known}
    small = type(optimizer)([weight], **options)
    weight.grad = torch.ones_like(weight)
    small.step()
    kept = [value for value in small.state[weight].values() if isinstance(value, Tensor) and value.shape == (8,)]
    weights = [one for group in optimizer.param_groups for one in group["params"]]
    return len(kept) * sum(one.numel() * one.element_size() for one in weights)


def step_memory(
    step: Callable[..., Any],
    batch: Mapping[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    autocast: torch.dtype | None = None,
) -> StepMemory:
    """Bytes that a step needs at its peak; the network's own pass, once, in the mode that it is in.

    Args:
        step: ``Method.step``, which calls the network.
        batch: real data of a part of a batch, on the device.
        network: the bare network on the device.
        optimizer: over its parameters.
        autocast: the reduced precision of the step.

    Raises:
        RuntimeError: the network cannot be followed on fake tensors, e.g. because it looks at values.
    """
    probe = _Probe(network)
    device = next(network.parameters()).device
    try:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            step(batch, probe)
    except _Measured:
        tensors = probe._tensors().values()
        weights = sum(one.numel() * one.element_size() for one in tensors)
        return StepMemory(weights, optimizer_bytes(optimizer), probe.peak)
    raise RuntimeError("the step does not call the network")


def check_memory(
    estimate: StepMemory, free: int | None, total: int | None, *, in_use: int = 0, quiet: bool = False
) -> None:
    """Log an estimate, and say so where it does not fit.

    Args:
        estimate: of a step.
        free: bytes that the device has left; None where that is not known.
        total: bytes that it has in all.
        in_use: bytes of the estimate that are allocated already (the weights).
        quiet: log no estimate; another process has.

    Raises:
        UserError: more than the device has at all.
    """
    gib = 2**30
    logger.log(
        logging.DEBUG if quiet else logging.INFO,
        "a step needs at least %.2f GiB: %.2f for weights, %.2f for the optimiser, %.2f for gradients and activations",
        *(size / gib for size in (estimate.total, estimate.weights, estimate.optimizer, estimate.step)),
    )
    remedy = "raise accumulate, or use a smaller batch_size, amp, or use_checkpoint in encoder_options"
    if total is not None and estimate.total > total:
        raise UserError(
            f"a step needs at least {estimate.total / gib:.1f} GiB, and the device has {total / gib:.1f}; "
            f"pre-training; {remedy}"
        )
    if free is not None and estimate.total - in_use > free:
        logger.warning(
            "a step needs at least %.1f GiB more, and %.1f are free: it will probably not fit; %s",
            (estimate.total - in_use) / gib,
            free / gib,
            remedy,
        )


def device_memory(device: torch.device) -> tuple[int | None, int | None]:
    """Free and total bytes of a device; None where they are not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None, None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return sizes.get("MemAvailable"), sizes.get("MemTotal")


def announce_memory(
    step: Callable[..., Any],
    batch: Mapping[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    autocast: torch.dtype | None = None,
    quiet: bool = False,
) -> None:
    """`step_memory` and `check_memory` before a training; where a network cannot be followed, a line that says so.

    Args:
        step, batch, network, optimizer, autocast: of `step_memory`.
        quiet: log only what does not fit.

    Raises:
        UserError: a step needs more than the device has at all.
    """
    try:
        estimate = step_memory(step, batch, network, optimizer, autocast=autocast)
    except Exception as error:
        # Anything may go wrong in a foreign network without values, and none of it stops a training with values.
        reason = " ".join(str(error).split())[:120]
        level = logging.DEBUG if quiet else logging.INFO
        logger.log(level, "no estimate of the memory: the step cannot be followed without data (%s)", reason)
        return
    free, total = device_memory(next(network.parameters()).device)
    check_memory(estimate, free, total, in_use=estimate.weights, quiet=quiet)
