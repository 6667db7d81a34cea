"""Pixels: lengths are checked before anything is decoded, and values become real ones (HU) slice by slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from lvmmed_monai.dicom.problems import DicomError, silent_pydicom

__all__ = ["MAX_FRAME_BYTES", "check_pixel_length", "decode_slice", "inverted", "pixel_length", "rescale_stack"]

MAX_FRAME_BYTES = 512 * 1024**2
"""A frame of more bytes than this is refused (F06): Rows and Columns can be any 16 bit number in a broken header."""

_INT16 = np.iinfo(np.int16)


def pixel_length(dataset: Dataset) -> int:
    """Bytes that the unpacked pixels take: bits are packed without gaps when one bit is allocated."""
    pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    return math.ceil(pixels * int(dataset.BitsAllocated) * int(dataset.get("NumberOfFrames") or 1) / 8)


def _transfer_syntax(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None)
    declared = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    if declared:
        return declared
    implicit = dataset.original_encoding[0]
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)


def check_pixel_length(dataset: Dataset) -> None:
    """Refuse pixels that are absent, shorter than needed, undecodable here or beyond the memory limit.

    Raises:
        DicomError: F03 size not stated, F04 too short or absent, F05 no decoder, F06 too large.
    """
    try:
        need = pixel_length(dataset)
        frame = need // max(int(dataset.get("NumberOfFrames") or 1), 1)
    except (AttributeError, TypeError, ValueError):
        raise DicomError("F03", "rows, columns or bits are not stated", "the size of the image") from None
    if frame > MAX_FRAME_BYTES or need == 0:
        raise DicomError("F06", f"{frame} bytes in a frame", f"1 to {MAX_FRAME_BYTES} bytes")
    have = len(dataset.get("PixelData") or b"")
    if have == 0:
        raise DicomError("F04", "no pixel data", f"{need} bytes")
    syntax = _transfer_syntax(dataset)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DicomError("F05", f"transfer syntax {syntax}", "one that can be decoded here") from None
    if not decoder.is_available:
        raise DicomError("F05", f"transfer syntax {syntax} without its decoder", "an installed decoder") from None
    if not decoder.UID.is_encapsulated and have < need:
        raise DicomError("F04", f"{have} bytes of pixels", f"{need} bytes")


def decode_slice(dataset: Dataset) -> NDArray[Any]:
    """Stored values of a single-frame grey image, (rows, columns), as they stand: no rescaling, no window.

    Bits above BitsStored, where old writers kept overlays, are cleared by the decoder.

    Raises:
        DicomError: see `check_pixel_length`; F04 also when decoding fails.
    """
    check_pixel_length(dataset)
    try:
        with silent_pydicom():
            stored = np.asarray(dataset.pixel_array)
    except Exception as error:
        # Decoders of several packages raise what they like on broken data; it costs this series and not the run.
        raise DicomError("F04", f"decoding ended with {type(error).__name__}", "whole pixel data") from None
    if stored.shape != (int(dataset.Rows), int(dataset.Columns)):
        raise DicomError("F04", f"decoded to {stored.shape}", f"{dataset.Rows} rows of {dataset.Columns} columns")
    return stored


def inverted(stored: NDArray[Any], bits_stored: int, signed: bool) -> NDArray[Any]:
    """Stored values of a MONOCHROME1 image turned so that larger is brighter.

    Args:
        stored: any shape.
        bits_stored: BitsStored.
        signed: PixelRepresentation is 1.
    """
    top = -1 if signed else (1 << bits_stored) - 1
    return (top - stored.astype(np.int64)).astype(np.int32)


def rescale_stack(slices: Sequence[NDArray[Any]], slopes: Sequence[float], intercepts: Sequence[float]) -> NDArray[Any]:
    """Real values of a stack: stored x slope + intercept, each slice with its own.

    Padding outside the field of view is left as it is.

    Args:
        slices: (rows, columns) each, in the order of the slices.
        slopes: one for each slice.
        intercepts: one for each slice.

    Returns:
        (columns, rows, slices), int16 where that is exact (all slopes 1, whole intercepts, values fit), else float32.
    """
    rows, columns = slices[0].shape
    whole = all(slope == 1 for slope in slopes) and all(float(value).is_integer() for value in intercepts)
    integers = whole and all(np.issubdtype(stored.dtype, np.integer) for stored in slices)
    if integers:
        low = min(int(stored.min()) + int(offset) for stored, offset in zip(slices, intercepts, strict=True))
        high = max(int(stored.max()) + int(offset) for stored, offset in zip(slices, intercepts, strict=True))
        integers = low >= _INT16.min and high <= _INT16.max
    volume = np.empty((columns, rows, len(slices)), dtype=np.int16 if integers else np.float32, order="F")
    for index, (stored, slope, intercept) in enumerate(zip(slices, slopes, intercepts, strict=True)):
        values = stored.astype(np.int64) + int(intercept) if integers else stored * float(slope) + float(intercept)
        volume[:, :, index] = values.T
    return volume
