"""Lookup tables: palettes of colours (PS3.3 C.7.9) and modality tables of grey values (C.11.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lvmmed_monai.dicom.problems import DicomError

__all__ = ["LookupTable", "expand_segments", "modality_table", "palette_tables"]

_COLOURS = ("Red", "Green", "Blue")
_DISCRETE, _LINEAR, _INDIRECT = 0, 1, 2
_LONGEST = 1 << 16
_DEPTHS = range(8, 17)


@dataclass(frozen=True)
class LookupTable:
    """Values for stored values.

    Attributes:
        first: stored value of the first entry; smaller ones get that entry, those beyond the end the last one.
        values: (entries,) uint16.
        bits: of an entry, 8 to 16.
    """

    first: int
    values: NDArray[np.uint16]
    bits: int

    def look_up(self, stored: NDArray[Any]) -> NDArray[np.uint16]:
        """The values, in the shape of ``stored``."""
        return self.values[np.clip(stored.astype(np.int64) - self.first, 0, len(self.values) - 1)]

    def upper_byte(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """The values in 8 bits."""
        return (self.look_up(stored) >> (self.bits - 8)).astype(np.uint8)


def _broken(measured: str) -> DicomError:
    return DicomError("F04", f"a lookup table of {measured}", "a whole lookup table")


def _words(data: Any, dataset: Dataset) -> NDArray[np.uint16]:
    """The 16-bit words of a table, however its value representation made pydicom read it."""
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data)).astype(np.int64).astype(np.uint16)
    order = "<" if dataset.original_encoding[1] in (True, None) else ">"
    return np.frombuffer(data + b"\0" * (len(data) % 2), f"{order}u2").astype(np.uint16)


def _bytes(words: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Entries of 8 bits, of which two share a word, the first in its lower half."""
    return words.astype("<u2").view(np.uint8).astype(np.uint16)


def _descriptor(value: Any) -> tuple[int, int, int]:
    """Number of entries, stored value of the first one, bits of an entry."""
    entries, first, bits = (int(number) for number in value)
    if bits not in _DEPTHS:
        raise _broken(f"{bits} bits")
    # The number of entries is unsigned even where the first value, read alike, is signed; 0 stands for 65536.
    return entries % _LONGEST or _LONGEST, first, bits


def _plain(words: NDArray[np.uint16], entries: int) -> NDArray[np.uint16]:
    values = words if len(words) >= entries else _bytes(words)
    if len(values) < entries:
        raise _broken(f"{len(values)} entries instead of {entries}")
    return values[:entries]


def expand_segments(data: NDArray[np.uint16], entries: int, offset_unit: int) -> NDArray[np.uint16]:
    """Expand a segmented table (PS3.3 C.7.9.2).

    Args:
        data: bytes or words of the segments.
        entries: number of entries wanted; what lies beyond is not expanded.
        offset_unit: bytes in an element of ``data``.

    Raises:
        DicomError: F04, segments that make no table.
    """
    values: list[int] = []

    def run(start: int, segments: int | None, nested: bool) -> None:
        at = start
        while at + 1 < len(data) and len(values) < entries and segments != 0:
            kind, length = int(data[at]), int(data[at + 1])
            at += 2
            if kind == _DISCRETE:
                values.extend(data[at : at + length].tolist())
                at += length
            elif kind == _LINEAR and values and length:
                line = np.linspace(values[-1], int(data[at]), length + 1)[1:]
                values.extend(np.around(line).astype(int).tolist())
                at += 1
            elif kind == _INDIRECT and not nested:
                # The offset takes four bytes: in words the lower half comes first, and bytes are alike.
                parts = 4 // offset_unit
                offset = sum(int(part) << (8 * offset_unit * n) for n, part in enumerate(data[at : at + parts]))
                run(offset // offset_unit, length, nested=True)
                at += parts
            else:
                raise _broken(f"segments of kind {kind}")
            segments = None if segments is None else segments - 1

    try:
        run(0, None, nested=False)
    except IndexError:
        raise _broken("segments that are cut off") from None
    if len(values) < entries:
        raise _broken(f"{len(values)} entries instead of {entries}")
    return np.array(values[:entries], dtype=np.uint16)


def _palette(dataset: Dataset, colour: str, segmented: bool) -> LookupTable:
    entries, first, bits = _descriptor(dataset[f"{colour}PaletteColorLookupTableDescriptor"].value)
    prefix = "Segmented" if segmented else ""
    words = _words(dataset[f"{prefix}{colour}PaletteColorLookupTableData"].value, dataset)
    if segmented:
        values = expand_segments(_bytes(words), entries, 1) if bits == 8 else expand_segments(words, entries, 2)
    else:
        values = _plain(words, entries)
    return LookupTable(first, values, bits)


def palette_tables(dataset: Dataset) -> tuple[LookupTable, ...]:
    """Tables of red, green and blue.

    Raises:
        DicomError: F04, no table or a broken one.
    """
    if "RedPaletteColorLookupTableDescriptor" not in dataset:
        raise _broken("no entries")
    segmented = "SegmentedRedPaletteColorLookupTableData" in dataset
    tables = tuple(_palette(dataset, colour, segmented) for colour in _COLOURS)
    # Some writers declare 16 bits and fill the lower 8 alone: taken as declared, the picture would be black.
    small = max(int(table.values.max()) for table in tables) <= np.iinfo(np.uint8).max
    return tuple(LookupTable(table.first, table.values, 8 if small else table.bits) for table in tables)


def modality_table(dataset: Dataset) -> LookupTable | None:
    """The modality table, which makes stored values those of the device, or None where there is none.

    Raises:
        DicomError: F04, a broken table.
    """
    sequence = dataset.get("ModalityLUTSequence")
    if not sequence:
        return None
    entries, first, bits = _descriptor(sequence[0]["LUTDescriptor"].value)
    return LookupTable(first, _plain(_words(sequence[0]["LUTData"].value, dataset), entries), bits)
