"""One series, several volumes: time points, echoes, b-values or image components at the same positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from lvmmed_monai.dicom.headers import PHASE_KEYWORDS, Header

__all__ = ["BY_NUMBER", "COMPONENTS", "Split", "component", "split_volumes"]

BY_NUMBER = "InstanceNumber"
"""`Split.by` where nothing in the headers but the numbering of the images tells volumes apart."""
COMPONENTS = {
    *("M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "MIXED"),
    *("ADC", "FA", "TRACEW", "DIFFUSION", "W", "F", "IP", "OP", "WATER", "FAT", "IN_PHASE", "OUT_PHASE"),
}
"""Values of ImageType that say which quantity an image shows."""

Places = Sequence[Sequence[Header]]
Key = Callable[[Header], Hashable]


@dataclass(frozen=True)
class Split:
    """How the images at each position were told apart.

    Attributes:
        volumes: slices of each volume, in the order of what tells them apart; () if nothing does.
        by: what tells them apart, "" for a single volume or where nothing does.
        incomplete: sizes of volumes that lack slices and are left out.
    """

    volumes: tuple[tuple[Header, ...], ...] = ()
    by: str = ""
    incomplete: tuple[int, ...] = ()


def component(header: Header) -> tuple[str, ...]:
    """The values of ImageType that say which quantity an image shows."""
    return tuple(sorted(COMPONENTS.intersection(header.image_type)))


def _phase(index: int) -> Key:
    return lambda header: header.phases[index]


_KEYS: tuple[tuple[str, Key], ...] = (
    ("ImageType", component),
    *((keyword, _phase(index)) for index, keyword in enumerate(PHASE_KEYWORDS)),
    ("ImageType and times", lambda header: (component(header), *header.phases)),
)


def _order(value: Hashable) -> tuple[Any, ...]:
    """A sort key: numbers by size, texts by letter, what is absent last."""
    if isinstance(value, tuple):
        return tuple(_order(part) for part in value)
    if value is None:
        return (2, 0.0, "")
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


def _groups(places: Places, key: Key) -> list[list[Header]]:
    found: dict[Hashable, list[Header]] = defaultdict(list)
    for place in places:
        for header in place:
            found[key(header)].append(header)
    return [found[value] for value in sorted(found, key=_order)]


def _by_key(places: Places, name: str, key: Key) -> Split | None:
    """Volumes told apart by a key: each place once, as many as the fullest place holds.

    A volume that lacks slices is left out, if at least one is whole and it has more than half of the places: fewer
    are rather slices that were taken again, and nothing says which of them are right.
    """
    if any(len({key(header) for header in place}) < len(place) for place in places):
        return None
    groups = _groups(places, key)
    whole = [tuple(group) for group in groups if len(group) == len(places)]
    parts = [len(group) for group in groups if len(group) < len(places)]
    if not whole or len(groups) != max(len(place) for place in places) or any(2 * n <= len(places) for n in parts):
        return None
    return Split(tuple(whole), name, tuple(parts))


def _by_number(places: Places) -> Split | None:
    """Volumes as blocks of InstanceNumbers: one volume after the other, or one place after the other."""
    images = [(header.instance_number, place, header) for place, members in enumerate(places) for header in members]
    numbers = [number for number, _, _ in images]
    if None in numbers or len(set(numbers)) < len(numbers):
        return None
    images.sort(key=lambda image: image[0] or 0)
    count, depth = len(places[0]), len(places)
    blocks = [images[start : start + depth] for start in range(0, len(images), depth)]
    if all(len({place for _, place, _ in block}) == depth for block in blocks):
        return Split(tuple(tuple(header for *_, header in block) for block in blocks), BY_NUMBER)
    runs = [images[start : start + count] for start in range(0, len(images), count)]
    if all(len({place for _, place, _ in run}) == 1 for run in runs):
        return Split(tuple(tuple(run[index][2] for run in runs) for index in range(count)), BY_NUMBER)
    return None


def split_volumes(places: Places) -> Split:
    """Tell apart the images that share positions.

    The first of the keys that gives whole volumes decides (ImageType, TemporalPositionIdentifier,
    AcquisitionNumber, TriggerTime, times, b-value, EchoTime, all together), else blocks of InstanceNumber.

    Args:
        places: images at each position, copies left out.
    """
    counts = {len(place) for place in places}
    if len(places) < 2 or max(counts) < 2:
        return Split()
    for name, key in _KEYS:
        split = _by_key(places, name, key)
        if split is not None:
            return split
    return (_by_number(places) if len(counts) == 1 else None) or Split()
