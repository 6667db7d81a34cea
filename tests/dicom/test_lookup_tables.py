"""Lookup tables: palettes against pydicom's reading, segments expanded by hand, broken tables."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from lvmmed_monai.dicom.lookup_tables import LookupTable, expand_segments, palette_tables
from lvmmed_monai.dicom.problems import DicomError

RNG = np.random.default_rng(1)
COLOURS = ("Red", "Green", "Blue")


def palette(
    tables: list[Any], bits: int, entries: int, *, first: int = 0, prefix: str = "", big: bool = False
) -> Dataset:
    """A data set with a palette, as it reads back from a file."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big else ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.PixelRepresentation = 0
    for colour, table in zip(COLOURS, tables, strict=True):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [entries % 65536, first, bits])
        setattr(dataset, f"{prefix}{colour}PaletteColorLookupTableData", table)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return pydicom.dcmread(io.BytesIO(stream.getvalue()))


def looked_up(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    return np.stack([table.look_up(stored) for table in palette_tables(dataset)], axis=-1)


@pytest.mark.parametrize("first", [0, 10])
def test_eight_bits(first):
    tables = [RNG.integers(0, 256, 64).astype(np.uint8).tobytes() for _ in COLOURS]
    dataset = palette(tables, 8, 64, first=first)
    stored = RNG.integers(0, 64, (9, 8)).astype(np.uint8)
    assert np.array_equal(looked_up(dataset, stored), apply_color_lut(stored, dataset))
    assert palette_tables(dataset)[0].upper_byte(stored).dtype == np.uint8


@pytest.mark.parametrize(("entries", "first"), [(256, 0), (300, 20), (65536, 0)])
def test_sixteen_bits(entries, first):
    tables = [RNG.integers(0, 65536, entries).astype("<u2").tobytes() for _ in COLOURS]
    dataset = palette(tables, 16, entries, first=first)
    stored = RNG.integers(0, 400, (9, 8)).astype(np.uint16)
    expected = apply_color_lut(stored, dataset)
    assert np.array_equal(looked_up(dataset, stored), expected)
    assert np.array_equal(palette_tables(dataset)[1].upper_byte(stored), expected[..., 1] >> 8)


def test_stored_values_beyond_a_table_of_eight_bits():
    table = np.arange(0, 250, 25, dtype=np.uint8)
    dataset = palette([table.tobytes()] * 3, 8, 10, first=300)
    stored = np.array([[0, 300, 305, 309, 310, 4000]], np.uint16)
    assert looked_up(dataset, stored)[0, :, 0].tolist() == [0, 0, 125, 225, 225, 225]


def test_an_odd_number_of_bytes():
    table = np.arange(7, dtype=np.uint8) * 30
    dataset = palette([table.tobytes() + b"\0"] * 3, 8, 7)
    assert looked_up(dataset, np.arange(9)[None])[0, :, 2].tolist() == [0, 30, 60, 90, 120, 150, 180, 180, 180]


@pytest.mark.parametrize("bits", [8, 16])
def test_big_endian(bits):
    values = RNG.integers(0, 1 << bits, 12)
    data = values.astype(">u2").tobytes() if bits == 16 else values.astype(np.uint8).view("<u2").astype(">u2").tobytes()
    dataset = palette([data] * 3, bits, 12, big=True)
    assert looked_up(dataset, np.arange(12)[None])[0, :, 0].tolist() == values.tolist()


def test_eight_bits_in_words_of_sixteen():
    values = RNG.integers(0, 256, 32).astype("<u2")
    for bits in (8, 16):
        (table, *_) = palette_tables(palette([values.tobytes()] * 3, bits, 32))
        assert np.array_equal(table.upper_byte(np.arange(32)), values.astype(np.uint8))


@pytest.mark.parametrize(("bits", "unit"), [(8, "u1"), (16, "<u2")])
def test_segments(bits, unit):
    segments = np.array([0, 3, 10, 20, 30, 1, 4, 50, 0, 2, 7, 9, 1, 5, 0], unit).tobytes()
    dataset = palette([segments + b"\0" * (len(segments) % 2)] * 3, bits, 14, prefix="Segmented")
    by_hand = [10, 20, 30, 35, 40, 45, 50, 7, 9, 7, 5, 4, 2, 0]
    assert looked_up(dataset, np.arange(14)[None])[0, :, 0].tolist() == by_hand
    assert apply_color_lut(np.arange(14, dtype=unit)[None], dataset)[0, :, 0].tolist() == by_hand


def test_segments_that_are_used_again():
    # Two segments of 5 words; then "repeat 2 segments from byte 0", with the offset's lower half first.
    words = np.array([0, 2, 5, 6, 1, 2, 8, 2, 2, 0, 0, 0, 1, 99], np.uint16)
    assert expand_segments(words, 9, 2).tolist() == [5, 6, 7, 8, 5, 6, 7, 8, 99]
    from_second = np.array([0, 2, 5, 6, 1, 2, 8, 2, 1, 8, 0], np.uint16)
    assert expand_segments(from_second, 6, 2).tolist() == [5, 6, 7, 8, 8, 8]
    in_bytes = np.array([0, 2, 5, 6, 2, 1, 0, 0, 0, 0], np.uint16)
    assert expand_segments(in_bytes, 4, 1).tolist() == [5, 6, 5, 6]


@pytest.mark.parametrize(
    "words",
    [
        [],
        [0, 3, 1],  # shorter than it says
        [1, 4, 50],  # a line without a beginning
        [0, 1, 7, 2, 1, 6, 0],  # a segment that stands for itself
        [0, 1, 7, 3, 1, 0],  # an unknown kind
        [0, 1, 7, 1, 0, 9],  # a line without length
        [0, 1, 7, 2, 5],  # an offset that is cut off
        [0, 1, 7, 1, 3],  # a line without an end
    ],
)
def test_broken_segments_are_refused(words):
    with pytest.raises(DicomError, match="F04"):
        expand_segments(np.array(words, np.uint16), 16, 2)


def test_expansion_ends_with_the_entries_wanted():
    words = np.array([0, 1, 7] + [1, 65535, 9] * 100_000, np.uint16)
    assert len(expand_segments(words, 256, 2)) == 256


def test_broken_tables_are_refused():
    with pytest.raises(DicomError, match="F04"):
        palette_tables(Dataset())
    with pytest.raises(DicomError, match="F04"):
        palette_tables(palette([b"\0" * 10] * 3, 16, 64))
    with pytest.raises(DicomError, match="F04"):
        palette_tables(palette([b"\0" * 64] * 3, 7, 64))


def test_signed_stored_values():
    table = LookupTable(-2, np.array([5, 6, 7], np.uint16), 16)
    assert table.look_up(np.array([-9, -2, -1, 0, 8], np.int16)).tolist() == [5, 5, 6, 7, 7]
