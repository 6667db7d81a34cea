"""Label objects: which image series each belongs to, one label table for all, one label map a volume."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.geometry import SliceGrid
from lvmmed_monai.dicom.headers import Header, read_dataset
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.seg_reader import Segmentation, add_to_label_map, on_grid, read_segmentation
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.checks.files import from_error
from lvmmed_monai.ingest.findings import WARNING, Finding
from lvmmed_monai.ingest.series import Series

__all__ = [
    "LabelObject",
    "Pairing",
    "draw_labels",
    "label_table",
    "pair_labels",
    "read_label_object",
    "segment_names",
    "unlisted_segments",
]

_LARGEST_INDEX = 255


@dataclass(frozen=True)
class LabelObject:
    """A segmentation object without its pixels."""

    header: Header
    segmentation: Segmentation


@dataclass(frozen=True)
class Pairing:
    """A label object and the image series that it belongs to.

    Attributes:
        label: the object.
        series: the accepted series, or None if there is none.
        by_reference: the object names the series or its instances; else it was found by its geometry.
    """

    label: LabelObject
    series: Series | None
    by_reference: bool


def read_label_object(header: Header, reader: SourceReader) -> LabelObject:
    """Read what a segmentation object says about itself.

    Raises:
        DicomError: it is broken, or its frames have no place in space.
    """
    segmentation = read_segmentation(read_dataset(reader.read(header.source), pixels=False))
    # The parsed object is large and not needed again before its pixels are.
    return LabelObject(header, replace(segmentation, dataset=Dataset()))


def pair_labels(labels: Iterable[LabelObject], accepted: Sequence[Series]) -> list[Pairing]:
    """Find the image series of each label object.

    First by the series that the object names, then by the instances that it names, then by the frame of
    reference and the planes, if they fit exactly one series.
    """
    by_uid = {series.first.series_uid: series for series in accepted if series.first.series_uid}
    by_instance = {header.sop_uid: series for series in accepted for header in series.slices}
    return [_pair(label, accepted, by_uid, by_instance) for label in labels]


def _pair(
    label: LabelObject,
    accepted: Sequence[Series],
    by_uid: Mapping[str, Series],
    by_instance: Mapping[str, Series],
) -> Pairing:
    segmentation = label.segmentation
    named = [by_uid[uid] for uid in segmentation.referenced_series if uid in by_uid]
    named = named or [by_instance[uid] for uid in segmentation.referenced_instances if uid in by_instance]
    if named:
        same = all(series is named[0] for series in named)
        return Pairing(label, named[0] if same else None, by_reference=True)
    frame = segmentation.frame_of_reference
    fitting = [s for s in accepted if frame and s.first.frame_of_reference == frame and on_grid(segmentation, s.grid)]
    return Pairing(label, fitting[0] if len(fitting) == 1 else None, by_reference=False)


def _name(text: str, number: int, personal: frozenset[str]) -> str:
    """A segment's name: lower case words joined by underscores; words of the patient's name or id do not pass."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    if not words or personal.intersection(words):
        return f"segment_{number}"
    return "_".join(words)


def segment_names(label: LabelObject) -> dict[int, str]:
    """Name of each SegmentNumber, as it stands in the datalist."""
    # Archives put the organ into the patient's name ("06^Breast-MRI"): a coded term names nobody.
    personal = label.header.names - label.segmentation.vocabulary
    return {number: _name(text, number, personal) for number, text in label.segmentation.segments.items()}


def _given_table(names: Mapping[str, str]) -> dict[str, int]:
    try:
        table = {"_".join(re.findall(r"[a-z0-9]+", name.lower())): int(index) for index, name in names.items()}
    except (ValueError, AttributeError):
        table = {}
    table.pop("background", None)
    if not table or sorted(table.values()) != list(range(1, len(table) + 1)):
        raise UserError(
            'label names must be numbered from 1 without gaps, each once; --labels; write {"1": "liver", "2": "spleen"}'
        )
    return table


def label_table(labels: Iterable[LabelObject], names: Mapping[str, str] | None = None) -> dict[str, int]:
    """Index of each label name, the same for all volumes; 0 is the background.

    Args:
        labels: all label objects that are used.
        names: the user's own table ({"1": "liver"}); None takes the SegmentNumbers where each stands for one
            name everywhere and they run from 1 without gaps, else the names in alphabetical order.

    Raises:
        UserError: the user's table has gaps, or there are more than 255 labels.
    """
    if names is not None:
        table = _given_table(names)
    else:
        pairs = {pair for label in labels for pair in segment_names(label).items()}
        numbers = [number for number, _ in pairs]
        unique = {name for _, name in pairs}
        if len(unique) == len(pairs) and sorted(numbers) == list(range(1, len(pairs) + 1)):
            table = {name: number for number, name in sorted(pairs)}
        else:
            table = {name: index for index, name in enumerate(sorted(unique), start=1)}
    if len(table) > _LARGEST_INDEX:
        raise UserError(
            f"{len(table)} different labels; the segmentation objects; name at most {_LARGEST_INDEX} with --labels"
        )
    return table


def unlisted_segments(label: LabelObject, table: Mapping[str, int]) -> list[Finding]:
    """M06: segments whose name the user's table does not hold stay out."""
    count = sum(name not in table for name in segment_names(label).values())
    if not count:
        return []
    measured = f"{count} of {len(label.segmentation.segments)} segments left out"
    return [Finding("M06", WARNING, measured, "names of the label table", "add their names to the file of --labels")]


def draw_labels(
    pairings: Sequence[Pairing], grid: SliceGrid, table: Mapping[str, int], reader: SourceReader
) -> tuple[NDArray[np.uint8] | None, list[Finding]]:
    """One label map from all label objects of a volume.

    Returns:
        (columns, rows, slices) uint8, or None with the reason if any of the objects cannot be used: a map that
        lacks a structure would teach that it is background.
    """
    labels = np.zeros(grid.shape, dtype=np.uint8, order="F")
    findings: list[Finding] = []
    for pairing in pairings:
        label = pairing.label
        indices = {number: table[name] for number, name in segment_names(label).items() if name in table}
        findings += unlisted_segments(label, table)
        try:
            segmentation = read_segmentation(read_dataset(reader.read(label.header.source), pixels=True))
            add_to_label_map(labels, segmentation, grid, indices)
        except DicomError as error:
            return None, [*findings, from_error(error)]
    return labels, findings
