"""Label objects: which images each belongs to, and one label map, or one set of channels, a volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.geometry import SliceGrid
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.checks.files import from_error
from lvmmed_monai.ingest.checks.masks import DRAWING_CHECKS, Drawing, overlap
from lvmmed_monai.ingest.findings import Finding, refuses, run_checks
from lvmmed_monai.ingest.label_names import LabelTable, label_table, segment_names
from lvmmed_monai.ingest.label_objects import ImageStack, LabelContent, LabelObject, Pairing, read_content
from lvmmed_monai.ingest.label_objects import read_label_object as read_label_object

__all__ = [
    "DrawnLabels",
    "ImageStack",
    "LabelObject",
    "LabelTable",
    "Pairing",
    "draw_labels",
    "label_table",
    "pair_labels",
    "read_label_object",
    "segment_names",
]


class _Images:
    """The volumes that labels may belong to, by what labels name."""

    def __init__(self, candidates: Sequence[ImageStack], wanted: frozenset[str]) -> None:
        self.candidates = candidates
        self.by_series: dict[str, list[int]] = defaultdict(list)
        self.by_frame: dict[str, list[int]] = defaultdict(list)
        self.by_instance: dict[str, list[int]] = defaultdict(list)
        for index, stack in enumerate(candidates):
            self.by_series[stack.first.series_uid].append(index)
            self.by_frame[stack.first.frame_of_reference].append(index)
            for uid in {header.sop_uid for header in stack.slices} & wanted:
                self.by_instance[uid].append(index)

    def named(self, table: Mapping[str, list[int]], uids: Iterable[str]) -> list[ImageStack]:
        """Volumes that any of the UIDs stands for, each once."""
        found = {index for uid in uids if uid for index in table.get(uid, ())}
        return [self.candidates[index] for index in sorted(found)]


def _pair(label: LabelObject, images: _Images) -> Pairing:
    content = label.content
    named: list[ImageStack] = []
    for table, uids in (
        (images.by_instance, content.referenced_instances),
        (images.by_series, content.referenced_series),
    ):
        found = images.named(table, uids)
        if len(found) == 1:
            return Pairing(label, found[0], by_reference=True)
        named = named or found
    pool = named or images.named(images.by_frame, [content.frame_of_reference])
    fitting = [stack for stack in pool if content.lies_on(stack.grid)]
    # Several modalities may share a space and even their planes; the label may still say which it was drawn on.
    of_class = [stack for stack in fitting if stack.first.sop_class in content.referenced_classes]
    if len(fitting) > 1 and of_class:
        fitting = of_class
    return Pairing(label, fitting[0] if len(fitting) == 1 else None, by_reference=bool(named))


def pair_labels(labels: Iterable[LabelObject], candidates: Sequence[ImageStack]) -> list[Pairing]:
    """Find the volume of each label object.

    First by the instances that the object names, if they belong to one volume; then by the series that it names, if
    that has one volume; then among what is named, or else shares the frame of reference, by geometry: the object must
    lie on the grid of exactly one volume (of those whose SOP class it names, if several fit).

    Args:
        labels: all label objects.
        candidates: accepted volumes; those of a 4D series share its SeriesInstanceUID.
    """
    objects = list(labels)
    wanted = frozenset(uid for label in objects for uid in label.content.referenced_instances)
    images = _Images(candidates, wanted)
    return [_pair(label, images) for label in objects]


@dataclass(frozen=True)
class DrawnLabels:
    """The labels of one volume: a map, or channels where structures overlap, or neither if an object is of no use.

    Attributes:
        map: (columns, rows, slices) uint8, index of the label in the table, 0 outside.
        channels: (columns, rows, slices, labels) uint8, 1 inside, 0 outside; one for each name.
        names: of the channels, in the order of the table; () where there are none.
        findings: what was found while drawing.
    """

    map: NDArray[np.uint8] | None
    channels: NDArray[np.uint8] | None
    names: tuple[str, ...]
    findings: tuple[Finding, ...]


Indexed = tuple[LabelContent, Mapping[int, int]]
"""A label object with its pixels or contours, and the label index of each number that is drawn."""


def _draw_map(objects: Sequence[Indexed], grid: SliceGrid) -> NDArray[np.uint8] | None:
    """A label map, or None as soon as a voxel belongs to two labels."""
    labels = np.zeros(grid.shape, dtype=np.uint8, order="F")
    for content, indices in objects:
        for number, k, mask in content.masks(grid):
            index = indices.get(number)
            if index is None:
                continue
            # Transposed, so that memory is walked along: three times as fast.
            plane, inside = labels[:, :, k].T, mask.T
            taken = plane[inside]
            if np.any((taken != 0) & (taken != index)):
                return None
            plane[inside] = index
    return labels


def _draw_channels(objects: Sequence[Indexed], grid: SliceGrid, count: int) -> tuple[NDArray[np.uint8], int]:
    """One channel for each label, and the number of voxels with more than one label."""
    channels = np.zeros((*grid.shape, count), dtype=np.uint8, order="F")
    for content, indices in objects:
        for number, k, mask in content.masks(grid):
            if number in indices:
                channels[:, :, k, indices[number] - 1] |= mask
    return channels, int(np.count_nonzero(channels.sum(axis=-1, dtype=np.uint8) > 1))


def draw_labels(pairings: Sequence[Pairing], grid: SliceGrid, table: LabelTable, reader: SourceReader) -> DrawnLabels:
    """Draw all label objects of a volume.

    Args:
        pairings: of the volume; their checks found no error.
        grid: of the volume, as its slices were acquired.
        table: index of each label name.
        reader: of the source files.

    Returns:
        Neither map nor channels, but the reason, if any of the objects cannot be used: a map that lacks a structure
        would teach that it is background.
    """
    findings: list[Finding] = []
    objects: list[Indexed] = []
    try:
        for pairing in pairings:
            names = segment_names(pairing.label)
            found = {number: table.index_of(name) for number, name in names.items()}
            indices = {number: index for number, index in found.items() if index is not None}
            findings += run_checks(DRAWING_CHECKS, Drawing(pairing.label.content, grid, indices))
            objects.append((read_content(pairing.label.header, reader, pixels=True), indices))
        if refuses(findings):
            return DrawnLabels(None, None, (), tuple(findings))
        labels = _draw_map(objects, grid)
        if labels is not None:
            return DrawnLabels(labels, None, (), tuple(findings))
        channels, voxels = _draw_channels(objects, grid, len(table))
    except DicomError as error:
        return DrawnLabels(None, None, (), (*findings, from_error(error)))
    return DrawnLabels(None, channels, tuple(sorted(table, key=table.__getitem__)), (*findings, *overlap(voxels)))
