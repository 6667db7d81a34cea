"""A walk over the bytes of a little-endian file: finds some elements fast, and gives up where anything is unusual.

What it gives up on is for pydicom to decide, so that both always agree.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pydicom.datadict import dictionary_VR

__all__ = ["Elements", "UnsureError", "walk"]

_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OW OV SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_FIRST_OF_DATA_SET, _FIRST_DELIMITER = 0x00080000, 0xFFFE0000
_ITEM = b"\xfe\xff\x00\xe0"
_ITEM_END, _SEQUENCE_END = b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
_DEPTH = 16

_META_WANTED = {
    0x00020002: (b"UI", "MediaStorageSOPClassUID"),
    0x00020003: (b"UI", "MediaStorageSOPInstanceUID"),
    0x00020010: (b"UI", "TransferSyntaxUID"),
}
_META_START = b"DICM\x02\x00\x00\x00UL\x04\x00"
_IMPLICIT = b"1.2.840.10008.1.2"
_EXPLICIT = b"1.2.840.10008.1.2.1"
_ENCAPSULATED = (b"1.2.840.10008.1.2.4.", b"1.2.840.10008.1.2.5")

_explicit = struct.Struct("<HH2sHI").unpack_from
_implicit = struct.Struct("<HHI").unpack_from
_length = struct.Struct("<I").unpack_from


class UnsureError(Exception):
    """Not plain enough for the fast way."""


@dataclass(frozen=True, slots=True)
class Elements:
    """What a walk found.

    Attributes:
        values: keyword to the bytes of its value, for the elements asked for and those of the file's own header.
        pixels: (tag, start, length) of the pixel element's value; length None when it is encapsulated; None when the
            walk ended before it.
    """

    values: dict[str, bytes]
    pixels: tuple[int, int, int | None] | None


def _element(data: bytes, position: int, implicit: bool) -> tuple[int, bytes, int, int]:
    """(tag, VR or b"", start of the value, length) of the element at ``position``; struct.error at the end of data."""
    if implicit:
        group, element, length = _implicit(data, position)
        return group << 16 | element, b"", position + 8, length
    # Both lengths at once; near the end of the data this gives up on a last element of less than four bytes.
    group, element, vr, length, long = _explicit(data, position)
    if vr in _SHORT:
        return group << 16 | element, vr, position + 8, length
    if vr in _LONG:
        return group << 16 | element, vr, position + 12, long
    raise UnsureError


@lru_cache(maxsize=4096)
def _standard_sequence(tag: int) -> bool:
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False


def _check_sequence(data: bytes, start: int, tag: int, vr: bytes) -> None:
    """An element of undefined length must hold items; the rest (fragments, text) is rare before the pixels."""
    private = tag >> 16 & 1
    if vr not in (b"SQ", b"UN", b"") or (not vr and not private and not _standard_sequence(tag)):
        raise UnsureError
    following = data[start : start + 4]
    if len(following) == 4 and following not in (_ITEM, _SEQUENCE_END[:4]):
        raise UnsureError


def _item_end(data: bytes, position: int, implicit: bool) -> tuple[int, int, bool]:
    """(start of the content, end or 0 where a delimiter ends it, without VRs) of the item at ``position``."""
    length = _length(data, position + 4)[0]
    if data[position : position + 4] != _ITEM:
        raise UnsureError
    start = position + 8
    # Items without VRs stand in data sets that have them (PS3.5 6.2.2); pydicom tells them by the same two bytes.
    lacks_vr = not all(0x40 < byte < 0x5B for byte in data[start + 4 : start + 6])
    return start, 0 if length == _UNDEFINED else start + length, implicit or lacks_vr


def _after_sequence(data: bytes, position: int, implicit: bool) -> int:
    """The position after a sequence of undefined length, whose first item is at ``position``."""
    try:
        return _after_items(data, position, implicit)
    except struct.error:
        raise UnsureError from None  # where it ends is not known, so neither is what follows


def _after_items(data: bytes, position: int, implicit: bool) -> int:
    items: list[tuple[int, bool]] = []
    between_items = True
    while True:
        if between_items and data[position : position + 8] == _SEQUENCE_END:
            position += 8
            if not items:
                return position
            between_items = False
        elif between_items:
            position, end, lacks_vr = _item_end(data, position, items[-1][1] if items else implicit)
            items.append((end, lacks_vr))
            between_items = False
            if len(items) > _DEPTH:
                raise UnsureError
        elif position == items[-1][0] or (not items[-1][0] and data[position : position + 8] == _ITEM_END):
            position += 0 if items.pop()[0] else 8
            between_items = True
        else:
            end, lacks_vr = items[-1]
            tag, vr, start, length = _element(data, position, lacks_vr)
            if tag >= _FIRST_DELIMITER or (end and start > end):
                raise UnsureError
            if length == _UNDEFINED:
                _check_sequence(data, start, tag, vr)
                position, between_items = start, True
            else:
                position = start + length
                if end and position > end:
                    raise UnsureError


def _file_header(data: bytes, values: dict[str, bytes]) -> int:
    """Take the group 2 elements; returns where the data set starts."""
    if data[128:140] != _META_START:
        raise UnsureError
    position, last = 144, 0x00020000
    while data[position : position + 2] == b"\x02\x00":
        tag, vr, start, length = _element(data, position, False)
        if tag <= last or length == _UNDEFINED:
            raise UnsureError
        last, position = tag, start + length
        if tag in _META_WANTED:
            if vr != _META_WANTED[tag][0]:
                raise UnsureError
            values[_META_WANTED[tag][1]] = data[start:position]
    return position


def _lacks_vr(data: bytes, position: int, syntax: bytes) -> bool:
    """Whether the transfer syntax is the implicit one, and the first element looks like it."""
    if syntax == _IMPLICIT:
        if all(0x40 < byte < 0x5B for byte in data[position + 4 : position + 6]):
            raise UnsureError
        return True
    if syntax != _EXPLICIT and not syntax.startswith(_ENCAPSULATED):
        raise UnsureError
    return False


def _top_level(
    data: bytes, position: int, implicit: bool, wanted: Mapping[int, tuple[bytes, str]], values: dict[str, bytes]
) -> tuple[int, int, int]:
    """Take the wanted elements; returns (tag, start, length) of the pixels, or (last tag, end, 0) without them."""
    last = _FIRST_OF_DATA_SET - 1
    try:
        while True:
            tag, vr, start, length = _element(data, position, implicit)
            if tag <= last or tag >= _FIRST_DELIMITER:
                raise UnsureError
            if tag in _PIXELS:
                return tag, start, length
            last, position = tag, start + length
            if length == _UNDEFINED:
                _check_sequence(data, start, tag, vr)
                position = _after_sequence(data, start, implicit)
            if tag in wanted:
                expected, keyword = wanted[tag]
                if vr != expected and vr:
                    raise UnsureError
                values[keyword] = data[start:position]
    except struct.error:
        return last, position, 0


def walk(data: bytes, wanted: Mapping[int, tuple[bytes, str]], *, complete: bool) -> Elements:
    """Find elements of the top level, up to the pixels.

    Args:
        data: the first bytes of a file, or all of them.
        wanted: tag to (VR, keyword) of the elements to find; none of them may lie behind the pixels.
        complete: ``data`` are all bytes. If they are not, the walk may end before the pixels, once all wanted elements
            lie behind it; tags ascend.

    Raises:
        UnsureError: ask pydicom.
    """
    values: dict[str, bytes] = {}
    try:
        position = _file_header(data, values)
        implicit = _lacks_vr(data, position, values.get("TransferSyntaxUID", b"").rstrip(b"\0 "))
    except struct.error:
        raise UnsureError from None
    tag, position, length = _top_level(data, position, implicit, wanted, values)
    if tag in _PIXELS:
        return Elements(values, (tag, position, None if length == _UNDEFINED else length))
    if not (position == len(data) if complete else tag > max(wanted)):
        raise UnsureError
    return Elements(values, None)
