"""Previews: three planes of a volume side by side, with the outlines of its labels; a picture; frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["CT_WINDOW_HU", "PREVIEW_HEIGHT", "label_colours", "planar_preview", "preview_image"]

PREVIEW_HEIGHT = 256
"""Height of each plane in pixels."""
CT_WINDOW_HU = (-160.0, 240.0)
_PERCENTILES = (0.5, 99.5)
_LARGEST_WIDTH = 512
_SAMPLED_VOXELS = 500_000
_LARGEST_STRIP = 4
_GOLDEN_ANGLE = 0.618033988749895


def label_colours(count: int) -> NDArray[np.uint8]:
    """Colours (count + 1, 3) of labels 0 to ``count``: neighbouring numbers get far hues; 0 is black."""
    import colorsys

    hues = (np.arange(count) * _GOLDEN_ANGLE) % 1.0
    colours = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(hue, 0.85, 1.0) for hue in hues)]
    return np.round(np.array(colours) * 255).astype(np.uint8)


def _window(values: NDArray[Any], modality: str) -> tuple[float, float]:
    flat = values.ravel(order="K")
    low, high = np.percentile(flat[:: max(1, flat.size // _SAMPLED_VOXELS)], _PERCENTILES)
    # Values of a damaged CT may all lie outside of the window.
    if modality == "CT" and low < CT_WINDOW_HU[1] and high > CT_WINDOW_HU[0]:
        return CT_WINDOW_HU
    return float(low), max(float(high), float(low) + 1e-6)


def _plane(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """An image (rows down, columns right): rows of the source for axis 2, else slices upwards."""
    plane = np.take(volume, index, axis=axis)
    return plane.T if axis == 2 else plane[:, ::-1].T


def _place(labels: NDArray[np.uint8] | None, shape: Sequence[int], axis: int) -> int:
    """The plane with most labelled voxels, else the middle one."""
    if labels is None or not labels.any():
        return shape[axis] // 2
    others = tuple(other for other in range(3) if other != axis)
    return int(np.count_nonzero(labels, axis=others).argmax())


def _outline(plane: NDArray[np.uint8]) -> NDArray[np.bool_]:
    edge = np.zeros(plane.shape, dtype=bool)
    edge[:-1] |= plane[:-1] != plane[1:]
    edge[1:] |= plane[1:] != plane[:-1]
    edge[:, :-1] |= plane[:, :-1] != plane[:, 1:]
    edge[:, 1:] |= plane[:, 1:] != plane[:, :-1]
    return edge & (plane > 0)


def _size(plane: NDArray[Any], height_mm: float, width_mm: float) -> tuple[int, int]:
    """Pixels (width, height) of a plane with true proportions."""
    width = round(PREVIEW_HEIGHT * (plane.shape[1] * width_mm) / (plane.shape[0] * height_mm))
    return min(max(width, 16), _LARGEST_WIDTH), PREVIEW_HEIGHT


def preview_image(
    values: NDArray[Any], spacing_mm: Sequence[float], modality: str, labels: NDArray[np.uint8] | None = None
) -> Image.Image:
    """Draw the montage.

    Args:
        values: (columns, rows, slices).
        spacing_mm: of the three axes.
        modality: "CT" is shown in a soft tissue window, others between their percentiles.
        labels: (columns, rows, slices), outlined, or None.
    """
    low, high = _window(values, modality)
    colours = label_colours(int(labels.max(initial=0))) if labels is not None else None
    tiles = []
    for axis in (2, 1, 0):
        index = _place(labels, values.shape, axis)
        plane = _plane(values, axis, index).astype(np.float32)
        across, down = [spacing_mm[other] for other in range(3) if other != axis]
        size = _size(plane, down, across)
        grey = np.clip((plane - low) / (high - low), 0, 1) * 255
        tile = np.asarray(Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR))
        tile = np.repeat(tile[:, :, None], 3, axis=2)
        if labels is not None and colours is not None:
            drawn = np.asarray(Image.fromarray(_plane(labels, axis, index)).resize(size, Image.Resampling.NEAREST))
            edge = _outline(drawn)
            tile[edge] = colours[drawn[edge]]
        tiles.append(tile)
    return Image.fromarray(np.concatenate(tiles, axis=1))


def planar_preview(frames: NDArray[Any], spacing_mm: Sequence[float] | None) -> Image.Image:
    """Draw a picture, or up to four frames of a clip from first to last, side by side.

    Args:
        frames: (n, rows, columns) grey, shown between the percentiles of what is drawn; or (n, rows, columns, 3)
            uint8, shown as it is.
        spacing_mm: (between rows, between columns), or None for square pixels.
    """
    count = min(len(frames), _LARGEST_STRIP)
    shown = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    if shown.ndim == 3:
        low, high = _window(shown, "")
        shown = (np.clip((shown.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    height_mm, width_mm = np.multiply(shown.shape[1:3], spacing_mm or (1.0, 1.0))
    scale = min(PREVIEW_HEIGHT / height_mm, _LARGEST_WIDTH / width_mm)
    size = max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
    tiles = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in shown]
    return Image.fromarray(np.concatenate(tiles, axis=1))
