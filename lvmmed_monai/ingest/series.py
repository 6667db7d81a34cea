"""A series: instances that share a SeriesInstanceUID, with what the checks ask of them, computed once."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lvmmed_monai.dicom.geometry import (
    Array,
    SliceGrid,
    StepReport,
    analyse_steps,
    is_orientation,
    orientation_spread_deg,
    plane_axes,
    position_groups,
    slice_order,
    tilt_deg,
)
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.ingest.routes import route

__all__ = ["Duplicates", "Series", "group_series"]

Digest = Callable[[Header], str]


@dataclass(frozen=True)
class Duplicates:
    """What is there twice.

    Attributes:
        kept: instances without exact copies, in the order given.
        same_uid: copies dropped that have the same SOPInstanceUID and pixels.
        same_uid_other_pixels: SOPInstanceUIDs that stand for different pixels (a count).
        same_position: copies dropped that lie at the same position with the same pixels.
        per_position: number of different images at each position, for the kept ones that have a position.
    """

    kept: tuple[Header, ...]
    same_uid: int
    same_uid_other_pixels: int
    same_position: int
    per_position: tuple[int, ...]


def _drop_same_uid(headers: Iterable[Header], digest: Digest) -> tuple[list[Header], int, int]:
    by_uid: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        by_uid[header.sop_uid or repr(header.source)].append(header)
    kept: list[Header] = []
    dropped = conflicts = 0
    for copies in by_uid.values():
        distinct = list({digest(copy): copy for copy in reversed(copies)}.values()) if len(copies) > 1 else copies
        dropped += len(copies) - len(distinct)
        conflicts += len(distinct) > 1
        kept += distinct
    return kept, dropped, conflicts


def _positioned(headers: Iterable[Header]) -> bool:
    return all(header.position is not None and is_orientation(header.orientation or ()) for header in headers)


def _positions(headers: Iterable[Header]) -> Array:
    return np.array([header.position for header in headers], dtype=float)


def _find_duplicates(headers: tuple[Header, ...], digest: Digest) -> Duplicates:
    kept, same_uid, conflicts = _drop_same_uid(headers, digest)
    if not kept or not _positioned(kept):
        return Duplicates(tuple(kept), same_uid, conflicts, 0, ())
    normal = plane_axes(kept[0].orientation or ())[2]
    remaining: list[Header] = []
    counts: list[int] = []
    for group in position_groups(_positions(kept), normal):
        members = [kept[index] for index in group]
        if len(members) > 1:
            # Where orientations differ as well, equal first corners do not make a copy: pixels are compared too.
            members = list({(digest(member), member.orientation): member for member in reversed(members)}.values())
        counts.append(len(members))
        remaining += members
    return Duplicates(tuple(remaining), same_uid, conflicts, len(kept) - len(remaining), tuple(counts))


@dataclass
class Series:
    """One series of one study.

    Attributes:
        headers: every instance that carries its UID.
        digest: digest of an instance's pixels; asked only where two instances may be copies.
    """

    headers: tuple[Header, ...]
    digest: Digest = field(repr=False)

    @property
    def first(self) -> Header:
        """An instance that stands for the series: one of the stack, if there is any."""
        return (self.stack or self.headers)[0]

    @cached_property
    def routes(self) -> dict[str, tuple[Header, ...]]:
        """Instances by route."""
        found: dict[str, list[Header]] = defaultdict(list)
        for header in self.headers:
            found[route(header)].append(header)
        return {name: tuple(members) for name, members in found.items()}

    @property
    def stack(self) -> tuple[Header, ...]:
        """Instances that may be slices of a volume, copies included."""
        return self.routes.get("stack", ())

    @cached_property
    def duplicates(self) -> Duplicates:
        """What is there twice among the slices."""
        return _find_duplicates(self.stack, self.digest)

    @property
    def kept(self) -> tuple[Header, ...]:
        """Slices without exact copies, in no particular order."""
        return self.duplicates.kept

    @cached_property
    def positioned(self) -> bool:
        """Whether every slice has a position and a valid orientation."""
        return bool(self.kept) and _positioned(self.kept)

    @cached_property
    def spread_deg(self) -> float:
        """Largest angle between the axes of any slice and the first one, degrees."""
        return orientation_spread_deg(np.array([header.orientation for header in self.kept], dtype=float))

    @cached_property
    def distinct_positions(self) -> bool:
        """Whether every slice has a place of its own, so that steps between slices mean something."""
        return self.positioned and all(count == 1 for count in self.duplicates.per_position)

    @cached_property
    def slices(self) -> tuple[Header, ...]:
        """Slices in the order of their projection on the normal; needs ``positioned``."""
        normal = plane_axes(self.kept[0].orientation or ())[2]
        order = slice_order(_positions(self.kept), normal)
        return tuple(self.kept[index] for index in order)

    @cached_property
    def steps(self) -> StepReport:
        """Steps between the slices; needs ``positioned`` and two slices."""
        return analyse_steps(_positions(self.slices), plane_axes(self.slices[0].orientation or ())[2])

    @cached_property
    def tilt(self) -> float:
        """Angle between the direction of stacking and the normal, degrees; needs ``positioned`` and two slices."""
        return tilt_deg(_positions(self.slices), plane_axes(self.slices[0].orientation or ())[2])

    @cached_property
    def grid(self) -> SliceGrid:
        """The voxel grid; only of a series that passed the geometric checks."""
        first = self.slices[0]
        if first.pixel_spacing is None:
            raise ValueError("grid: the series did not pass the geometric checks")
        return SliceGrid(
            columns=first.columns,
            rows=first.rows,
            orientation=np.array(first.orientation, dtype=float),
            pixel_spacing=first.pixel_spacing,
            positions=_positions(self.slices),
        )


def _folder(header: Header) -> str:
    source = header.source
    return f"{source.path}/{os.path.dirname(source.member)}" if source.member else os.path.dirname(source.path)


def group_series(headers: Iterable[Header], digest: Digest) -> list[Series]:
    """Instances by patient, study and SeriesInstanceUID; different UIDs are never joined.

    Where de-identification emptied the UID, the folder takes its place. The order is that of patient, study
    date and series, whatever the files are called.
    """
    groups: dict[tuple[str, str, str], list[Header]] = defaultdict(list)
    for header in headers:
        groups[header.patient, header.study_uid, header.series_uid or _folder(header)].append(header)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], min(h.study_date for h in item[1]), item[0]))
    return [Series(tuple(members), digest) for _, members in ordered]
