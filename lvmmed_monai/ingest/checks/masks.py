"""Masks: M01 to M07, about label objects and the images that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lvmmed_monai.dicom.geometry import SliceGrid
from lvmmed_monai.dicom.rtstruct_reader import OFF_GRID_LIMIT, StructureSet
from lvmmed_monai.ingest.findings import ERROR, WARNING, Finding, counted
from lvmmed_monai.ingest.label_objects import LabelContent, Pairing
from lvmmed_monai.ingest.reason_table import remedy

__all__ = ["CHECKS", "DRAWING_CHECKS", "Drawing", "overlap"]

_LOOK = "look at the preview"


@dataclass(frozen=True)
class Drawing:
    """A label object about to be drawn.

    Attributes:
        content: a summary of it.
        grid: the one that it is drawn on.
        indices: label index of each number that the label table holds.
    """

    content: LabelContent
    grid: SliceGrid
    indices: Mapping[int, int]


def other_frame_of_reference(pairing: Pairing) -> list[Finding]:
    """M01: the label and its images declare different spaces."""
    own = pairing.label.content.frame_of_reference
    images = pairing.stack.first.frame_of_reference if pairing.stack else ""
    if not own or not images or own == images:
        return []
    return [Finding("M01", ERROR, "another frame of reference than the images", "the same one", remedy("M01"))]


def missing_images(pairing: Pairing) -> list[Finding]:
    """M02: the images are not here, or the frames do not lie on them."""
    expected = "labels that lie on the slices of one accepted volume"
    content, stack = pairing.label.content, pairing.stack
    if stack is None:
        measured = "no accepted volume, or more than one, fits this label"
        return [Finding("M02", ERROR, measured, expected, remedy("M02"))]
    if not isinstance(content, StructureSet) and not content.lies_on(stack.grid):
        return [Finding("M02", ERROR, "frames that lie on no slice of the image series", expected, remedy("M02"))]
    if not pairing.by_reference and (content.referenced_series or content.referenced_instances):
        measured = "the images that it names are not here; it was placed by its geometry"
        return [Finding("M02", WARNING, measured, expected, _LOOK)]
    return []


def contours_off_slices(pairing: Pairing) -> list[Finding]:
    """M03: contours that lie off the slices, and are left out; too many refuse the label."""
    content = pairing.label.content
    if not isinstance(content, StructureSet) or pairing.stack is None:
        return []
    placed, total = content.place(pairing.stack.grid), len(content.owners)
    findings = []
    off = int(np.count_nonzero(~placed.inside))
    if off:
        farthest = float(placed.distances_mm[~placed.inside].max())
        measured = f"{off} of {counted(total, 'contour')} beside the slices, up to {farthest:.2f} mm from the nearest"
        severity = ERROR if off > OFF_GRID_LIMIT * total else WARNING
        expected = f"contours within half a step of a slice; at most {OFF_GRID_LIMIT:.0%} are left out"
        findings.append(Finding("M03", severity, measured, expected, remedy("M03")))
    between = int(np.count_nonzero(placed.inside & ~placed.drawn))
    if between:
        measured = f"{between} of {counted(total, 'contour')} left out for nearer ones of the same structure"
        findings.append(Finding("M03", WARNING, measured, "contours in the planes of the slices", _LOOK))
    return findings


def open_contours(pairing: Pairing) -> list[Finding]:
    """M04: open contours and single points have no inside, and are left out."""
    content = pairing.label.content
    if not isinstance(content, StructureSet) or not content.open_contours:
        return []
    total = content.open_contours + len(content.owners)
    measured = f"{content.open_contours} of {counted(total, 'contour')} not closed"
    return [Finding("M04", WARNING, measured, "closed planar contours", remedy("M04"))]


def overlap(voxels: int) -> list[Finding]:
    """M05: structures overlap; each gets a channel of its own."""
    if not voxels:
        return []
    measured = f"{counted(voxels, 'voxel')} with more than one label; written as one channel for each label"
    return [Finding("M05", WARNING, measured, "one label a voxel", remedy("M05"))]


def unlisted_segments(drawing: Drawing) -> list[Finding]:
    """M06: segments whose name the user's table does not hold stay out."""
    count = len(drawing.content.segments.keys() - drawing.indices.keys())
    if not count:
        return []
    measured = f"{count} of {len(drawing.content.segments)} segments left out"
    return [Finding("M06", WARNING, measured, "names of the label table", "add their names to the file of --labels")]


def skipped_slices(drawing: Drawing) -> list[Finding]:
    """M07: a structure is drawn on every second slice or fewer; between them it would be taught as background."""
    content = drawing.content
    if not isinstance(content, StructureSet):
        return []
    placed = content.place(drawing.grid)
    steps = []
    for number in drawing.indices:
        slices = np.unique(placed.slices[placed.drawn & (content.owners == number)])
        steps.append(float(np.median(np.diff(slices))) if len(slices) > 2 else 1.0)
    sparse = sum(step >= 2 for step in steps)
    if not sparse:
        return []
    measured = f"{sparse} of {counted(len(steps), 'structure')} drawn on every {max(steps):.0f}. slice or so"
    return [Finding("M07", ERROR, measured, "contours on every slice", remedy("M07"))]


CHECKS = [other_frame_of_reference, missing_images, contours_off_slices, open_contours]
"""Before drawing; their subject is a `Pairing`."""

DRAWING_CHECKS = [unlisted_segments, skipped_slices]
"""While drawing, when the label table is known; their subject is a `Drawing`. M05 needs the drawn voxels."""
