"""One training loop for every self-supervised method."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import Trainer
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from lvmmed_monai.data import summarise
from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.engines.alarms import note_alarms
from lvmmed_monai.engines.disk import announce_disk
from lvmmed_monai.engines.memory import announce_memory
from lvmmed_monai.engines.outputs import provenance, write_exports, write_feature_model
from lvmmed_monai.engines.preparation import compile_encoder, distribute, statistics_of_own_batch
from lvmmed_monai.engines.schedule import described
from lvmmed_monai.engines.steps import (
    autocast_dtype,
    check_parts,
    clip_gradients,
    gradients_exchanged,
    mean_numbers,
    plain_options,
    split_batch,
    step_errors_as_user_errors,
    step_seed,
    structure_hash,
    to_device,
)
from lvmmed_monai.engines.time_limit import TimeLimit
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import output_folder
from lvmmed_monai.networks import Encoder, save_encoder
from lvmmed_monai.options import true_or_false

__all__ = ["Method", "Pretrainer"]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
# Points of a curve that are kept; a longer run keeps every n-th step.
_CURVE_POINTS = 500


class Method(Protocol):
    """What the loop asks of a self-supervised method (classes in `lvmmed_monai.methods`).

    A method that learns more than an encoder may also have ``exports()``: state dicts by name, each of which is
    written to ``<name>.pt`` beside the encoder file.
    """

    name: str
    metric_directions: Mapping[str, bool]
    chance: Mapping[str, float]

    def network(self) -> nn.Module: ...

    def step(self, batch: dict[str, Any], network: nn.Module) -> dict[str, Any]: ...

    def after_step(self, network: nn.Module) -> None: ...

    def monitors(self, dataset: Dataset) -> dict[str, float]: ...

    def alarms(self, history: Mapping[str, Any]) -> list[str]: ...

    def encoder(self) -> Encoder: ...

    def input_spec(self) -> dict[str, Any]: ...


class Pretrainer(Trainer):
    """Numbered steps 0 to ``max_epochs * epoch_length`` - 1 of a method.

    All randomness is a function of the seed and the step (see `StepBatchSampler`), so a run that
    `handlers.ResumableCheckpoint` takes up again ends as if it had never stopped. In a distributed
    process group the network is wrapped, the sampler divided, and rank 0 alone monitors and writes.

    ``history`` holds what the run has measured: ``curves`` {name: [[step, value], ...]}, ``monitors``
    [[step, {name: value}], ...], ``alarms`` [[first step, last step, sentence], ...] of the method, ``seconds``
    {training, waiting_for_data, monitors}, ``total_steps``.

    Args:
        method: the self-supervised method.
        train_data_loader: a loader whose ``batch_sampler`` is a `StepBatchSampler`.
        max_epochs: number of epochs; an epoch is ``epoch_length`` steps, not a pass over the data.
        optimizer: over parameters of ``method.network()``.
        epoch_length: steps of an epoch.
        lr_scheduler: stepped after every optimiser step; None keeps the rate.
        device: where to train.
        accumulate: parts that a step's batch is cut into, one after the other, to save memory; the numbers logged are
            their means. What a method compares within a batch (VoCo's neighbouring volume) it then compares in a part.
        max_hours: this start ends after the step in which so many hours are over, in all processes after the same
            step: outputs of the run so far are written, and the same command continues it. None trains to the end.
        amp: mixed precision on a GPU (bfloat16 where it has it, else float16); no effect on a CPU.
        clip_norm: largest norm of the gradient; None does not clip. The norm before clipping is logged either way.
        compile: true, or a backend of `torch.compile`, compiles the encoder: see `preparation.compile_encoder`. Nobody
            has run "inductor" on a GPU with this package; "eager", "aot_eager" and "inductor" on a CPU are tried.
        sync_batch_norm: batch statistics of all processes; needs GPUs. Nobody has run it on two of them.
        seed: seed of everything that is random in a step.
        handlers: objects with ``attach(engine)``.
        held_out: dataset of the method's monitors; None does not monitor.
        monitor_interval: steps between monitors; by default only before the first and after the last.
        network: ``method.network()`` as wrapped by the caller; by default the engine wraps it.
        output_dir: made and checked before the first step; where the checkpoint goes.
        encoder_path: where the encoder file goes; None writes none.
        model_path: where the bare weights of the `FeatureExtractor` go; None writes none.
        datalists: datalists trained on, for the encoder file's provenance.

    Raises:
        UserError: a loader without `StepBatchSampler`, a batch size that does not fit, an output folder
            that cannot be written; while running: a loss that is not finite, too little memory (where the estimate
            shows it, before the first step), too little space.
    """

    def __init__(
        self,
        method: Method,
        train_data_loader: DataLoader,
        max_epochs: int,
        optimizer: torch.optim.Optimizer,
        *,
        epoch_length: int,
        lr_scheduler: Any | None = None,
        device: torch.device | str = "cpu",
        accumulate: int = 1,
        max_hours: float | None = None,
        amp: bool = False,
        clip_norm: float | None = None,
        compile: bool | str = False,
        sync_batch_norm: bool = False,
        seed: int = 0,
        handlers: Sequence[Any] = (),
        held_out: Dataset | None = None,
        monitor_interval: int | None = None,
        network: nn.Module | None = None,
        output_dir: PathLike | None = None,
        encoder_path: PathLike | None = None,
        model_path: PathLike | None = None,
        datalists: Sequence[PathLike] = (),
    ) -> None:
        device = torch.device(device)
        amp = true_or_false(amp, "amp")
        self.folder = None if output_dir is None else output_folder(output_dir)
        # MONAI's own `amp` is CUDA float16 with a fresh scaler at each run(); ours survives a resume.
        super().__init__(device, max_epochs, train_data_loader, epoch_length=epoch_length, decollate=False)
        # ignite logs an error before it re-raises it, and the command reports it once.
        self.logger.setLevel(logging.CRITICAL)
        self.method, self.optimizer, self.lr_scheduler = method, optimizer, lr_scheduler
        self.seed, self.amp_requested, self.clip_norm = seed, amp, clip_norm
        self.held_out, self.monitor_interval = held_out, monitor_interval
        self.accumulate, self.time_limit = accumulate, TimeLimit(max_hours)
        self.encoder_path, self.model_path, self.datalists = encoder_path, model_path, list(datalists)
        self.total_steps = max_epochs * epoch_length
        self.sampler = self._share_sampler(train_data_loader)
        check_parts(self.sampler.batch_size, accumulate)
        self._compile, self._sync_batch_norm = compile, true_or_false(sync_batch_norm, "sync_batch_norm")
        self.network = self._wrap(method.network().to(device) if network is None else network)
        self.autocast_dtype = autocast_dtype(amp, device)
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=self.autocast_dtype == torch.float16)
        self.history: dict[str, Any] = {
            "curves": {},
            "monitors": [],
            "alarms": [],
            "total_steps": self.total_steps,
            "seconds": {"training": 0.0, "waiting_for_data": 0.0, "monitors": 0.0},
        }
        self.settings = self._settings()
        self._mark = time.perf_counter()
        self._register(handlers)

    @property
    def inner_network(self) -> nn.Module:
        """The network without its distributed wrapper."""
        return self.network.module if isinstance(self.network, DistributedDataParallel) else self.network

    @property
    def is_writer(self) -> bool:
        """Whether this process monitors and writes (rank 0)."""
        return self.state.rank == 0

    # -- building ------------------------------------------------------------------------------------

    def _share_sampler(self, loader: DataLoader) -> StepBatchSampler:
        sampler = getattr(loader, "batch_sampler", None)
        if not isinstance(sampler, StepBatchSampler):
            raise UserError(
                f"Pretrainer: the loader's batch_sampler must be a StepBatchSampler, got {type(sampler).__name__}; "
                "train#dataloader; give batch_sampler instead of batch_size and shuffle"
            )
        sampler.total_steps = self.total_steps
        if dist.is_available() and dist.is_initialized():
            sampler.distribute(dist.get_rank(), dist.get_world_size())
        return sampler

    def _wrap(self, network: nn.Module) -> nn.Module:
        if self.sampler.world_size == 1 or isinstance(network, DistributedDataParallel):
            return network
        return distribute(network, self.state.device, sync_batch_norm=self._sync_batch_norm)

    def _settings(self) -> dict[str, Any]:
        """What must be equal for a stored state to be continued, as plain values."""
        encoder = self.method.encoder()
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        return {
            "method": self.method.name,
            "method options": plain_options(self.method),
            "encoder": f"{encoder.name} {sorted(encoder.options.items())}",
            "input": json.dumps(self.method.input_spec(), sort_keys=True, default=str),
            "network": structure_hash(self.inner_network.state_dict()),
            "optimizer": [type(self.optimizer).__name__, [str(sorted(group.items())) for group in groups]],
            "schedule": described(self.lr_scheduler),
            "clip_norm": self.clip_norm,
            "sync_batch_norm": self._sync_batch_norm,
            "amp": self.amp_requested,
            "seed": self.seed,
            "total steps": self.total_steps,
            "batch size": self.sampler.batch_size,
            "accumulate": self.accumulate,
            "processes": self.sampler.world_size,
            "items": self.sampler.length,
            "neighbours": self.sampler.neighbours,
            "datalists": [summarise(path)["sha256"] for path in self.datalists],
        }

    def _register(self, handlers: Sequence[Any]) -> None:
        """The loop's own work is done before that of the handlers, except at the start: they restore first."""
        self.add_event_handler(Events.GET_BATCH_STARTED, self._start_waiting)
        self.add_event_handler(Events.GET_BATCH_COMPLETED, self._stop_waiting)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._record)
        self.add_event_handler(Events.COMPLETED, self._finish)
        self._register_handlers(handlers)
        self.add_event_handler(Events.STARTED, self._begin)

    # -- the loop ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.sampler.start_step = self.state.iteration
        self.time_limit.start()
        if self.state.iteration < self.total_steps:
            self._announce()
        # After the estimate, which follows the bare network.
        compile_encoder(self.method.encoder(), self._compile)
        if self.state.iteration == 0:
            self._monitor()

    def _announce(self) -> None:
        """What a run needs. In every process: a network may exchange tensors with those of the others."""
        loader: Any = self.data_loader
        sample = loader.dataset[next(iter(self.sampler))[0]]
        part = to_device(loader.collate_fn([sample] * (self.sampler.batch_size // self.accumulate)), self.state.device)
        network, amp = self.inner_network, self.autocast_dtype
        with statistics_of_own_batch(network):
            announce_memory(self.method.step, part, network, self.optimizer, autocast=amp, quiet=not self.is_writer)
        if self.is_writer:
            outputs = (self.encoder_path, self.model_path)
            announce_disk(network, self.optimizer, self.folder, self.method.encoder(), outputs)

    def _start_waiting(self) -> None:
        self._mark = time.perf_counter()

    def _stop_waiting(self) -> None:
        now = time.perf_counter()
        self.history["seconds"]["waiting_for_data"] += now - self._mark
        self._mark = now

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, float]:
        step = self.state.iteration - 1
        torch.manual_seed(step_seed(self.seed, step, self.state.rank))
        self.optimizer.zero_grad(set_to_none=True)
        parts = split_batch(batchdata, self.accumulate)
        outputs = []
        with step_errors_as_user_errors(self.sampler.batch_size):
            for number, part in enumerate(parts, start=1):
                with gradients_exchanged(self.network, number == len(parts)):
                    outputs.append(self._backward(to_device(part, self.state.device), step))
            rate = self.optimizer.param_groups[0]["lr"]
            norm = self._update()
        self.method.after_step(self.inner_network)
        return {**mean_numbers(outputs), "learning_rate": rate, "gradient_norm": float(norm)}

    def _backward(self, part: dict[str, Any], step: int) -> dict[str, Any]:
        """The gradient of one part of the batch, added to that of the parts before."""
        with torch.autocast(self.state.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            output = self.method.step(part, self.network)
        loss = output["loss"]
        if not torch.isfinite(loss.detach()):
            rate = self.optimizer.param_groups[0]["lr"]
            raise UserError(
                f"the loss is {float(loss.detach())} at step {step} (learning rate {rate:.3g}); {self.method.name}; "
                "use a lower learning rate, set clip_norm, or turn amp off"
            )
        self.grad_scaler.scale(loss / self.accumulate).backward()
        return output

    def _update(self) -> torch.Tensor:
        """One step of the optimiser; gives the norm of the gradient before clipping."""
        self.grad_scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.inner_network, self.clip_norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        return norm

    def _record(self) -> None:
        now = time.perf_counter()
        self.history["seconds"]["training"] += now - self._mark
        done = self.state.iteration
        if done % max(1, self.total_steps // _CURVE_POINTS) == 0 or done in (1, self.total_steps):
            for name, value in self.state.output.items():
                self.history["curves"].setdefault(name, []).append([done, value if math.isfinite(value) else None])
            self._note_alarms()
        if self.monitor_interval and done % self.monitor_interval == 0 and done < self.total_steps:
            self._monitor()
        if done < self.total_steps and self.time_limit.is_over(self.state.device):
            self.terminate()

    def _monitor(self) -> None:
        if self.held_out is None or not self.is_writer:
            return
        start = time.perf_counter()
        with statistics_of_own_batch(self.inner_network):
            values = {name: float(value) for name, value in self.method.monitors(self.held_out).items()}
        self.history["seconds"]["monitors"] += time.perf_counter() - start
        self.history["monitors"].append([self.state.iteration, values])
        self.state.metrics.update(values)
        logger.info(
            "step %d: %s", self.state.iteration, ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        )

    def _note_alarms(self) -> None:
        new = note_alarms(self.history["alarms"], self.method.alarms(self.history), self.state.iteration)
        for sentence in new if self.is_writer else ():
            logger.warning("alarm at step %d: %s", self.state.iteration, sentence)

    def _finish(self) -> None:
        monitors = self.history["monitors"]
        if not monitors or monitors[-1][0] != self.state.iteration:
            self._monitor()
            self._note_alarms()
        if not self.is_writer:
            return
        self._write_outputs()
        if self.state.iteration < self.total_steps:
            logger.warning(
                "stopped after %.1f hours at step %d of %d; run the same command again to continue",
                self.time_limit.hours_gone,
                self.state.iteration,
                self.total_steps,
            )

    def _write_outputs(self) -> None:
        encoder = self.method.encoder()
        if self.encoder_path is not None:
            about = provenance(self.method.name, self.datalists, self.state.iteration, self.seed)
            save_encoder(self.encoder_path, encoder, input=self.method.input_spec(), provenance=about)
        if self.model_path is not None:
            write_feature_model(self.model_path, encoder)
        if self.encoder_path is not None and hasattr(self.method, "exports"):
            write_exports(self.encoder_path, self.method.exports())

    # -- interruption and resume -----------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        """The state of the run: tensors and plain values only. No generator state: see the class."""
        return {
            "step": self.state.iteration,
            "network": self.inner_network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "scaler": self.grad_scaler.state_dict(),
            "history": self.history,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `checkpoint` gave."""
        self.inner_network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["scheduler"])
        self.grad_scaler.load_state_dict(state["scaler"])
        self.history = state["history"]
        self.state.iteration = state["step"]
        self.state.epoch = state["step"] // self.state.epoch_length
