"""Where held-out crops lie and where the network thinks they do, to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvmmed_monai.losses.volume_contrast import overlap_similarity
from lvmmed_monai.methods._voco_data import VolumeCropDataset, labels_of
from lvmmed_monai.methods._voco_monitors import counted_crops
from lvmmed_monai.methods._voco_network import VoCoNetwork

__all__ = ["position_examples"]

# Draws lie apart from those of training and of the monitors.
_EXAMPLE_SEED = (5, 24, 1, 13)


def _middle_slice(bases: Tensor, grid: Sequence[int]) -> NDArray[np.uint8]:
    """The block's axial slice through the middle of its bases, (X, Y), out of the base crops (n, C, e, e, e)."""
    layers = grid[2] if len(grid) == 3 else 1
    slices = bases[layers // 2 :: layers, 0, :, :, bases.shape[-1] // 2]
    rows = slices.unflatten(0, (grid[0], grid[1])).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return (rows.clamp(0, 1) * 255).byte().numpy()


def _center(label: Tensor, grid: Sequence[int]) -> list[float]:
    """Centre of a crop along x and y in base crops, from its label: between two bases the shares tell the place."""
    shares = label.double().reshape(*grid)
    spots = []
    for axis in (0, 1):
        along = shares.sum(dim=tuple(other for other in range(len(grid)) if other != axis))
        spots.append(float((along * (torch.arange(grid[axis]) + 0.5)).sum() / along.sum()))
    return spots


@torch.no_grad()
def position_examples(
    network: VoCoNetwork, dataset: VolumeCropDataset, *, volumes: int, crops: int
) -> list[dict[str, Any]]:
    """A block of each of the first ``volumes`` volumes with ``crops`` random crops, always the same.

    The network sees crops that are augmented each on its own; the picture shows them as they are.

    Returns:
        {``grid``, ``slice`` (X, Y) uint8, ``crops``: [{``center`` [x, y] in base crops, ``true`` (n,), ``predicted``
        (n,)}]}; bases of air are predicted as 0.
    """
    device, training = next(network.parameters()).device, network.training
    network.eval()
    examples = []
    for index in range(min(volumes, len(dataset))):
        plain, seen = (
            dataset.sample(
                np.random.default_rng([*_EXAMPLE_SEED, index]),
                index,
                augment_block=False,
                augment_crops=augmented,
                crops=crops,
            )
            for augmented in (False, True)
        )
        mask, labels = seen["base_mask"], labels_of(seen)
        counted = counted_crops(labels[None], mask[None]).to(device)
        student, teacher = network(seen["crops"][None].to(device), counted)
        similarity = (overlap_similarity(student[:, len(mask) :], teacher[:, : len(mask)])[0].cpu() * mask).tolist()
        examples.append(
            {
                "grid": list(dataset.grid),
                "slice": _middle_slice(plain["crops"][: len(mask)], dataset.grid),
                "crops": [
                    {"center": _center(label, dataset.grid), "true": label.tolist(), "predicted": predicted}
                    for label, predicted in zip(labels, similarity, strict=True)
                ],
            }
        )
    network.train(training)
    return examples
