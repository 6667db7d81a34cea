"""What a pre-training run leaves behind: the encoder file, and bare weights of networks that have it in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lvmmed_monai.data import load_pool, summarise
from lvmmed_monai.files import atomic_path
from lvmmed_monai.networks import Encoder
from lvmmed_monai.results import environment

__all__ = ["provenance", "write_exports", "write_feature_model"]

PathLike = str | os.PathLike[str]


def provenance(method: str, datalists: Sequence[PathLike], steps: int, seed: int) -> dict[str, Any]:
    """How an encoder came to be, for its file.

    Subjects are kept as hashes of their pseudonyms, so that a later evaluation can tell whether its
    test subjects were among them.

    Args:
        method: name of the self-supervised method.
        datalists: what it was trained on.
        steps: optimiser steps.
        seed: seed of the run.
    """
    subjects = {item["subject"] for item in load_pool(datalists, "training")} if datalists else set()
    return {
        "method": method,
        "datalists": [summarise(path) for path in datalists],
        "subjects": sorted(hashlib.sha256(subject.encode()).hexdigest()[:16] for subject in subjects),
        "steps": steps,
        "seed": seed,
        "versions": environment()["packages"],
        "licence": "the terms of the training data apply",
    }


def write_feature_model(path: PathLike, encoder: Encoder) -> None:
    """Write the bare state dict of the `FeatureExtractor` of ``encoder``, atomically."""
    # A module's state dict, not a plain dictionary: its metadata says what the shapes of its tensors do not.
    state = nn.ModuleDict({"encoder": encoder}).state_dict()
    state.update({key: tensor.cpu() for key, tensor in state.items()})
    _write(path, state)


def write_exports(encoder_path: PathLike, exports: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Write each bare state dict of ``exports`` to ``<name>.pt`` in the folder of the encoder file, atomically."""
    for name, state in exports.items():
        tensors = {key: tensor.detach().cpu() for key, tensor in state.items()}
        _write(Path(encoder_path).with_name(f"{name}.pt"), tensors)


def _write(path: PathLike, state: Mapping[str, torch.Tensor]) -> None:
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
