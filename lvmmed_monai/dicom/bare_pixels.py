"""Pixels and nothing beside them: what may hide in the pixel data of an object that leaves the site.

Compressed streams carry comments and application segments, unused high bits old overlays, and bytes behind the last
pixel anything. So the pixels are decoded and written natively; nothing else of the stream is taken over.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from lvmmed_monai.dicom.decoders import decode_frame
from lvmmed_monai.dicom.pixels import check_pixel_length, pixel_length
from lvmmed_monai.dicom.problems import DicomError

__all__ = ["bare_pixels"]


def bare_pixels(dataset: Dataset) -> bytes:
    """Native little-endian pixel data of all frames, of even length; bits above BitsStored are cleared.

    Args:
        dataset: one sample a pixel; 1, 8, 16 or 32 bits allocated.

    Raises:
        DicomError: R03 colour; P04 its stored bits do not begin at bit 0, where overlays may hide; F03 to F06 as
            `check_pixel_length`.
    """
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise DicomError("R03", "a colour image", "grey pixels")
    check_pixel_length(dataset)
    bits, stored = int(dataset.BitsAllocated), int(dataset.get("BitsStored", 0) or dataset.BitsAllocated)
    if int(dataset.get("HighBit", stored - 1)) != stored - 1 or stored > bits:
        raise DicomError("P04", "stored bits that do not begin at bit 0", "pixels without room for hidden overlays")
    if bits == 1 and not _compressed(dataset):
        return _packed(bytes(dataset.PixelData), pixel_length(dataset), _count(dataset))
    frames = int(dataset.get("NumberOfFrames") or 1)
    values = np.stack([decode_frame(dataset, index if frames > 1 else None)[0] for index in range(frames)])
    if values.size != _count(dataset):
        raise DicomError("F04", f"decoded to {values.size} pixels", f"{_count(dataset)} pixels")
    if bits == 1:
        return _even(np.packbits(values.ravel() > 0, bitorder="little").tobytes())
    if values.dtype.kind not in "iu" or values.dtype.itemsize * 8 != bits:
        raise DicomError("F04", f"decoded to {values.dtype.name}", f"whole numbers of {bits} bits")
    return _even(values.astype(values.dtype.newbyteorder("<")).tobytes())


def _count(dataset: Dataset) -> int:
    return int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1)


def _compressed(dataset: Dataset) -> bool:
    meta = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    return syntax is not None and bool(syntax.is_compressed and not syntax.is_deflated)


def _packed(data: bytes, length: int, count: int) -> bytes:
    """Bits as they stand, without what follows the last one."""
    bits = np.frombuffer(data[:length], dtype=np.uint8).copy()
    if count % 8:
        bits[-1] &= (1 << count % 8) - 1
    return _even(bits.tobytes())


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)
