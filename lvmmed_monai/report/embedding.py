"""The pictures of a 2D pre-training: nearest neighbours of held-out pictures, and a map of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.report.figures import PALETTE, STYLE, as_address
from lvmmed_monai.report.words import readable

__all__ = ["map_figure", "neighbours_figure"]

_TITLES = {"trained": "as trained", "untrained": "random weights"}
# Between a query and its neighbours, and between encoders, in tiles.
_GAP = 0.25
_MARKERS = "os^Dv"


def neighbours_figure(picture: Path, example: Mapping[str, Any]) -> str:
    """A row for each query: the query, then its neighbours by each encoder, framed in the colour of their source.

    Args:
        picture: PNG of the tiles; left white where it is missing.
        example: ``encoders``, ``sources``, ``source_of`` of a results file's example of kind "neighbours".

    Returns:
        The figure as a ``data:`` address.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    rows, encoders = example["source_of"], example["encoders"]
    columns = len(rows[0])
    tiles = _tiles(np.asarray(Image.open(picture)) if picture.is_file() else None, len(rows), columns)
    places = _places(columns, len(encoders))
    with matplotlib.rc_context(STYLE):
        size = 0.72
        figure = Figure(figsize=(size * (places[-1] + 1.1), size * (len(rows) + 1)), layout="constrained")
        axes = figure.subplots()
        for (row, column), source in np.ndenumerate(np.asarray(rows)):
            if source >= 0:
                _draw_tile(axes, tiles[row, column], places[column], row, PALETTE[source % len(PALETTE)])
        group = (columns - 1) // len(encoders)
        axes.text(places[0], -0.62, "picture", ha="center", va="bottom")
        for number, name in enumerate(encoders):
            middle = float(np.mean(places[1 + number * group : 1 + (number + 1) * group]))
            axes.text(middle, -0.62, f"nearest, {_TITLES.get(name, readable(name))}", ha="center", va="bottom")
        axes.set(xlim=(-0.55, places[-1] + 0.55), ylim=(len(rows) - 0.45, -0.6), aspect="equal")
        axes.axis("off")
        _legend(figure, example["sources"])
        return as_address(figure)


def map_figure(example: Mapping[str, Any]) -> str:
    """Held-out pictures as dots: a column for each encoder, coloured by source, and below by modality if they differ.

    Args:
        example: of a results file, of kind "map".

    Returns:
        The figure as a ``data:`` address.
    """
    import matplotlib
    from matplotlib.figure import Figure

    encoders = example["encoders"]
    colourings = [(example["sources"], example["source_of"])]
    if len(example["modalities"]) > 1:
        colourings.append((example["modalities"], example["modality_of"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9 * len(encoders), 3.3 * len(colourings)), layout="constrained")
        bands: Any = figure.subfigures(len(colourings), 1, squeeze=False)[:, 0]
        for band, (names, numbers) in zip(bands, colourings, strict=True):
            panels = band.subplots(1, len(encoders), squeeze=False)[0]
            for axes, name in zip(panels, encoders, strict=True):
                _draw_points(axes, np.asarray(example["points"][name], dtype=float), np.asarray(numbers))
                axes.set_title(_TITLES.get(name, readable(name)), fontsize=9)
            _legend(band, names, dots=True)
        return as_address(figure)


def _tiles(mosaic: NDArray[Any] | None, rows: int, columns: int) -> NDArray[Any]:
    """(rows, columns, side, side, 3) of the mosaic."""
    if mosaic is None:
        return np.full((rows, columns, 1, 1, 3), 255, np.uint8)
    side = mosaic.shape[0] // rows
    return mosaic.reshape(rows, side, columns, side, 3).swapaxes(1, 2)


def _places(columns: int, groups: int) -> list[float]:
    """Middles of the tiles of a row, in tiles: the query, then the groups with gaps between."""
    group = (columns - 1) // groups
    return [0.0, *(1 + number + _GAP * (1 + number // group) for number in range(columns - 1))]


def _draw_tile(axes: Any, tile: NDArray[Any], x: float, y: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    half = 0.45
    # Rows run down, as the axis does; every pixel is kept.
    axes.imshow(tile, extent=(x - half, x + half, y + half, y - half), interpolation="none", aspect="auto")
    frame = Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, edgecolor=colour, linewidth=2)
    axes.add_patch(frame)


def _draw_points(axes: Any, points: NDArray[np.float64], numbers: NDArray[np.intp]) -> None:
    for number in np.unique(numbers):
        chosen = points[numbers == number]
        marker = _MARKERS[number // len(PALETTE) % len(_MARKERS)]
        colour = PALETTE[number % len(PALETTE)]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=14, color=colour, marker=marker, alpha=0.65, linewidths=0)
    # Units of principal components mean nothing by themselves.
    axes.set(xticks=[], yticks=[])
    axes.grid(False)


def _legend(figure: Any, names: Sequence[str], *, dots: bool = False) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for number, _ in enumerate(names):
        colour = PALETTE[number % len(PALETTE)]
        marker = _MARKERS[number // len(PALETTE) % len(_MARKERS)]
        form = {"linestyle": "", "marker": marker} if dots else {"linewidth": 3}
        handles.append(Line2D([], [], color=colour, **form))
    figure.legend(handles, list(names), loc="outside lower center", frameon=False, ncols=4, fontsize=8)
