"""What VoCo sees: blocks of prepared volumes, cut into base crops and random crops with their overlap labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.losses.volume_contrast import joint_labels
from lvmmed_monai.methods._volumes import VolumeBlocks
from lvmmed_monai.transforms.crops_3d import (
    augment_crop,
    base_centers,
    cut_crops,
    draw_centers,
    draw_crop_augmentation,
    draw_sizes,
    overlap_along,
    overlap_labels,
)

__all__ = ["VolumeCropDataset", "block_size", "labels_of"]


def labels_of(sample: Mapping[str, Tensor]) -> Tensor:
    """(..., S, n): each random crop's share in each base, of a sample of `VolumeCropDataset` or a batch of them."""
    depth = sample.get("depth")
    return sample["overlap"] if depth is None else joint_labels(sample["overlap"], depth)


class VolumeCropDataset(VolumeBlocks):
    """Crops of volumes.

    A sample holds ``crops`` (n + S, C, edge, edge, edge), the base crops first; ``overlap`` (S, nx * ny), each random
    crop's share in each base, seen along z; ``base_mask`` (n,), False for bases of air. With a grid of three numbers
    there is ``depth`` (S, nz), each random crop's share in each layer, and its share in a base is overlap * depth.

    Args:
        items: datalist items with ``modality`` and ``flip_safe``.
        cache: their volumes. Volumes of air, and those that the cache could not use, are left out.
        grid: base crops along x and y, and z.
        edge: of a crop, in voxels.
        crops_per_volume: random crops of a sample, S.
        seed: of all draws.
        crop_scale: (low, high); a random crop covers ``edge`` times a factor within, and is resampled to ``edge``.
        z_offset: with one layer: random crops lie up to so many voxels above or below it. Labels stay axial.

    Attributes:
        block_size: (X, Y, Z) of the blocks that crops are cut from; bases fill the middle layer along z.

    Raises:
        DataError: no volume is left.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        cache: VolumeCache,
        *,
        grid: tuple[int, ...],
        edge: int,
        crops_per_volume: int,
        seed: int,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        z_offset: int = 0,
    ) -> None:
        super().__init__(items, cache, seed=seed)
        self.grid = grid
        self.edge = edge
        self.crops_per_volume = crops_per_volume
        self.crop_scale = crop_scale
        self.z_offset = z_offset
        self.block_size = block_size(grid, edge, crop_scale, z_offset)

    def sample(
        self,
        random: np.random.Generator,
        index: int,
        *,
        augment_block: bool = True,
        augment_crops: bool = True,
        crops: int | None = None,
    ) -> dict[str, Tensor]:
        """One sample of volume ``index`` with everything random drawn from ``random``.

        Args:
            random: the generator.
            index: of the volume.
            augment_block: axis order, flips, zoom and grey values of the whole block.
            augment_crops: flips, turns and shift of each crop on its own.
            crops: random crops, when not ``crops_per_volume``.
        """
        layers = (*self.grid, 1)[2]
        block, mask = self.block(
            random,
            index,
            self.block_size,
            cells=self.grid,
            cells_depth=layers * self.edge,
            augment=augment_block,
        )
        centers, sizes = self._draw_crops(random, crops or self.crops_per_volume)
        bases = base_centers((*self.grid[:2], layers), self.edge)
        # Along z positions count from the layers' lower end.
        below = torch.tensor([0, 0, (self.block_size[2] - layers * self.edge) // 2])
        every_size = torch.cat((torch.full((len(bases),), self.edge), sizes))
        cut = cut_crops(block, torch.cat((bases, centers)) + below, self.edge, sizes=every_size)
        if augment_crops:
            mirror = self.may_mirror(index)
            cut = torch.stack([augment_crop(crop, draw_crop_augmentation(random, mirror=mirror)) for crop in cut])
        overlap = overlap_labels(centers[:, :2], self.grid[:2], self.edge, sizes=sizes)
        found = {"crops": cut, "overlap": overlap, "base_mask": mask}
        if len(self.grid) == 3:
            found["depth"] = overlap_along(centers[:, 2], layers, self.edge, sizes=sizes)
        return found

    def _draw_crops(self, random: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Centres (count, 3) and sizes (count,) of random crops."""
        sizes = draw_sizes(random, count, self.edge, self.crop_scale)
        centers = draw_centers(random, count, self.grid, self.edge, sizes=sizes)
        if len(self.grid) == 3:
            return centers, sizes
        z = torch.full((count, 1), self.edge // 2)
        if self.z_offset:
            z += torch.from_numpy(random.integers(-self.z_offset, self.z_offset + 1, (count, 1)))
        return torch.cat((centers, z), 1), sizes


def block_size(
    grid: Sequence[int], edge: int, crop_scale: Sequence[float] = (1.0, 1.0), z_offset: int = 0
) -> tuple[int, int, int]:
    """(X, Y, Z) of a block that holds the grid and every random crop."""
    largest = 2 * round(edge * max(crop_scale) / 2)
    depth = grid[2] * edge if len(grid) == 3 else max(edge, largest) + 2 * z_offset
    return grid[0] * edge, grid[1] * edge, depth
