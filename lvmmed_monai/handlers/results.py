"""The results file of a run, written when the run is complete."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events

from lvmmed_monai.data import summarise
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import sha256_file
from lvmmed_monai.handlers.recorders import CaseRecorder, PretrainingRecorder, TrainingRecorder
from lvmmed_monai.networks import read_encoder_file
from lvmmed_monai.results import new_results, peak_memory_mb, write_results

__all__ = ["ResultsWriter"]

PathLike = str | os.PathLike[str]


class _Recorder(Protocol):
    def attach(self, engine: Any) -> None: ...

    def fill(self, engine: Any, record: dict[str, Any]) -> None: ...


class ResultsWriter:
    """Writes ``results.json`` (`lvmmed_monai.results`) of a pre-training, training, evaluation or inference.

    Args:
        path: the results file.
        kind: ``pretraining`` for a `Pretrainer`, ``training`` for a MONAI trainer, ``evaluation`` or
            ``inference`` for a MONAI evaluator with decollated output.
        name: what ran, e.g. the bundle's name.
        seed: seed of the run.
        labels: label map, for an evaluation.
        datalists: the datalists that the run read; what is not a path (items given by a host) is left out.
        encoder: encoder file that the run started from, or None.
        validator: the evaluator that a trainer calls, for its curve.

    Raises:
        UserError: an unknown kind, or an evaluation without labels.
    """

    def __init__(
        self,
        path: PathLike,
        kind: str,
        name: str,
        *,
        seed: int | None = None,
        labels: Mapping[str, str] | None = None,
        datalists: Sequence[Any] | PathLike = (),
        encoder: PathLike | None = None,
        validator: Any | None = None,
    ) -> None:
        self.path = Path(path)
        self.kind, self.name, self.seed, self.encoder = kind, name, seed, encoder
        given = [datalists] if isinstance(datalists, str | os.PathLike) else datalists
        self.datalists = [one for one in given if isinstance(one, str | os.PathLike)]
        if kind == "evaluation" and not labels:
            raise UserError("ResultsWriter: an evaluation needs labels, got none; handlers; give the label map")
        recorders: dict[str, _Recorder] = {
            "pretraining": PretrainingRecorder(Path(path).parent),
            "training": TrainingRecorder(validator),
            "evaluation": CaseRecorder(labels, self.path.parent),
            "inference": CaseRecorder(None, self.path.parent),
        }
        if kind not in recorders:
            raise UserError(f"ResultsWriter: unknown kind {kind!r}; handlers; use one of {', '.join(recorders)}")
        self._recorder = recorders[kind]

    def attach(self, engine: Engine) -> None:
        """Attach to the engine of this kind of run."""
        self._recorder.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Any) -> None:
        if engine.state.rank != 0:
            return
        device = torch.device(engine.state.device or "cpu")
        record = new_results(self.kind, self.name, seed=self.seed, device=_device_name(device))
        record["data"] = {"datalists": [summarise(path) for path in self.datalists], "encoder": self._encoder()}
        record["environment"]["threads"] = torch.get_num_threads()
        self._recorder.fill(engine, record)
        on_gpu = device.type == "cuda"
        record["peak_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else peak_memory_mb()
        write_results(self.path, record)

    def _encoder(self) -> dict[str, Any] | None:
        if self.encoder is None:
            return None
        content = read_encoder_file(self.encoder)
        about = {key: content[key] for key in ("name", "options", "input", "provenance")}
        return {**about, "sha256": sha256_file(self.encoder)}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
