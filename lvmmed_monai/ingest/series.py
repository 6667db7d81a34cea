"""A series: instances that share a SeriesInstanceUID, with what the checks ask of them, computed once."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.geometry import plane_axes, position_groups
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.ingest.routes import PLANAR_ROUTES, route
from lvmmed_monai.ingest.stack import Stack, positioned, positions_of
from lvmmed_monai.ingest.time_points import Split, split_volumes

__all__ = ["Duplicates", "Series", "folder_of", "group_headers"]

Digest = Callable[[Header], str]


@dataclass(frozen=True)
class Duplicates:
    """What is there twice.

    Attributes:
        kept: instances without exact copies, in the order given.
        same_uid: copies dropped that have the same SOPInstanceUID and pixels.
        same_uid_other_pixels: SOPInstanceUIDs that stand for different pixels (a count).
        same_position: copies dropped that lie at the same position with the same pixels.
        places: the kept ones by position, in the order of the normal; () where a position is missing.
    """

    kept: tuple[Header, ...]
    same_uid: int
    same_uid_other_pixels: int
    same_position: int
    places: tuple[tuple[Header, ...], ...]

    @property
    def per_position(self) -> tuple[int, ...]:
        """Number of different images at each position."""
        return tuple(len(place) for place in self.places)


def _drop_same_uid(headers: Iterable[Header], digest: Digest) -> tuple[list[Header], int, int]:
    by_uid: dict[tuple[str, int | None], list[Header]] = defaultdict(list)
    for header in headers:
        by_uid[header.sop_uid or repr(header.source), header.frame].append(header)
    kept: list[Header] = []
    dropped = conflicts = 0
    for copies in by_uid.values():
        distinct = list({digest(copy): copy for copy in reversed(copies)}.values()) if len(copies) > 1 else copies
        dropped += len(copies) - len(distinct)
        conflicts += len(distinct) > 1
        kept += distinct
    return kept, dropped, conflicts


def _find_duplicates(headers: tuple[Header, ...], digest: Digest) -> Duplicates:
    kept, same_uid, conflicts = _drop_same_uid(headers, digest)
    if not kept or not positioned(kept):
        return Duplicates(tuple(kept), same_uid, conflicts, 0, ())
    normal = plane_axes(kept[0].orientation or ())[2]
    crowds = [[kept[index] for index in group] for group in position_groups(positions_of(kept), normal)]
    # An empty slice has the same pixels at every time point: what tells time points apart is looked at first.
    places = tuple(_distinct(crowd, digest, _time_and_kind) for crowd in crowds)
    if not split_volumes(places).volumes:
        places = tuple(_distinct(crowd, digest, lambda header: None) for crowd in crowds)
    remaining = tuple(member for place in places for member in place)
    return Duplicates(remaining, same_uid, conflicts, len(kept) - len(remaining), places)


def _time_and_kind(header: Header) -> Hashable:
    return header.phases, header.image_type


def _distinct(crowd: Sequence[Header], digest: Digest, key: Callable[[Header], Hashable]) -> tuple[Header, ...]:
    """One of each set of copies at a position: equal pixels and orientation, and an equal key."""
    if len(crowd) == 1:
        return tuple(crowd)
    found = {(digest(member), member.orientation, key(member)): member for member in reversed(crowd)}
    return tuple(reversed(found.values()))


@dataclass
class Series:
    """One series of one study.

    Attributes:
        headers: every instance that carries its UID; every frame of a multi-frame one.
        digest: digest of an instance's pixels; asked only where two instances may be copies.
        strict: smaller tolerances, and no repairs.
    """

    headers: tuple[Header, ...]
    digest: Digest = field(repr=False)
    strict: bool = False

    @property
    def first(self) -> Header:
        """An instance that stands for the series: one of the stack, if there is any."""
        return (self.stack or self.planar or self.headers)[0]

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

    @property
    def planar(self) -> tuple[Header, ...]:
        """Images without a place in space."""
        return tuple(header for name in PLANAR_ROUTES for header in self.routes.get(name, ()))

    @cached_property
    def duplicates(self) -> Duplicates:
        """What is there twice among the slices."""
        return _find_duplicates(self.stack, self.digest)

    @property
    def kept(self) -> tuple[Header, ...]:
        """Slices without exact copies, in no particular order."""
        return self.duplicates.kept

    @cached_property
    def split(self) -> Split:
        """The volumes that share the positions, as far as something tells them apart."""
        return split_volumes(self.duplicates.places)

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks that may become volumes: one, or one for each time point, echo or b-value."""
        if not self.kept:
            return ()
        if self.split.volumes:
            return tuple(Stack(members, self.strict, minimum=2) for members in self.split.volumes)
        return (Stack(self.kept, self.strict),)


def folder_of(source: Source) -> str:
    """Where an instance lies: a folder, or one inside an archive."""
    return f"{source.path}/{os.path.dirname(source.member)}" if source.member else os.path.dirname(source.path)


def group_headers(headers: Iterable[Header]) -> list[tuple[Header, ...]]:
    """Instances by patient, study and SeriesInstanceUID; different UIDs are never joined.

    Where de-identification emptied the UID, the folder takes its place. The order is that of patient, study
    date and series, whatever the files are called.
    """
    groups: dict[tuple[str, str, str], list[Header]] = defaultdict(list)
    for header in headers:
        groups[header.patient, header.study_uid, header.series_uid or folder_of(header.source)].append(header)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], min(h.study_date for h in item[1]), item[0]))
    return [tuple(members) for _, members in ordered]
