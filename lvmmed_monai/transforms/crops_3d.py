"""Crops for volume contrast: a grid of base crops in the axial plane, random crops, and their overlap.

A block of shape (grid_x * edge, grid_y * edge, depth) is cut into a grid of base crops of (edge, edge, depth);
random crops of the same size lie anywhere inside. Positions are voxel indices: a crop's centre (x, y) means
voxels x - edge/2 to x + edge/2 - 1. Base crop (i, j) has index i * grid_y + j.

Each random step is two functions: one draws its parameters, one applies them, so that a step can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lvmmed_monai.errors import UserError

__all__ = [
    "BlockAugmentation",
    "CropAugmentation",
    "augment_crop",
    "base_centers",
    "body_shares",
    "cut_crops",
    "draw_block_augmentation",
    "draw_centers",
    "draw_crop_augmentation",
    "orient_block",
    "overlap_labels",
    "render_block",
    "source_size",
]

Random = np.random.Generator | np.random.RandomState
# Axis orders that are rotations; the other three mirror.
_ROTATIONS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
_ALL_ORDERS = tuple(permutations(range(3)))


def _grid_pair(grid: int | Sequence[int]) -> tuple[int, int]:
    pair = (grid, grid) if isinstance(grid, int) else tuple(grid)
    if len(pair) != 2 or min(pair) < 1:
        raise UserError(f"the grid must be a number or a pair of numbers from 1 up, got {grid!r}; crops; correct it")
    return int(pair[0]), int(pair[1])


def _check_edge(edge: int) -> None:
    if edge < 2 or edge % 2:
        raise UserError(f"the edge of a crop must be even and at least 2 voxels, got {edge}; crops; round it")


def base_centers(grid: int | Sequence[int] = 3, edge: int = 64) -> Tensor:
    """Centres of the base crops, (grid_x * grid_y, 2), int64, the first axis slow."""
    _check_edge(edge)
    columns, rows = _grid_pair(grid)
    i, j = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="ij")
    return torch.stack((i, j), -1).reshape(-1, 2) * edge + edge // 2


def overlap_labels(centers: Tensor, grid: int | Sequence[int] = 3, edge: int = 64) -> Tensor:
    """Share of each crop's area in each base crop: the product of the overlaps along both axes (VoCo, equation 2).

    Args:
        centers: (..., 2), in voxels, from edge/2 to grid * edge - edge/2.
        grid: base crops along x and y.
        edge: of a crop, in voxels.

    Returns:
        (..., grid_x * grid_y), float32 (float64 for float64 centres); rows sum to 1.
    """
    columns, rows = _grid_pair(grid)
    exact = centers.to(torch.float64)
    along = []
    for axis, cells in enumerate((columns, rows)):
        left = torch.arange(cells, dtype=torch.float64, device=centers.device) * edge
        start = exact[..., axis, None] - edge / 2
        along.append((torch.minimum(left, start) + edge - torch.maximum(left, start)).clamp_min(0) / edge)
    labels = (along[0].unsqueeze(-1) * along[1].unsqueeze(-2)).flatten(-2)
    return labels if centers.dtype == torch.float64 else labels.float()


def draw_centers(random: Random, count: int, grid: int | Sequence[int] = 3, edge: int = 64) -> Tensor:
    """Centres of ``count`` random crops inside the block, (count, 2), int64; x is drawn before y, as published."""
    _check_edge(edge)
    cells = _grid_pair(grid)
    draw = random.integers if isinstance(random, np.random.Generator) else random.randint
    centers = []
    for _ in range(count):
        # With one cell along an axis there is one place only.
        centers.append([int(draw(edge // 2, max(cell * edge - edge // 2, edge // 2 + 1))) for cell in cells])
    return torch.tensor(centers, dtype=torch.int64).reshape(count, 2)


def cut_crops(block: Tensor, centers: Tensor, edge: int) -> Tensor:
    """Cut crops out of a block.

    Args:
        block: (C, X, Y, Z).
        centers: (N, 2), int64.
        edge: of a crop along x and y; along z a crop takes the whole block.

    Returns:
        (N, C, edge, edge, Z).

    Raises:
        UserError: a crop reaches out of the block.
    """
    _check_edge(edge)
    starts = (centers - edge // 2).tolist()
    if any(min(x, y) < 0 or x + edge > block.shape[1] or y + edge > block.shape[2] for x, y in starts):
        size = tuple(block.shape[1:])
        raise UserError(f"a crop reaches out of the block {size}; crops; draw centres for this grid and edge")
    return torch.stack([block[:, x : x + edge, y : y + edge] for x, y in starts])


def body_shares(block: Tensor, grid: int | Sequence[int] = 3, *, threshold: float = 0.02) -> Tensor:
    """Share of each base crop's voxels that are brighter than ``threshold``, (grid_x * grid_y,).

    Air, padding and whatever the intensity window cuts off at its dark end do not count.
    """
    columns, rows = _grid_pair(grid)
    body = (block > threshold).any(0, keepdim=True).float()
    return F.adaptive_avg_pool3d(body, (columns, rows, 1)).flatten()


@dataclass(frozen=True)
class CropAugmentation:
    """What is done to one crop: flips along x, y, z, then quarter turns in the axial plane, then a shift of grey."""

    flip: tuple[bool, bool, bool] = (False, False, False)
    quarter_turns: int = 0
    shift: float = 0.0


def draw_crop_augmentation(random: np.random.Generator, *, mirror: bool = True) -> CropAugmentation:
    """Draw one crop's augmentation with the published rates: flips .2 an axis, turns .2, shift of up to .1 at .5.

    Args:
        random: the generator; the number of values taken from it is always the same.
        mirror: False where left and right must not be exchanged; then there are no flips.
    """
    flips = random.random(3) < 0.2
    turns = int(random.integers(1, 4)) * int(random.random() < 0.2)
    shift = float(random.uniform(-0.1, 0.1)) * float(random.random() < 0.5)
    flip = (bool(flips[0]), bool(flips[1]), bool(flips[2])) if mirror else (False, False, False)
    return CropAugmentation(flip, turns, shift)


def augment_crop(crop: Tensor, augmentation: CropAugmentation) -> Tensor:
    """Apply an augmentation to a crop (C, edge, edge, Z); the shape is kept."""
    axes = [axis + 1 for axis, flip in enumerate(augmentation.flip) if flip]
    if axes:
        crop = crop.flip(axes)
    if augmentation.quarter_turns:
        crop = torch.rot90(crop, augmentation.quarter_turns, (1, 2))
    return crop + augmentation.shift if augmentation.shift else crop


@dataclass(frozen=True)
class BlockAugmentation:
    """What is done to a whole block before it is cut, common to all its crops.

    Attributes:
        order: the volume's axis that becomes the block's x, y and z.
        flip: flips of the block's x, y and z.
        zoom: magnification; above 1 a smaller piece of the volume fills the block.
        window: (low, high), grey values that become 0 and 1.
        gamma: exponent of the grey values after that.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flip: tuple[bool, bool, bool] = (False, False, False)
    zoom: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)
    gamma: float = 1.0


def draw_block_augmentation(random: np.random.Generator, *, modality: str, mirror: bool = True) -> BlockAugmentation:
    """Draw a block's augmentation: axis order, flips, zoom .8 to 1.25, and grey values.

    Grey values of CT are calibrated, so only the window moves (by up to a tenth of its width at either end);
    those of other modalities also get a gamma of .7 to 1.4.

    Args:
        random: the generator; the number of values taken from it is always the same.
        modality: of the volume, "CT" or another.
        mirror: False where left and right must not be exchanged; then axis orders and flips make rotations only.
    """
    orders = _ALL_ORDERS if mirror else _ROTATIONS
    order = orders[int(random.random() * len(orders))]
    flips = random.random(3) < 0.5
    zoom = float(np.exp(random.uniform(np.log(0.8), np.log(1.25))))
    low, high = random.uniform(-0.1, 0.1, size=2)
    gamma = float(np.exp(random.uniform(np.log(0.7), np.log(1.4))))
    flip = (bool(flips[0]), bool(flips[1]), bool(flips[2])) if mirror else (False, False, False)
    x, y, z = order
    return BlockAugmentation((x, y, z), flip, zoom, (float(low), 1 + float(high)), 1.0 if modality == "CT" else gamma)


def source_size(block_size: Sequence[int], augmentation: BlockAugmentation) -> tuple[int, int, int]:
    """Size of the piece of the volume, in its own axes, that becomes a block of ``block_size``."""
    size = [0, 0, 0]
    for axis, source in enumerate(augmentation.order):
        size[source] = max(1, round(block_size[axis] / augmentation.zoom))
    return size[0], size[1], size[2]


def orient_block(source: Tensor, augmentation: BlockAugmentation) -> Tensor:
    """Put a piece (C, *source_size(...)) of the volume into the block's axes; its voxels stay as they are."""
    block = source.permute(0, *(axis + 1 for axis in augmentation.order))
    axes = [axis + 1 for axis, flip in enumerate(augmentation.flip) if flip]
    return block.flip(axes) if axes else block


def render_block(block: Tensor, block_size: Sequence[int], augmentation: BlockAugmentation) -> Tensor:
    """Resample an oriented piece to the block's size and change its grey values.

    Args:
        block: (C, *any size), grey values 0 to 1, from `orient_block`.
        block_size: (X, Y, Z).
        augmentation: what to do.

    Returns:
        (C, X, Y, Z), 0 to 1.
    """
    if tuple(block.shape[1:]) != tuple(block_size):
        block = F.interpolate(block.unsqueeze(0), tuple(block_size), mode="trilinear", align_corners=False)[0]
    low, high = augmentation.window
    if (low, high) != (0.0, 1.0):
        block = ((block - low) / (high - low)).clamp(0, 1)
    return block**augmentation.gamma if augmentation.gamma != 1.0 else block
