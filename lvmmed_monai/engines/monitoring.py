"""Held-out measures of a pre-trained encoder, beside those of the same network without training."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from lvmmed_monai.data import summarise
from lvmmed_monai.engines.pretrainer import Method
from lvmmed_monai.errors import UserError
from lvmmed_monai.results import new_results, peak_memory_mb, write_results

__all__ = ["MonitorEvaluator"]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def _load_checkpoint(path: PathLike, network: nn.Module) -> None:
    """The network's tensors out of a checkpoint of `handlers.ResumableCheckpoint`."""
    if not Path(path).is_file():
        raise UserError(
            f"no checkpoint of a pre-training; {path}; train first, name the file with checkpoint_path, "
            "or set load_pretrain to false"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(content["state"]["network"])
    except (RuntimeError, KeyError, TypeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint does not fit the network ({reason}); {path}; use the settings of the pre-training"
        ) from None


class MonitorEvaluator:
    """Runs the monitors of a method on a held-out dataset and writes ``results.json``.

    Each measure stands there three times where it can: trained, ``_untrained`` (the random weights of the seed) and
    ``_chance``.

    Args:
        method: the self-supervised method, untrained.
        dataset: held-out data of that method.
        network: ``method.network()`` on its device.
        checkpoint: checkpoint of the pre-training; None evaluates the untrained network only.
        results_path: where the results go.
        name: what ran.
        seed: seed of the random weights.
        datalists: what the data came from.

    Raises:
        UserError: no dataset; when run: no checkpoint, or one of other settings.
    """

    def __init__(
        self,
        method: Method,
        dataset: Dataset | None,
        network: nn.Module,
        checkpoint: PathLike | None,
        results_path: PathLike,
        *,
        name: str,
        seed: int,
        datalists: Sequence[PathLike] = (),
    ) -> None:
        if not dataset:
            raise UserError("no held-out images; evaluation of a pre-training; set held_out to a section that has some")
        self.method, self.dataset, self.network = method, dataset, network
        self.checkpoint, self.results_path = checkpoint, results_path
        self.name, self.seed, self.datalists = name, seed, list(datalists)

    def run(self) -> dict[str, float]:
        """Measure, write, and return the values of the trained network (of the untrained one without checkpoint)."""
        start = time.perf_counter()
        values = {"_untrained": self.method.monitors(self.dataset)}
        if self.checkpoint is not None:
            _load_checkpoint(self.checkpoint, self.network)
            values[""] = self.method.monitors(self.dataset)
        self._write(values, time.perf_counter() - start)
        shown = values.get("", values["_untrained"])
        logger.info("%s: %s", self.name, ", ".join(f"{key} {value:.4g}" for key, value in shown.items()))
        return dict(shown)

    def _write(self, values: Mapping[str, Mapping[str, float]], seconds: float) -> None:
        device = next(self.network.parameters()).device
        record = new_results("evaluation", self.name, seed=self.seed, device=str(device))
        record["data"]["datalists"] = [summarise(path) for path in self.datalists]
        for suffix, measured in [*values.items(), ("_chance", self.method.chance)]:
            for key, value in measured.items():
                record["metrics"][key + suffix] = self._metric(key, value)
        record["timings"] = {"monitors": seconds}
        record["peak_memory_mb"] = peak_memory_mb()
        write_results(self.results_path, record)

    def _metric(self, key: str, value: float) -> dict[str, Any]:
        number = float(value)
        counts = getattr(self.method, "metric_counts", {})
        return {
            "value": number if math.isfinite(number) else None,
            "n": counts.get(key.removesuffix("_untrained"), len(self.dataset)),  # type: ignore[arg-type]
            "interval": None,
            "higher_is_better": self.method.metric_directions.get(key),
        }
