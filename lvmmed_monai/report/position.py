"""The picture of a VoCo pre-training: where crops lie, and where the network thinks they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.report.figures import INK, PALETTE, STYLE, as_address

__all__ = ["position_figure"]

_TITLES = ("crop in its volume", "true share of each base", "predicted")


def _axial_map(values: Sequence[float], grid: Sequence[int]) -> NDArray[np.float64]:
    """Shares (n,) of the bases, summed over the layers, as a picture: right on the left, anterior at the top."""
    shares = np.asarray(values, dtype=float).reshape(grid[0], grid[1], -1).sum(-1)
    return shares[::-1].T[::-1]


def _draw_crop(axes: Any, background: NDArray[Any], grid: Sequence[int], center: Sequence[float]) -> None:
    from matplotlib.patches import Rectangle

    columns, rows = grid[:2]
    axes.imshow(background, cmap="gray", vmin=0, vmax=255, extent=(0, columns, 0, rows))
    for column in range(1, columns):
        axes.axvline(column, color="white", alpha=0.5, linewidth=0.8)
    for row in range(1, rows):
        axes.axhline(row, color="white", alpha=0.5, linewidth=0.8)
    corner = (columns - center[0] - 0.5, center[1] - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=PALETTE[4], linewidth=2.2))


def _draw_map(axes: Any, shares: NDArray[np.float64]) -> None:
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(shares):
        colour = "white" if value > 0.55 else INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)


def position_figure(picture: Path, grid: Sequence[int], crops: Sequence[Mapping[str, Any]]) -> str:
    """A row for each crop: the block's middle slice with the crop, its true shares of the bases, the predicted ones.

    Args:
        picture: PNG of the slice, upright; left out where it is missing.
        grid: base crops along x and y, and layers along z.
        crops: {``center`` [x, y] in base crops, ``true``, ``predicted``} each.

    Returns:
        The figure as a ``data:`` address.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    background = np.asarray(Image.open(picture)) if picture.is_file() else np.zeros((1, 1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 0.35 + 1.75 * len(crops)), layout="constrained")
        panels = figure.subplots(len(crops), 3, squeeze=False)
        for row, crop in zip(panels, crops, strict=True):
            _draw_crop(row[0], background, grid, crop["center"])
            _draw_map(row[1], _axial_map(crop["true"], grid))
            _draw_map(row[2], _axial_map(crop["predicted"], grid))
        for axes in panels.flat:
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
        for axes, title in zip(panels[0], _TITLES, strict=True):
            axes.set_title(title, fontsize=9)
        return as_address(figure)
