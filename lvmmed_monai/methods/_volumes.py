"""Blocks drawn from prepared volumes: what every 3D method here begins with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.errors import DataError
from lvmmed_monai.transforms.crops_3d import (
    BlockAugmentation,
    body_shares,
    draw_block_augmentation,
    orient_block,
    render_block,
    source_size,
)

__all__ = ["MIN_BODY_SHARE", "VolumeBlocks"]

_LOG = logging.getLogger(__name__)

# A cell of a block with less body than this shows air: it looks like its neighbours.
MIN_BODY_SHARE = 0.25
# Blocks are drawn again this often in search of one without such cells.
_ATTEMPTS = 12


class VolumeBlocks(Dataset):
    """Blocks of prepared volumes. All randomness of a sample comes from the seed and the key, none from elsewhere.

    A key is ``(draw, index)`` or an index (draw 0). A subclass defines `sample`.

    Args:
        items: datalist items with ``modality`` and ``flip_safe``.
        cache: their volumes. Volumes of air, and those that the cache could not use, are left out.
        seed: of all draws.

    Attributes:
        data: the items that are used.
        skipped: how many volumes were left out because they show only air.

    Raises:
        DataError: no volume is left.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], cache: VolumeCache, *, seed: int) -> None:
        self.cache = cache
        self.seed = seed
        empty = set(cache.empty)
        self._indices = [index for index in range(len(items)) if index not in empty | cache.rejected.keys()]
        self.data = [items[index] for index in self._indices]
        self.skipped = len(empty)
        if self.skipped:
            _LOG.warning("%d of %d volumes show only air and are skipped", self.skipped, len(items))
        if not self.data:
            raise DataError(
                "no volume shows anything but air; 3D pre-training; check the intensity window and the images"
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        draw, index = key if isinstance(key, tuple) else (0, key)
        return self.sample(np.random.default_rng([self.seed, draw, index]), index)

    def sample(self, random: np.random.Generator, index: int) -> dict[str, Tensor]:
        """One sample of volume ``index`` with everything random drawn from ``random``."""
        raise NotImplementedError(f"{type(self).__name__} must define sample(random, index)")

    def may_mirror(self, index: int) -> bool:
        """Whether left and right of volume ``index`` may be exchanged."""
        return bool(self.data[index].get("flip_safe", False))

    def block(
        self,
        random: np.random.Generator,
        index: int,
        size: Sequence[int],
        *,
        cells: Sequence[int] = (1, 1),
        cells_depth: int | None = None,
        augment: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """A block of volume ``index``: of some draws the one whose emptiest cell shows most body.

        Args:
            random: the generator.
            index: of the volume.
            size: (X, Y, Z) of the block.
            cells: into how many along x and y, and z, the block is divided.
            cells_depth: voxels along z, in the block's middle, that the cells fill; all unless given.
            augment: axis order, flips, zoom and grey values of the whole block.

        Returns:
            (C, X, Y, Z), 0 to 1, padded with 0 where the volume is smaller; which cells show body, (cells,), bool.
        """
        best: tuple[float, Tensor, Tensor, BlockAugmentation] | None = None
        for _ in range(_ATTEMPTS):
            augmentation = self._augmentation(random, index) if augment else BlockAugmentation()
            piece = orient_block(self._piece(random, index, size, augmentation), augmentation)
            shares = body_shares(_middle(piece, cells_depth / size[2]) if cells_depth else piece, cells)
            least = float(shares.min())
            if best is None or least > best[0]:
                best = (least, piece, shares >= MIN_BODY_SHARE, augmentation)
            if least >= MIN_BODY_SHARE:
                break
        if best is None:
            raise RuntimeError("no block was drawn")
        _, piece, mask, augmentation = best
        return render_block(piece, size, augmentation), mask

    def _augmentation(self, random: np.random.Generator, index: int) -> BlockAugmentation:
        modality = self.data[index].get("modality", "OTHER")
        return draw_block_augmentation(random, modality=modality, mirror=self.may_mirror(index))

    def _piece(
        self, random: np.random.Generator, index: int, block_size: Sequence[int], augmentation: BlockAugmentation
    ) -> Tensor:
        size = source_size(block_size, augmentation)
        volume = self._indices[index]
        start = []
        for length, extent in zip(size, self.cache.shape(volume), strict=True):
            # A volume smaller than the block lies anywhere in it; the rest is padding.
            low, high = min(0, extent - length), max(0, extent - length)
            start.append(int(random.integers(low, high + 1)))
        return torch.from_numpy(self.cache.read_window(volume, start, size))


def _middle(piece: Tensor, share: float) -> Tensor:
    """The middle of a piece (C, X, Y, Z) along z; ``share`` of its depth, at least one voxel."""
    depth = max(1, round(share * piece.shape[3]))
    start = (piece.shape[3] - depth) // 2
    return piece[..., start : start + depth]
