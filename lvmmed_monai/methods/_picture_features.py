"""Features of pictures as an encoder gives them, to be measured and shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lvmmed_monai.methods._pictures import ViewPairs
from lvmmed_monai.transforms.views_2d import ViewParameters, apply_view

__all__ = ["batch_features", "batch_statistics", "embedding_spread", "pooled_features", "whole_view"]

_ORDER_SEED = 5
_BATCH = 64


def pooled_features(encoder: nn.Module, images: Tensor) -> Tensor:
    """(M, C) float32 averages of the coarsest feature map of (M, in_channels, H, W)."""
    return encoder(images)[-1].float().mean(dim=(2, 3))


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Training mode for the forward passes within; modes and buffers come back afterwards."""
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])


@torch.no_grad()
def batch_features(encoder: nn.Module, images: Tensor) -> Tensor:
    """(M, C) pooled features on the CPU of (M, C, H, W) uint8 pictures, in their order.

    Batch normalisation uses the statistics of batches of about 64 that are drawn from all of the pictures.
    """
    device = next(encoder.parameters()).device
    order = torch.from_numpy(np.random.default_rng(_ORDER_SEED).permutation(len(images)))
    parts = []
    with batch_statistics(encoder):
        # Parts of equal size: the statistics of a small rest would say little.
        for chunk in order.tensor_split(max(1, round(len(images) / _BATCH))):
            parts.append(pooled_features(encoder, images[chunk].to(device).float() / 255).cpu())
    return torch.cat(parts)[order.argsort()]


def whole_view(pairs: ViewPairs, index: int) -> Tensor:
    """A whole picture of the dataset as a view without changes, (in_channels, size, size) uint8."""
    picture = pairs.picture(index)
    whole = ViewParameters((0, 0, *picture.shape[1:]), False, 1.0, 1.0, 1.0, 0.0, False, 0.0)
    view = apply_view(picture, whole, pairs.views.size)
    return (255 * view.expand(pairs.in_channels, -1, -1)).round().to(torch.uint8)


def embedding_spread(features: Tensor) -> Tensor:
    """How far (M, C) features of length 1 differ between images: 0 when all are alike, 1 when evenly spread.

    Standard deviation of each channel times the root of C, mean over channels, as in SimSiam (Chen and He 2021,
    section 4.1). Features that are never negative stay below 1.
    """
    unit = nn.functional.normalize(features.float(), dim=1)
    return unit.std(dim=0).mean() * unit.shape[1] ** 0.5
