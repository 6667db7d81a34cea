"""An array in one file, cut into chunks, so that a window of a large volume lies on few pages of the disk.

    header    128 bytes: {"format": "lvmmed-volume/1", "shape": [C, X, Y, Z], "dtype", "chunk"}, then blanks
    chunks    of ``chunk`` voxels an edge and one channel, at the far borders smaller, in C order, as voxels are in each

Chunks are not filled up, so that the file is no larger than the plain array, and where a chunk begins is a formula.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.files import atomic_path

__all__ = ["ChunkedFile", "open_chunks", "write_chunks"]

_FORMAT = "lvmmed-volume/1"
_HEADER = 128
# 32 KiB at 8 bits: few chunks are touched in vain by a window of 64 voxels, and each is read in one go.
CHUNK = 32


class ChunkedFile(NamedTuple):
    """What stands in the header of a file at ``path``."""

    path: str
    shape: tuple[int, int, int, int]
    dtype: str
    chunk: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def read(self, box: Sequence[tuple[int, int]], out: NDArray[Any]) -> None:
        """Copy a part of the array, converted to the type of ``out``.

        Args:
            box: (first, end) along x, y and z, not empty and within the array.
            out: (C, X, Y, Z) of the box's size.
        """
        # Opened anew each time: one file kept open a volume would exceed what a process may have.
        with open(self.path, "rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        flat = np.frombuffer(mapped, self.dtype, offset=_HEADER)
        along_x, along_y, along_z = (list(_spans(first, end, self.chunk)) for first, end in box)
        columns = list(product(range(self.shape[0]), along_x, along_y))
        for channel, x, y in columns:
            # The chunks of a column follow each other. All are asked for before the first is waited for.
            first, _ = self._place(channel, x.start, y.start, along_z[0].start)
            last, lengths = self._place(channel, x.start, y.start, along_z[-1].start)
            start = (_HEADER + first * flat.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
            end = _HEADER + (last + lengths[0] * lengths[1] * lengths[2]) * flat.itemsize
            mapped.madvise(mmap.MADV_WILLNEED, start, end - start)
        for (channel, x, y), z in product(columns, along_z):
            first, lengths = self._place(channel, x.start, y.start, z.start)
            chunk = flat[first : first + lengths[0] * lengths[1] * lengths[2]].reshape(lengths)
            out[channel, x.out, y.out, z.out] = chunk[x.inside, y.inside, z.inside]

    def _place(self, channel: int, x: int, y: int, z: int) -> tuple[int, tuple[int, int, int]]:
        """Where the chunk that begins at (x, y, z) begins in the file, in values, and its size."""
        _, x_all, y_all, z_all = self.shape
        lengths = min(self.chunk, x_all - x), min(self.chunk, y_all - y), min(self.chunk, z_all - z)
        before = x * y_all * z_all + lengths[0] * (y * z_all + lengths[1] * z)
        return channel * x_all * y_all * z_all + before, lengths


class _Span(NamedTuple):
    """The part of a row of voxels that lies in one chunk: the chunk's start, where in it, and where in the window."""

    start: int
    inside: slice
    out: slice


def _spans(first: int, end: int, chunk: int) -> Iterator[_Span]:
    for start in range(first - first % chunk, end, chunk):
        low, high = max(first, start), min(end, start + chunk)
        yield _Span(start, slice(low - start, high - start), slice(low - first, high - first))


def write_chunks(path: Path, array: NDArray[Any], chunk: int = CHUNK) -> None:
    """Write an array (C, X, Y, Z); the file is whole or absent."""
    about = {"format": _FORMAT, "shape": list(array.shape), "dtype": str(array.dtype), "chunk": chunk}
    header = json.dumps(about).encode().ljust(_HEADER)
    starts = [range(0, extent, chunk) for extent in array.shape[1:]]
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(header)
        for channel, x, y, z in product(array, *starts):
            stream.write(channel[x : x + chunk, y : y + chunk, z : z + chunk].tobytes())


def open_chunks(path: Path) -> ChunkedFile | None:
    """The header of a file; None where there is no file, or none of this format, or one that is not whole."""
    try:
        with path.open("rb") as stream:
            about = json.loads(stream.read(_HEADER))
            size = stream.seek(0, 2)
    except (FileNotFoundError, ValueError):
        return None
    if about.get("format") != _FORMAT:
        return None
    found = ChunkedFile(str(path), tuple(about["shape"]), about["dtype"], about["chunk"])
    return found if size == _HEADER + found.nbytes else None
