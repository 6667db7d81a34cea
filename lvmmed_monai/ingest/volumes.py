"""From an accepted stack to an array of real values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.geometry import TILT_LIMIT_DEG, SliceGrid
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.pixels import PixelReader, inverted, rescale_stack
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.stack import Stack
from lvmmed_monai.ingest.tilt import straighten

__all__ = ["DecodedVolume", "decode_volume", "pixel_digest"]

_QUANTITIES = ("CT", "PT")
"""Modalities whose rescaled values are physical: MONOCHROME1 is then a matter of display alone."""


@dataclass(frozen=True)
class DecodedVolume:
    """A decoded stack.

    Attributes:
        modality: DICOM modality.
        values: (columns, rows, slices) int16 or float32; HU for CT.
        grid: where the voxels lie.
        slopes: RescaleSlope of each slice, 1 where absent.
        inverted: MONOCHROME1 was turned so that larger is brighter.
        decoders: what decoded the pixels.
    """

    modality: str
    values: NDArray[Any]
    grid: SliceGrid
    slopes: tuple[float, ...]
    inverted: bool
    decoders: tuple[str, ...] = ()


def pixel_digest(reader: SourceReader) -> Callable[[Header], str]:
    """A function that gives the digest of an instance's decoded pixels, so that copies in two codecs are equal.

    Pixels that cannot be decoded get a digest of the file's bytes; decoding will refuse them later.
    """
    pixels = PixelReader(reader)

    def digest(header: Header) -> str:
        try:
            stored = pixels.stored(header).values
            text = f"{stored.shape} {header.slope} {header.intercept}"
            return hashlib.sha256(text.encode() + np.ascontiguousarray(stored).astype(np.int64).tobytes()).hexdigest()
        except DicomError:
            pass
        try:
            return hashlib.sha256(reader.read(header.source) + str(header.frame).encode()).hexdigest()
        except DicomError as error:
            return f"{error.code} {header.source!r}"

    return digest


def decode_volume(stack: Stack, reader: SourceReader) -> DecodedVolume:
    """Decode the slices of a stack that passed its checks; a tilted one is put onto an orthogonal grid.

    Raises:
        DicomError: one of its instances cannot be decoded; the volume would lack a slice.
    """
    # In the order of the files, so that an archive is read once and forwards.
    members, grid = stack.members, stack.grid
    place = {id(header): index for index, header in enumerate(stack.slices)}
    first = stack.first
    turn = first.photometric == "MONOCHROME1" and first.modality not in _QUANTITIES
    pixels = PixelReader(reader)
    decoders: set[str] = set()

    def stored(header: Header) -> NDArray[Any]:
        found = pixels.stored(header)
        decoders.add(found.decoder)
        return inverted(found.values, header.bits_stored, header.pixel_representation == 1) if turn else found.values

    slopes = tuple(1.0 if header.slope is None else header.slope for header in members)
    intercepts = [0.0 if header.intercept is None else header.intercept for header in members]
    places = [place[id(header)] for header in members]
    values = rescale_stack((stored(header) for header in members), slopes, intercepts, places)
    if stack.tilt > TILT_LIMIT_DEG:
        values, grid = straighten(values, grid)
    return DecodedVolume(first.modality, values, grid, slopes, turn, tuple(sorted(decoders)))
