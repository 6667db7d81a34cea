"""Pixels: lengths are checked before anything is decoded, and values become real ones (HU) slice by slice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.decoders import decode_frame, decoder_of
from lvmmed_monai.dicom.elements import UnsureError, walk
from lvmmed_monai.dicom.headers import Header, header_from_dataset, read_dataset
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.values import parsing

__all__ = [
    "MAX_FRAME_BYTES",
    "PixelReader",
    "Stored",
    "check_pixel_length",
    "decode_slice",
    "inverted",
    "pixel_length",
    "rescale_stack",
]

MAX_FRAME_BYTES = 512 * 1024**2
"""A frame of more bytes than this is refused (F06): Rows and Columns can be any 16 bit number in a broken header."""

_INT16 = np.iinfo(np.int16)
_PIXEL_DATA = 0x7FE00010
_NATIVE = (str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian))
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_IDENTITY = {
    0x00080018: (b"UI", "SOPInstanceUID"),
    0x00280010: (b"US", "Rows"),
    0x00280011: (b"US", "Columns"),
    0x00280100: (b"US", "BitsAllocated"),
    0x00280101: (b"US", "BitsStored"),
    0x00280103: (b"US", "PixelRepresentation"),
}


@dataclass(frozen=True, eq=False)
class Stored:
    """Stored values of one image.

    Attributes:
        values: (rows, columns), or (rows, columns, 3) of a colour image. May be read-only.
        decoder: what gave them: "native" where they stand in the file as they are.
    """

    values: NDArray[Any]
    decoder: str


def pixel_length(dataset: Dataset) -> int:
    """Bytes that the unpacked pixels take: bits are packed without gaps when one bit is allocated."""
    pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    length = math.ceil(pixels * int(dataset.BitsAllocated) * int(dataset.get("NumberOfFrames") or 1) / 8)
    # Two pixels share their colour.
    return length // 3 * 2 if dataset.get("PhotometricInterpretation") == "YBR_FULL_422" else length


def _check_length(have: int, frame_bits: int, frames: int) -> None:
    """Uncompressed pixels must neither be short, nor hold more frames than stated."""
    need = math.ceil(frame_bits * frames / 8)
    if have < need:
        raise DicomError("F04", f"{have} bytes of pixels", f"{need} bytes")
    if have > need + need % 2 and have * 8 // frame_bits > frames:
        raise DicomError("F04", f"pixels of {have * 8 // frame_bits} frames", f"{frames}")


def check_pixel_length(dataset: Dataset) -> None:
    """Refuse pixels that are absent, shorter than needed, undecodable here or beyond the memory limit.

    Raises:
        DicomError: F03 size not stated, F04 too short or absent, F05 no decoder, F06 too large.
    """
    try:
        need, frames = pixel_length(dataset), max(int(dataset.get("NumberOfFrames") or 1), 1)
    except (AttributeError, TypeError, ValueError):
        raise DicomError("F03", "rows, columns or bits are not stated", "the size of the image") from None
    frame = need // frames
    if frame > MAX_FRAME_BYTES or need == 0:
        raise DicomError("F06", f"{frame} bytes in a frame", f"1 to {MAX_FRAME_BYTES} bytes")
    have = len(dataset.get("PixelData") or b"")
    if have == 0:
        raise DicomError("F04", "no pixel data", f"{need} bytes")
    if not decoder_of(dataset).UID.is_encapsulated:
        _check_length(have, max(need * 8 // frames, 1), frames)


def _decoded(dataset: Dataset, frame: int | None) -> Stored:
    check_pixel_length(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise DicomError("F04", f"{frames} frames", "one frame")
    return Stored(*decode_frame(dataset, frame if frames > 1 else None))


def decode_slice(dataset: Dataset) -> NDArray[Any]:
    """Stored values of a single-frame grey image, (rows, columns), as they stand: no rescaling, no window.

    Bits above BitsStored, where old writers kept overlays, are cleared by the decoder.

    Raises:
        DicomError: see `check_pixel_length`; F04 also when decoding fails.
    """
    values = _decoded(dataset, None).values
    if values.ndim != 2:
        raise DicomError("F04", f"decoded to {values.shape}", f"{dataset.Rows} rows of {dataset.Columns} columns")
    return values


@dataclass(frozen=True, eq=False)
class _OpenFile:
    """A file that was read: its uncompressed pixels, or what pydicom made of it."""

    source: Source
    pixels: memoryview | None
    dataset: Dataset | None


def _is_plain(header: Header) -> bool:
    """Whether the pixels may lie in the file as they are, by the header."""
    return (
        header.transfer_syntax in _NATIVE
        and header.samples == 1
        and header.photometric in _GREY
        and header.bits_allocated in (1, 8, 16, 32)
        and 1 <= header.bits_stored <= header.bits_allocated
        and header.pixel_representation in (0, 1)
        and min(header.rows, header.columns, header.frames) > 0
    )


def _check_same(header: Header, uid: str, sizes: Sequence[int]) -> None:
    """The file must still be the one whose header was read: another one's pixels at this place make a wrong volume."""
    described = [header.rows, header.columns, header.bits_allocated, header.bits_stored, header.pixel_representation]
    if (uid and uid != header.sop_uid) or list(sizes) != described:
        raise DicomError("F03", "a file that changed after its header was read", "the same file")


def _native_pixels(data: bytes, header: Header) -> memoryview | None:
    """The value of PixelData, or None where pydicom has to look."""
    try:
        found = walk(data, _IDENTITY, complete=True)
    except UnsureError:
        return None
    keywords = [keyword for _, keyword in _IDENTITY.values()]
    values = [found.values.get(keyword, b"") for keyword in keywords]
    tag, start, length = found.pixels or (None, 0, None)
    if tag != _PIXEL_DATA or length is None or len(data) > start + length:
        return None  # what follows the pixels has to be looked at, too: it may be damage
    _check_same(
        header, values[0].rstrip(b"\0 ").decode("latin-1"), [int.from_bytes(raw, "little") for raw in values[1:]]
    )
    return memoryview(data)[start : start + length]


def _native_frame(pixels: memoryview, header: Header) -> NDArray[Any]:
    """One frame of uncompressed pixels: (rows, columns)."""
    count, bits, index = header.rows * header.columns, header.bits_allocated, header.frame or 0
    if count * bits // 8 > MAX_FRAME_BYTES:
        raise DicomError("F06", f"{count * bits // 8} bytes in a frame", f"1 to {MAX_FRAME_BYTES} bytes")
    if not len(pixels):
        raise DicomError("F04", "no pixel data", f"{math.ceil(count * bits * header.frames / 8)} bytes")
    _check_length(len(pixels), count * bits, header.frames)
    first = index * count
    if bits == 1:
        packed = np.frombuffer(pixels[first // 8 : math.ceil((first + count) / 8)], np.uint8)
        unpacked = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + count]
        return unpacked.reshape(header.rows, header.columns)
    kind = np.dtype(f"<{'ui'[header.pixel_representation]}{bits // 8}")
    values: NDArray[Any] = np.frombuffer(pixels, kind, count, first * kind.itemsize)
    unused = bits - header.bits_stored
    # Shifted up and down again: clears what stands above BitsStored, and extends the sign.
    values = values << unused >> unused if unused else values
    return values.reshape(header.rows, header.columns)


class PixelReader:
    """Reads the pixels of instances and of frames, the fast way where they are not compressed.

    The file used last stays open as long as frames are asked for, so that reading them one after the other reads and
    parses it once.
    """

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader
        self._open: _OpenFile | None = None

    def stored(self, header: Header) -> Stored:
        """Stored values of an instance, or of the frame that the header stands for, as they are: no rescaling.

        Bits above BitsStored are cleared. Colour is RGB.

        Raises:
            DicomError: F03 broken, or not the file whose header was read; F04 short, absent or undecodable pixels, or
                another size than stated; F05 no decoder; F06 over a limit; see `SourceReader.read` too.
        """
        if header.frame is None and header.frames > 1:
            raise DicomError("F04", f"{header.frames} frames", "one frame")
        if header.frame is not None and not 0 <= header.frame < header.frames:
            raise DicomError("F04", f"frame {header.frame}", f"one of {header.frames} frames")
        file = self._open if self._open is not None and self._open.source == header.source else self._read(header)
        self._open = None if header.frame is None else file
        if file.pixels is not None:
            return Stored(_native_frame(file.pixels, header), "native")
        assert file.dataset is not None
        return _decoded(file.dataset, header.frame)

    def _read(self, header: Header) -> _OpenFile:
        self._open = None  # so that two files are never held at once
        data = self._reader.read(header.source)
        pixels = _native_pixels(data, header) if _is_plain(header) else None
        if pixels is not None:
            return _OpenFile(header.source, pixels, None)
        dataset = read_dataset(data, pixels=True)
        if header.rows and "PixelData" not in dataset:  # a cut file reads as one without its last elements
            raise DicomError("F04", "no whole pixel data", f"{header.rows} rows of {header.columns} columns")
        with parsing():
            fresh = header_from_dataset(dataset, header.source)
            dataset.get("PixelData")  # its value is made now, and broken ones raise
        sizes = [fresh.rows, fresh.columns, fresh.bits_allocated, fresh.bits_stored, fresh.pixel_representation]
        _check_same(header, fresh.sop_uid, sizes)
        return _OpenFile(header.source, None, dataset)


def inverted(stored: NDArray[Any], bits_stored: int, signed: bool) -> NDArray[Any]:
    """Stored values of a MONOCHROME1 image turned so that larger is brighter.

    Args:
        stored: any shape.
        bits_stored: BitsStored.
        signed: PixelRepresentation is 1.
    """
    top = -1 if signed else (1 << bits_stored) - 1
    return (top - stored.astype(np.int64)).astype(np.int32)


def _exact(stored: NDArray[Any], slope: float, intercept: float) -> bool:
    """Whether the real values are whole numbers that int16 holds."""
    if slope != 1 or not float(intercept).is_integer() or not np.issubdtype(stored.dtype, np.integer):
        return False
    return int(stored.min()) + int(intercept) >= _INT16.min and int(stored.max()) + int(intercept) <= _INT16.max


def _add(stored: NDArray[Any], offset: int, target: NDArray[np.int16]) -> None:
    """Write stored + offset, known to fit."""
    if stored.dtype.itemsize == 2 and stored.dtype.isnative:
        # Arithmetic modulo 2**16 is exact where the sum fits, and needs no wider numbers in between.
        np.add(stored.view(np.uint16), np.uint16(offset % 2**16), out=target.view(np.uint16))
    else:
        target[...] = stored.astype(np.int64) + offset


def rescale_stack(
    slices: Iterable[NDArray[Any]],
    slopes: Sequence[float],
    intercepts: Sequence[float],
    places: Sequence[int] | None = None,
) -> NDArray[Any]:
    """Real values of a stack: stored x slope + intercept, each slice with its own.

    Padding outside the field of view is left as it is. Slices are taken one by one, so that a generator of them never
    has two copies of the volume in memory.

    Args:
        slices: (rows, columns) each; at least one.
        slopes: one for each slice.
        intercepts: one for each slice.
        places: which slice of the volume each becomes; None where they come in order.

    Returns:
        (columns, rows, slices), int16 where that is exact (all slopes 1, whole intercepts, values fit), else float32.

    Raises:
        DicomError: F04 a slice of another size than the first.
    """
    rest = iter(slices)
    first = next(rest)
    volume = np.empty((*first.shape[::-1], len(slopes)), np.int16, order="F")
    order = range(len(slopes)) if places is None else places
    for index, stored, slope, intercept in zip(order, chain([first], rest), slopes, intercepts, strict=True):
        if stored.shape != first.shape:
            raise DicomError("F04", f"a slice of {stored.shape}", f"{first.shape} as the first")
        if volume.dtype == np.int16 and not _exact(stored, slope, intercept):
            volume = volume.astype(np.float32, order="F")  # what is there already is exact in it
        target = volume[:, :, index].T
        if volume.dtype == np.int16:
            _add(stored, int(intercept), target)
        else:
            target[...] = stored * float(slope) + float(intercept)
    return volume
