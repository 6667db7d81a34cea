"""What VoCo sees: blocks of prepared volumes, cut into base crops and random crops with their overlap labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.methods._volumes import VolumeBlocks
from lvmmed_monai.transforms.crops_3d import (
    augment_crop,
    base_centers,
    cut_crops,
    draw_centers,
    draw_crop_augmentation,
    overlap_labels,
)

__all__ = ["VolumeCropDataset"]


class VolumeCropDataset(VolumeBlocks):
    """Crops of volumes.

    A sample holds ``crops`` (n + S, C, edge, edge, edge), the base crops first; ``overlap`` (S, n), each random crop's
    share in each base; ``base_mask`` (n,), False for bases of air.

    Args:
        items: datalist items with ``modality`` and ``flip_safe``.
        cache: their volumes. Volumes of air are left out.
        grid: base crops along x and y.
        edge: of a crop, in voxels.
        crops_per_volume: random crops of a sample, S.
        seed: of all draws.

    Raises:
        DataError: no volume is left.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        cache: VolumeCache,
        *,
        grid: tuple[int, int],
        edge: int,
        crops_per_volume: int,
        seed: int,
    ) -> None:
        super().__init__(items, cache, seed=seed)
        self.grid = grid
        self.edge = edge
        self.crops_per_volume = crops_per_volume
        self.block_size = (grid[0] * edge, grid[1] * edge, edge)

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
        block, mask = self.block(random, index, self.block_size, cells=self.grid, augment=augment_block)
        centers = draw_centers(random, crops or self.crops_per_volume, self.grid, self.edge)
        cut = cut_crops(block, torch.cat((base_centers(self.grid, self.edge), centers)), self.edge)
        if augment_crops:
            mirror = self.may_mirror(index)
            cut = torch.stack([augment_crop(crop, draw_crop_augmentation(random, mirror=mirror)) for crop in cut])
        return {"crops": cut, "overlap": overlap_labels(centers, self.grid, self.edge), "base_mask": mask}
