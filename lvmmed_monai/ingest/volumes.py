"""From an accepted series to an array of real values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.geometry import SliceGrid
from lvmmed_monai.dicom.headers import Header, read_dataset
from lvmmed_monai.dicom.pixels import decode_slice, inverted, rescale_stack
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.series import Series

__all__ = ["DecodedVolume", "decode_volume", "pixel_digest"]

_QUANTITIES = ("CT", "PT")
"""Modalities whose rescaled values are physical: MONOCHROME1 is then a matter of display alone."""


@dataclass(frozen=True)
class DecodedVolume:
    """A decoded series.

    Attributes:
        modality: DICOM modality.
        values: (columns, rows, slices) int16 or float32; HU for CT.
        grid: where the voxels lie.
        slopes: RescaleSlope of each slice, 1 where absent.
        inverted: MONOCHROME1 was turned so that larger is brighter.
    """

    modality: str
    values: NDArray[Any]
    grid: SliceGrid
    slopes: tuple[float, ...]
    inverted: bool


def _stored(header: Header, reader: SourceReader) -> NDArray[Any]:
    return decode_slice(read_dataset(reader.read(header.source), pixels=True))


def pixel_digest(reader: SourceReader) -> Callable[[Header], str]:
    """A function that gives the digest of an instance's decoded pixels, so that copies in two codecs are equal.

    Pixels that cannot be decoded get a digest of the file's bytes; decoding will refuse them later.
    """

    def digest(header: Header) -> str:
        try:
            stored = _stored(header, reader)
            text = f"{stored.shape} {header.slope} {header.intercept}"
            return hashlib.sha256(text.encode() + np.ascontiguousarray(stored).astype(np.int64).tobytes()).hexdigest()
        except DicomError:
            pass
        try:
            return hashlib.sha256(reader.read(header.source)).hexdigest()
        except DicomError as error:
            return f"{error.code} {header.source!r}"

    return digest


def decode_volume(series: Series, reader: SourceReader) -> DecodedVolume:
    """Decode the slices of a series that passed its checks.

    Raises:
        DicomError: one of its instances cannot be decoded; the series then lacks a slice.
    """
    slices = series.slices
    first = slices[0]
    turn = first.photometric == "MONOCHROME1" and first.modality not in _QUANTITIES
    stored = []
    for header in slices:
        values = _stored(header, reader)
        stored.append(inverted(values, header.bits_stored, header.pixel_representation == 1) if turn else values)
    slopes = tuple(1.0 if header.slope is None else header.slope for header in slices)
    intercepts = [0.0 if header.intercept is None else header.intercept for header in slices]
    return DecodedVolume(
        modality=first.modality,
        values=rescale_stack(stored, slopes, intercepts),
        grid=series.grid,
        slopes=slopes,
        inverted=turn,
    )
