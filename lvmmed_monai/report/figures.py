"""The report's diagrams, drawn by matplotlib, as ``data:`` addresses: the page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GRID", "INK", "MUTED", "PALETTE", "STYLE", "Curve", "as_address", "curve_figure", "picture", "strip_figure"]

# Okabe and Ito's palette: told apart with every common colour vision deficiency, and by lightness in print.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID = "#1c2733", "#5b6875", "#dfe5ea"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    # Letters stay letters: the file is small and the text can be searched.
    "svg.fonttype": "none",
    "svg.hashsalt": "lvmmed-report",
}
_MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_MOST_POINTS = 600
_SMOOTHED_FROM = 60


@dataclass(frozen=True)
class Curve:
    """One diagram: lines of ``(step, value)`` points, and level lines to compare with ("chance", "untrained")."""

    lines: Mapping[str, Sequence[Sequence[float | None]]]
    levels: Mapping[str, float] = field(default_factory=dict)
    axis: str = "step"
    unit_range: bool = False


def _draw(width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def as_address(figure: Figure) -> str:
    """A figure as an SVG address; the same figure gives the same text."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def picture(path: Path) -> str | None:
    """A picture file as an address, or None where it is missing or no picture."""
    media = _MEDIA.get(path.suffix.lower())
    if media is None or not path.is_file():
        return None
    return f"data:{media};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _points(line: Sequence[Sequence[float | None]]) -> tuple[np.ndarray, np.ndarray]:
    kept = np.array([[x, y] for x, y in line if x is not None and y is not None], dtype=float).reshape(-1, 2)
    kept = kept[np.argsort(kept[:, 0], kind="stable")]
    stride = max(1, -(-len(kept) // _MOST_POINTS))
    return kept[::stride, 0], kept[::stride, 1]


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a fifteenth of the curve, shorter at its ends."""
    half = max(1, len(values) // 30)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def curve_figure(curve: Curve) -> str:
    """Lines over training steps; a long noisy line is drawn pale with its running mean on top."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = _draw(3.7, 2.3)
        for colour, (name, line) in zip(PALETTE * 9, curve.lines.items(), strict=False):
            steps, values = _points(line)
            if len(values) >= _SMOOTHED_FROM:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(steps, _running_mean(values), color=colour, linewidth=1.8, label=name)
            else:
                axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=4, label=name)
        for index, (name, level) in enumerate(curve.levels.items()):
            axes.axhline(level, color=INK, linewidth=1.1, linestyle=("--", ":")[index % 2])
            # Two levels may lie close together, so their names stand at opposite ends.
            place = (1, "right") if index % 2 == 0 else (0.01, "left")
            axes.annotate(
                f"{name} {level:.3g}",
                (place[0], level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha=place[1],
            )
        axes.set_xlabel(curve.axis)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if curve.unit_range:
            axes.set_ylim(-0.02, 1.02)
        if len(curve.lines) > 1:
            figure.legend(loc="outside upper left", frameon=False, ncols=2, fontsize=8, handlelength=1.8)
        return as_address(figure)


def strip_figure(
    values: Mapping[str, Sequence[float]], means: Mapping[str, tuple[float | None, Sequence[float] | None]], label: str
) -> str:
    """Every case as a dot, a box of quartiles behind, the mean as a diamond with its interval; one row per class.

    Args:
        values: class name -> values of the cases.
        means: class name -> mean and ``[low, high]``, either None where there is none.
        label: what the values are.
    """
    import matplotlib

    names = list(values)
    with matplotlib.rc_context(STYLE):
        figure, axes = _draw(7.2, 0.7 + 0.4 * len(names))
        rows = np.arange(len(names))[::-1]
        filled = [(row, values[name]) for row, name in zip(rows, names, strict=True) if len(values[name])]
        if filled:
            axes.boxplot(
                [cases for _, cases in filled],
                positions=[row - 0.08 for row, _ in filled],
                orientation="horizontal",
                widths=0.34,
                showfliers=False,
                showcaps=False,
                patch_artist=True,
                boxprops={"facecolor": "#e8eef3", "edgecolor": "#b6c2cc"},
                whiskerprops={"color": "#b6c2cc"},
                medianprops={"color": MUTED},
                zorder=1,
            )
        for row, cases in filled:
            axes.scatter(
                cases, row - 0.08 + _spread(len(cases)), s=16, color=PALETTE[0], alpha=0.75, linewidths=0, zorder=2
            )
        for row, name in zip(rows, names, strict=True):
            _draw_mean(axes, float(row), *means.get(name, (None, None)))
        axes.set_yticks(rows, names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(label)
        return as_address(figure)


def _draw_mean(axes: Any, row: float, mean: float | None, interval: Sequence[float] | None) -> None:
    row += 0.3  # above the dots, which it would hide
    if interval is not None:
        axes.plot(interval, [row, row], color=PALETTE[1], linewidth=2.2, zorder=3, solid_capstyle="round")
    if mean is not None:
        axes.scatter([mean], [row], marker="D", s=30, color=PALETTE[1], edgecolors="white", linewidths=0.8, zorder=4)


def _spread(count: int) -> np.ndarray:
    """Small regular offsets that keep dots of equal value apart; no chance, so the same data give the same file."""
    return 0.12 * ((np.arange(count) * 0.618034) % 1 - 0.5) * 2
