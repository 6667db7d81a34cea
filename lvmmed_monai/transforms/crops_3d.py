"""Crops for volume contrast: a grid of base crops in the axial plane, random crops, and their overlap.

A block of shape (grid_x * edge, grid_y * edge, edge) is cut into a grid of base crops of (edge, edge, edge); random
crops lie anywhere inside. A grid of three numbers has several layers along z, too. Positions are voxel indices: the
centre (x, y) of a crop of size s means voxels x - s/2 to x + s/2 - 1. Base crop (i, j) has index i * grid_y + j, and
(i, j, k) has index (i * grid_y + j) * grid_z + k.

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
    "draw_sizes",
    "orient_block",
    "overlap_along",
    "overlap_labels",
    "render_block",
    "source_size",
]

Random = np.random.Generator | np.random.RandomState
# Axis orders that are rotations; the other three mirror.
_ROTATIONS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
_ALL_ORDERS = tuple(permutations(range(3)))


def _grid_cells(grid: int | Sequence[int]) -> tuple[int, ...]:
    cells = (grid, grid) if isinstance(grid, int) else tuple(int(cell) for cell in grid)
    if len(cells) not in (2, 3) or min(cells) < 1:
        raise UserError(
            f"the grid must be a number, or two or three numbers, from 1 up, got {grid!r}; crops; correct it"
        )
    return cells


def _check_edge(edge: int) -> None:
    if edge < 2 or edge % 2:
        raise UserError(f"the edge of a crop must be even and at least 2 voxels, got {edge}; crops; round it")


def base_centers(grid: int | Sequence[int] = 3, edge: int = 64) -> Tensor:
    """Centres of the base crops, (n, 2), or (n, 3) for a grid of three numbers; int64, the first axis slowest."""
    _check_edge(edge)
    places = torch.meshgrid(*(torch.arange(cells) for cells in _grid_cells(grid)), indexing="ij")
    return torch.stack([place.flatten() for place in places], -1) * edge + edge // 2


def _overlap_along(centers: Tensor, cells: int, edge: int, sizes: Tensor | None) -> Tensor:
    size = torch.as_tensor(edge if sizes is None else sizes, dtype=torch.float64, device=centers.device).unsqueeze(-1)
    left = torch.arange(cells, dtype=torch.float64, device=centers.device) * edge
    start = centers.to(torch.float64).unsqueeze(-1) - size / 2
    return (torch.minimum(left + edge, start + size) - torch.maximum(left, start)).clamp_min(0) / size


def overlap_along(centers: Tensor, cells: int, edge: int = 64, *, sizes: Tensor | None = None) -> Tensor:
    """Share of each crop in each cell along one axis: the one-dimensional factor of `overlap_labels`.

    Args:
        centers: (...), in voxels.
        cells: along the axis.
        edge: of a cell, in voxels.
        sizes: (...), of the crops, in voxels; ``edge`` unless given.

    Returns:
        (..., cells), float32 (float64 for float64 centres); rows sum to 1 where the crop lies within the cells.
    """
    shares = _overlap_along(centers, cells, edge, sizes)
    return shares if centers.dtype == torch.float64 else shares.float()


def overlap_labels(
    centers: Tensor, grid: int | Sequence[int] = 3, edge: int = 64, *, sizes: Tensor | None = None
) -> Tensor:
    """Share of each crop in each base crop: the product of the overlaps along the axes (VoCo, equation 2).

    Args:
        centers: (..., 2), or (..., 3) for a grid of three numbers, in voxels, from size/2 to cells * edge - size/2.
        grid: base crops along x and y, and z.
        edge: of a base crop, in voxels.
        sizes: (...), of the crops, in voxels; ``edge`` unless given. The share is of the crop, not of the base.

    Returns:
        (..., n), float32 (float64 for float64 centres); rows sum to 1.

    Raises:
        UserError: grid and centres have different numbers of axes.
    """
    cells = _grid_cells(grid)
    if centers.shape[-1] != len(cells):
        raise UserError(
            f"a centre has {centers.shape[-1]} numbers, the grid {len(cells)}; crops; give as many of either"
        )
    labels = torch.ones(*centers.shape[:-1], 1, dtype=torch.float64, device=centers.device)
    for axis, count in enumerate(cells):
        along = _overlap_along(centers[..., axis], count, edge, sizes)
        labels = (labels.unsqueeze(-1) * along.unsqueeze(-2)).flatten(-2)
    return labels if centers.dtype == torch.float64 else labels.float()


def draw_sizes(random: np.random.Generator, count: int, edge: int, scale: Sequence[float]) -> Tensor:
    """Sizes of ``count`` random crops, (count,), int64, even: ``edge`` times a factor, log-uniform within ``scale``."""
    low, high = scale
    if low == high == 1:
        return torch.full((count,), edge)
    factors = np.exp(random.uniform(np.log(low), np.log(high), count))
    return torch.from_numpy(2 * np.rint(edge * factors / 2).clip(1, round(edge * high / 2)).astype(np.int64))


def draw_centers(
    random: Random, count: int, grid: int | Sequence[int] = 3, edge: int = 64, *, sizes: Tensor | None = None
) -> Tensor:
    """Centres of ``count`` random crops inside the grid; x is drawn before y, as published, and y before z.

    Args:
        random: the generator.
        count: how many.
        grid: base crops along x and y, and z.
        edge: of a base crop, in voxels.
        sizes: (count,), even, of the crops; ``edge`` unless given.

    Returns:
        (count, 2), or (count, 3) for a grid of three numbers; int64.

    Raises:
        UserError: a crop is larger than the grid.
    """
    _check_edge(edge)
    cells = _grid_cells(grid)
    halves = [edge // 2] * count if sizes is None else (sizes // 2).tolist()
    if max(halves, default=0) * 2 > min(cells) * edge:
        raise UserError(
            f"a crop of {2 * max(halves)} voxels does not fit a grid {cells} of {edge}; crops; draw smaller sizes"
        )
    draw = random.integers if isinstance(random, np.random.Generator) else random.randint
    # The highest place is never drawn, as published; where there is one place only, it is.
    centers = [[int(draw(half, max(cell * edge - half, half + 1))) for cell in cells] for half in halves]
    return torch.tensor(centers, dtype=torch.int64).reshape(count, len(cells))


def cut_crops(block: Tensor, centers: Tensor, edge: int, *, sizes: Tensor | None = None) -> Tensor:
    """Cut crops out of a block; those of another size than ``edge`` are resampled to it.

    Args:
        block: (C, X, Y, Z).
        centers: (N, 3), int64; or (N, 2) for crops that take the whole block along z.
        edge: of a crop that is given back.
        sizes: (N,), even, of the pieces that are cut out; ``edge`` unless given.

    Returns:
        (N, C, edge, edge, edge), or (N, C, edge, edge, Z) for (N, 2) centres.

    Raises:
        UserError: a crop reaches out of the block.
    """
    _check_edge(edge)
    lengths = [edge] * len(centers) if sizes is None else sizes.tolist()
    target = (edge, edge, edge if centers.shape[1] == 3 else block.shape[3])
    crops = []
    for center, length in zip(centers.tolist(), lengths, strict=True):
        starts = [place - length // 2 for place in center]
        room = [extent - length for extent in block.shape[1 : 1 + len(starts)]]
        if any(not 0 <= start <= most for start, most in zip(starts, room, strict=True)):
            size = tuple(block.shape[1:])
            raise UserError(f"a crop reaches out of the block {size}; crops; draw centres for this grid and edge")
        crop = block[(slice(None), *(slice(start, start + length) for start in starts))]
        if tuple(crop.shape[1:]) != target:
            crop = F.interpolate(crop.unsqueeze(0), target, mode="trilinear", align_corners=False)[0]
        crops.append(crop)
    return torch.stack(crops)


def body_shares(block: Tensor, grid: int | Sequence[int] = 3, *, threshold: float = 0.02) -> Tensor:
    """Share of each base crop's voxels that are brighter than ``threshold``, (n,).

    Air, padding and whatever the intensity window cuts off at its dark end do not count.
    """
    columns, rows, layers = (*_grid_cells(grid), 1)[:3]
    body = (block > threshold).any(0, keepdim=True).float()
    return F.adaptive_avg_pool3d(body, (columns, rows, layers)).flatten()


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
