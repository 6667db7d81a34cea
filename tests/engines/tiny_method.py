"""A method small enough to train in a moment, with everything that can make a resume inexact.

Augmentation in the dataset, noise in the step, batch statistics, a moving average, momentum and a schedule.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from torch import nn
from torch.utils.data import Dataset

from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.engines import Pretrainer, warmup_cosine
from lvmmed_monai.networks import Encoder


class TinyEncoder(Encoder):
    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 2, stride=2)
        self.describe(name="tiny", options={}, in_channels=in_channels, spatial_dims=2, channels=[4], strides=[2])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.conv(x)]


class TinyNetwork(nn.Module):
    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.encoder = TinyEncoder()
        self.norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
        self.head = nn.ConvTranspose2d(4, 1, 2, stride=2)
        self.register_buffer("average", torch.zeros_like(self.head.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.encoder(x)[0]).relu())


class TinyData(Dataset):
    def __init__(self, length: int, augment: bool = True) -> None:
        self.data = [np.random.default_rng(index).random((1, 8, 8), dtype=np.float32) for index in range(length)]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        draw, index = key if isinstance(key, tuple) else (0, key)
        noise = np.random.default_rng([0, draw, index]).standard_normal((1, 8, 8), dtype=np.float32)
        return {"image": torch.from_numpy(self.data[index] + (0.1 * noise if self.augment else 0))}


class TinyMethod:
    name = "tiny"
    metric_directions = MappingProxyType({"error": False})
    chance = MappingProxyType({"error": 1.0})

    def __init__(self, *, noise: float = 0.1, batch_norm: bool = True, step_seconds: float = 0.0) -> None:
        self.noise, self.batch_norm, self._step_seconds = noise, batch_norm, step_seconds
        torch.manual_seed(0)
        self._network = TinyNetwork(batch_norm)
        self.poison_at: int | None = None
        self.flat_from = 10**6
        self._steps = 0

    def network(self) -> nn.Module:
        return self._network

    def step(self, batch: dict[str, Any], network: nn.Module) -> dict[str, Any]:
        time.sleep(self._step_seconds)
        x = batch["image"]
        loss = (network(x + self.noise * torch.randn_like(x)) - x).square().mean()
        self._steps += 1
        if self._steps == self.poison_at:
            loss = loss * float("nan")
        return {"loss": loss, "level": x.mean()}

    def after_step(self, network: nn.Module) -> None:
        network.average.mul_(0.9).add_(network.head.weight.detach(), alpha=0.1)

    @torch.no_grad()
    def monitors(self, dataset: Dataset) -> dict[str, float]:
        self._network.eval()
        images = torch.stack([dataset[index]["image"] for index in range(len(dataset))])
        error = float((self._network(images) - images).square().mean())
        self._network.train()
        return {"error": error}

    def alarms(self, history: dict[str, Any]) -> list[str]:
        done = history["curves"]["loss"][-1][0]
        return [f"the level is flat at step {done}"] if self.flat_from <= done < self.flat_from + 5 else []

    def encoder(self) -> Encoder:
        return self._network.encoder

    def input_spec(self) -> dict[str, Any]:
        return {"spacing_mm": None, "intensity": "0..1"}


def build(
    method: TinyMethod,
    *,
    epochs: int = 2,
    epoch_length: int = 10,
    workers: int = 0,
    batch_size: int = 4,
    **options: Any,
) -> Pretrainer:
    """A pre-trainer of `TinyMethod` on 13 images."""
    data = TinyData(13)
    sampler = StepBatchSampler(len(data), batch_size, epochs * epoch_length, seed=3)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    optimizer = torch.optim.AdamW(method.network().parameters(), lr=options.pop("lr", 1e-2))
    schedule = options.pop("schedule", warmup_cosine)(optimizer, 3, epochs * epoch_length)
    options = {"seed": 3, "held_out": TinyData(4, augment=False), "clip_norm": 1.0, **options}
    return Pretrainer(method, loader, epochs, optimizer, epoch_length=epoch_length, lr_scheduler=schedule, **options)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The network's tensors in a checkpoint."""
    return torch.load(path, weights_only=True)["state"]["network"]
