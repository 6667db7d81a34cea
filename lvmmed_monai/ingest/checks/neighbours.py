"""Neighbours: S02, what other series of the study say about a gap."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lvmmed_monai.dicom.geometry import GAP_TOLERANCE, Array, SliceGrid, plane_axes
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.ingest.findings import WARNING, Finding, counted
from lvmmed_monai.ingest.stack import Stack

__all__ = ["fills_a_gap"]


def _in_gap(position: Array, grid: SliceGrid, spacing_mm: float) -> bool:
    """Whether a slice at ``position`` lies between two of the grid, on their line and a whole number of steps away."""
    normal = plane_axes(grid.orientation)[2]
    along = (grid.positions - grid.positions[0]) @ normal
    place = float((position - grid.positions[0]) @ normal)
    on_line = grid.positions[0] + place / along[-1] * (grid.positions[-1] - grid.positions[0])
    steps = place / spacing_mm
    return bool(
        0 < place < along[-1]
        and np.abs(along - place).min() > spacing_mm / 2
        and abs(steps - round(steps)) < GAP_TOLERANCE
        and np.linalg.norm(position - on_line) < GAP_TOLERANCE * spacing_mm
    )


def fills_a_gap(stack: Stack, others: Iterable[Header]) -> list[Finding]:
    """S02: images of other series of the study lie where this one lacks slices.

    Args:
        stack: one that was refused for a gap.
        others: images of the other series in its frame of reference.
    """
    grid = stack.grid
    filling = sum(
        header.position is not None
        and header.pixel_spacing is not None
        and grid.same_plane(header.columns, header.rows, header.orientation or (), header.pixel_spacing)
        and _in_gap(np.asarray(header.position), grid, stack.steps.spacing_mm)
        for header in others
    )
    if not filling:
        return []
    remedy = "ask the source whether they are one series; different series are never joined unasked"
    measured = f"{counted(filling, 'image')} of other series would fill the gap"
    return [Finding("S02", WARNING, measured, "all slices in one series", remedy)]
