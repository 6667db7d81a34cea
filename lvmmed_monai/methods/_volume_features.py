"""Pooled features of volumes, and what tells how much they carry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lvmmed_monai.methods._volumes import VolumeBlocks
from lvmmed_monai.networks import Encoder

__all__ = [
    "MONITOR_SEED",
    "collapse_alarm",
    "effective_rank",
    "evaluating",
    "grey_histograms",
    "monitor_generators",
    "pool",
    "pooled_channels",
    "pooled_rank",
]

# Draws of the monitors lie apart from those of training, whose seeds have three parts.
MONITOR_SEED = (20, 24, 4, 16)
_CROPS_A_BLOCK = 4
_BATCH = 32
_EPS = 1e-5
# Crops whose features vary along fewer directions than this look all alike to whatever is built on them.
_LEAST_RANK = 1.2


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode comes back afterwards."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)


def _pooled_maps(encoder: Encoder) -> tuple[int, ...]:
    return getattr(encoder, "pooled_maps", tuple(range(len(encoder.channels))))


def pooled_channels(encoder: Encoder) -> int:
    """How many features `pool` gives."""
    return sum(encoder.channels[index] for index in _pooled_maps(encoder))


def pool(encoder: Encoder, crops: Tensor) -> Tensor:
    """Feature maps of (N, C, X, Y, Z), averaged over space, side by side: (N, F), float32."""
    maps = encoder(crops)
    return torch.cat([maps[index].float().flatten(2).mean(-1) for index in _pooled_maps(encoder)], 1)


def monitor_generators(dataset: VolumeBlocks, blocks: int) -> Iterator[tuple[np.random.Generator, int]]:
    """Generator and volume of each of ``blocks`` places, always the same."""
    for block in range(blocks):
        yield np.random.default_rng([*MONITOR_SEED, block]), block % len(dataset)


def effective_rank(features: Tensor) -> float:
    """Along how many directions (N, F) vary: exp of the entropy of the shares of variance (Roy and Vetterli 2007).

    Of standardised features: else the loudest few, which follow the brightness, hide all others. Features that hardly
    vary at all do not count.
    """
    centred = (features - features.mean(0)).double()
    variances = torch.linalg.svdvals(centred * torch.rsqrt(centred.square().mean(0) + _EPS)).square()
    share = variances / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.exp(torch.special.entr(share).sum()))


def pooled_rank(encoder: Encoder, dataset: VolumeBlocks, edge: int, blocks: int) -> float:
    """`effective_rank` of pooled features of crops without augmentation, the same for every method."""
    crops = [
        dataset.block(random, index, (edge,) * 3, augment=False)[0]
        for random, index in monitor_generators(dataset, blocks)
        for _ in range(_CROPS_A_BLOCK)
    ]
    device = next(encoder.parameters()).device
    with evaluating(encoder):
        parts = [pool(encoder, batch.to(device)).cpu() for batch in torch.stack(crops).split(_BATCH)]
    return effective_rank(torch.cat(parts))


def collapse_alarm(rank: float) -> list[str]:
    """A sentence when features have collapsed."""
    if rank >= _LEAST_RANK:
        return []
    return [
        f"the features of held-out crops vary along {rank:.2f} directions: the network gives nearly the same answer "
        "everywhere; use a lower learning rate or a longer warm-up"
    ]


def grey_histograms(crops: Tensor, bins: int = 32) -> Tensor:
    """Square roots of the shares of grey values of (N, C, X, Y, Z): (N, C * bins), of length 1.

    Their inner product is the Bhattacharyya affinity: what can be told without learning.
    """
    levels = (crops.clamp(0, 1) * bins).long().clamp_max(bins - 1).flatten(2)
    counts = torch.zeros(*levels.shape[:-1], bins).scatter_add_(-1, levels, torch.ones(levels.shape))
    return (counts / counts.sum(-1, keepdim=True) / levels.shape[1]).sqrt().flatten(1)
