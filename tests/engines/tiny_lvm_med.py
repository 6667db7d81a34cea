"""LVM-Med on generated pictures with a small encoder, and processes that train it and can be killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from killed_training import train_with_saves
from monai.data import DataLoader
from PIL import Image
from torch import nn

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.engines import Pretrainer, warmup_cosine
from lvmmed_monai.methods.lvm_med import LVMMed
from lvmmed_monai.networks import Encoder
from lvmmed_monai.networks.registry import ENCODERS

STEPS = 30
VIEWS: dict[str, Any] = {"size": 24, "area": (0.5, 1.0)}
SMALL_VIEWS: dict[str, Any] = {"small_views": 2, "small_size": 8}


class PlainEncoder(Encoder):
    """Two strided convolutions without statistics of a batch: a picture's features are its own."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, 8, 4, stride=4), nn.GroupNorm(2, 8), nn.GELU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GroupNorm(2, 16), nn.GELU())
        self.describe(
            name="plain", options={}, in_channels=in_channels, spatial_dims=2, channels=(8, 16), strides=(4, 8)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = self.first(x)
        return [first, self.second(first)]


def plain(in_channels: int = 3) -> Encoder:
    return PlainEncoder(in_channels)


def write_pictures(folder: Path, *, training: int = 48, validation: int = 20) -> Path:
    """Smooth random colour pictures of 32 x 32 pixels and their datalist."""
    rng = np.random.default_rng(1)
    sections: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for section, count in (("training", training), ("validation", validation)):
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
            name = f"{section}{number}.png"
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / name)
            sections[section].append({"image": name, "subject": name})
    content = {"format": "lvmmed-datalist/1", "name": "set", "task": "unlabelled", "modality": "COLOR", "labels": {}}
    write_datalist(folder / "set.json", {**content, "flip_safe": True, **sections})
    return folder / "set.json"


def build(
    datalist: Path,
    *,
    steps: int = STEPS,
    batch_size: int = 8,
    optimizer: Any = None,
    lvm_med: dict[str, Any] | None = None,
    wrap: Any = None,
    **options: Any,
) -> Pretrainer:
    """A pre-trainer of LVM-Med on `write_pictures`.

    Args:
        optimizer: makes one from the weights.
        lvm_med: options of the method.
        wrap: changes the training data.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ENCODERS["plain"] = f"{__name__}:plain"
    method = LVMMed(**{"encoder_name": "plain", "views": VIEWS, "cache_size": 32, **(lvm_med or {})})
    folder = datalist.parent / "cache"
    data = method.dataset([datalist], "training", folder, 0)
    data = data if wrap is None else wrap(data)
    sampler = StepBatchSampler(len(data), batch_size, steps, seed=0)
    make = optimizer or (lambda weights: torch.optim.AdamW(weights, lr=1e-3))
    made = make(method.network().parameters())
    schedule = warmup_cosine(made, 3, steps)
    loader = DataLoader(data, batch_sampler=sampler)
    if options.pop("monitored", False):
        options["held_out"] = method.dataset([datalist], "validation", folder, 0)
    return Pretrainer(method, loader, 1, made, epoch_length=steps, lr_scheduler=schedule, **options)


def monitored(datalist: Path, small_views: bool, **options: Any) -> Pretrainer:
    """A run with held-out monitors every eight steps, perhaps with small views."""
    views = {**VIEWS, **(SMALL_VIEWS if small_views else {})}
    return build(datalist, lvm_med={"views": views}, monitored=True, monitor_interval=8, **options)


def train_until_killed(datalist: str, folder: str, small_views: bool, break_save: bool) -> None:
    """See `train_with_saves`."""
    train_with_saves(
        lambda handlers: monitored(Path(datalist), small_views, handlers=handlers), Path(folder), break_save
    )
