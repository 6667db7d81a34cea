"""What `ResultsWriter` collects from each kind of run."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import is_scalar

from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers.examples import write_examples
from lvmmed_monai.metrics import dice_per_class, summarise
from lvmmed_monai.transforms.saving import OneNamePerSource

__all__ = ["CaseRecorder", "PretrainingRecorder", "TrainingRecorder", "class_map"]


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _metric(value: Any, n: int | None, higher_is_better: bool | None) -> dict[str, Any]:
    return {
        "value": None if value is None else _finite(value),
        "n": n,
        "interval": None,
        "higher_is_better": higher_is_better,
    }


class PretrainingRecorder:
    """What a `Pretrainer` measured: curves, monitors beside untrained encoder and chance, alarms, timings, examples.

    Args:
        folder: folder of the results file; pictures of the examples go into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def attach(self, engine: Engine) -> None:
        """Nothing to collect: the engine keeps its history."""

    def fill(self, engine: Any, record: dict[str, Any]) -> None:
        """Put what the engine has measured into a results record."""
        history, method = engine.history, engine.method
        record["curves"] = {name: list(points) for name, points in history["curves"].items()}
        for step, values in history["monitors"]:
            for name, value in values.items():
                record["curves"].setdefault(name, []).append([step, _finite(value)])
        for name, value in method.chance.items():
            if name in record["curves"]:
                record["metrics"][f"{name}_chance"] = _metric(value, None, method.metric_directions.get(name))
        record["timings"] = dict(history["seconds"])
        record["alarms"] = [
            {"first_step": first, "last_step": last, "text": text} for first, last, text in history["alarms"]
        ]
        record["examples"] = write_examples(method, engine.held_out, self.folder)
        if not history["monitors"]:
            return
        held_out = len(engine.held_out) if engine.held_out is not None else None
        counts = getattr(method, "metric_counts", {})
        (first_step, untrained), (_, trained) = history["monitors"][0], history["monitors"][-1]
        for name, value in trained.items():
            direction, n = method.metric_directions.get(name), counts.get(name, held_out)
            record["metrics"][name] = _metric(value, n, direction)
            if first_step == 0:
                record["metrics"][f"{name}_untrained"] = _metric(untrained[name], n, direction)


class TrainingRecorder:
    """Loss by epoch, the validator's metrics by epoch, and timings of a supervised training.

    They are kept in ``engine.state.measured``, which `TrainingState` stores, so that the curves of a
    resumed run are whole.

    Args:
        validator: the evaluator that the trainer calls; None if there is none.
    """

    def __init__(self, validator: Any | None) -> None:
        self.validator = validator
        self._losses: list[float] = []
        self._mark = 0.0

    def attach(self, engine: Any) -> None:
        """Collect from a trainer."""
        engine.state.measured = {"curves": {}, "timings": {"training": 0.0}}
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete_epoch)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._collect_metrics, engine)

    def _start_epoch(self, engine: Any) -> None:
        self._losses, self._mark = [], time.perf_counter()

    def _collect_loss(self, engine: Any) -> None:
        output = engine.state.output
        first = output[0] if isinstance(output, list) else output
        loss = first["loss"]
        self._losses.append(float(torch.as_tensor(loss).detach().float().mean()))

    def _complete_epoch(self, engine: Any) -> None:
        mean = sum(self._losses) / max(1, len(self._losses))
        _point(engine, "loss", mean if self._losses else math.nan)
        engine.state.measured["timings"]["training"] += time.perf_counter() - self._mark

    def _collect_metrics(self, validator: Any, engine: Any) -> None:
        for name, value in validator.state.metrics.items():
            if is_scalar(value):
                _point(engine, f"validation/{name}", float(value))

    def fill(self, engine: Any, record: dict[str, Any]) -> None:
        """Put the curves and the best validation metric into a results record."""
        record["curves"] = {name: list(points) for name, points in engine.state.measured["curves"].items()}
        record["timings"] = dict(engine.state.measured["timings"])
        if self.validator is None:
            return
        state = self.validator.state
        if state.key_metric_name and state.best_metric_epoch > 0:
            higher_is_better = bool(self.validator.metric_cmp_fn(1.0, 0.0))
            record["metrics"][f"validation/{state.key_metric_name}"] = _metric(
                state.best_metric, None, higher_is_better
            )


def _point(engine: Any, name: str, value: float) -> None:
    engine.state.measured["curves"].setdefault(name, []).append([engine.state.epoch, _finite(value)])


def class_map(volume: torch.Tensor) -> torch.Tensor:
    """Class numbers ``(*spatial)`` of a channel-first map: of class numbers (1, ...) or one-hot (C, ...)."""
    plain = torch.as_tensor(volume).detach().cpu()
    plain = plain.as_tensor() if hasattr(plain, "as_tensor") else plain
    return (plain.argmax(dim=0) if plain.shape[0] > 1 else plain[0]).round().long()


class CaseRecorder:
    """A row for each case of an evaluator; with labels also its Dice by class, and the means over the cases.

    Dice of a class that is in neither map of a case is null and counts in no mean; ``dice/mean`` of a
    case is the mean over its classes but the background.

    Args:
        labels: {"0": "background", "1": name, ...}; None writes rows without metrics.
        folder: folder of the results file; preview paths are relative to it.
    """

    def __init__(self, labels: Mapping[str, str] | None, folder: Path) -> None:
        self.labels = labels
        self.folder = folder
        self.cases: list[dict[str, Any]] = []
        self._names = OneNamePerSource()
        self._mark = 0.0

    def attach(self, engine: Engine) -> None:
        """Collect from an evaluator whose output is decollated: a list of dictionaries."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def _start(self, engine: Any) -> None:
        self.cases, self._names, self._mark = [], OneNamePerSource(), time.perf_counter()

    def _collect(self, engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            name = self._names.stem_of(item["image"])
            self.cases.append({"case": name, "metrics": self._dice(name, output)})

    def _dice(self, name: str, output: Mapping[str, Any]) -> dict[str, float | None]:
        if self.labels is None:
            return {}
        pred, label = class_map(output["pred"]), class_map(output["label"])
        if pred.shape != label.shape:
            raise UserError(
                f"the prediction has shape {tuple(pred.shape)}, its label {tuple(label.shape)}; {name}; "
                "bring both onto one grid in postprocessing"
            )
        dice = dice_per_class(pred, label, self.labels)
        known = [value for value in dice.values() if value is not None]
        mean = sum(known) / len(known) if known else None
        return {**{f"dice/{one}": value for one, value in dice.items()}, "dice/mean": mean}

    def fill(self, engine: Any, record: dict[str, Any]) -> None:
        """Put the rows and the means over the cases into a results record."""
        previews = getattr(engine.state, "previews", {})
        for row in self.cases:
            if row["case"] in previews:
                row["preview"] = Path(os.path.relpath(previews[row["case"]], self.folder)).as_posix()
        record["cases"] = self.cases
        names = list(self.cases[0]["metrics"]) if self.cases else []
        record["metrics"] = {name: summarise([row["metrics"][name] for row in self.cases]) for name in names}
        record["timings"] = {"evaluation": time.perf_counter() - self._mark}
