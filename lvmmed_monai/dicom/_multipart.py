"""Splits a multipart answer into files while it arrives, so that no series has to fit into memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO

__all__ = ["Multipart", "MultipartError"]

_HEADER_BYTES = 64 * 1024


class MultipartError(Exception):
    """An answer is not what it says. The text holds numbers and our own words only."""


class Multipart:
    """The parts of one answer, each in a new file that only the owner may read.

    A part counts only when the mark behind it has arrived, so a cut answer never leaves a cut file.

    Args:
        boundary: the mark between parts, from the header; None when the answer is one part without marks.
        folder: where the files are made.
        limit: bytes that one part may have.
    """

    def __init__(self, boundary: bytes | None, folder: Path, limit: int) -> None:
        self._mark = b"\r\n--" + boundary if boundary is not None else None
        self._folder, self._limit = folder, limit
        # The first mark may stand at the very beginning, without the line break before it.
        self._buffer = bytearray(b"\r\n" if boundary is not None else b"")
        self._in_headers = False
        self._file: IO[bytes] | None = None if boundary is not None else self._new_file()
        self._size = 0
        self.closed = False

    def feed(self, data: bytes) -> list[Path]:
        """Take the next bytes; returns the files of the parts that became whole."""
        self._buffer += data
        whole: list[Path] = []
        while not self.closed and (self._headers() if self._in_headers else self._body(whole)):
            continue
        return whole

    def end(self) -> list[Path]:
        """Take note that nothing follows.

        Raises:
            MultipartError: the answer ended before its last mark.
        """
        if self._mark is None:
            self._write(len(self._buffer))
            self.closed = True
            return [self._finished()]
        if not self.closed:
            raise MultipartError("the answer ended too early")
        return []

    def abandon(self) -> None:
        """Remove the file of a part that is not whole."""
        if self._file is not None:
            self._file.close()
            os.unlink(self._file.name)
        self._file = None

    def _headers(self) -> bool:
        """Pass over the headers of a part; False while they are not all there."""
        if self._buffer.startswith(b"--"):
            self.closed = True
            return False
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEADER_BYTES:
                raise MultipartError(f"a part has more than {_HEADER_BYTES} bytes of headers")
            return False
        del self._buffer[: end + 4]
        self._file, self._size, self._in_headers = self._new_file(), 0, False
        return True

    def _body(self, whole: list[Path]) -> bool:
        """Write what surely belongs to the part; False while the mark behind it is not there."""
        at = self._buffer.find(self._mark) if self._mark is not None else -1
        if at < 0:
            # The end may be the beginning of a mark.
            self._write(max(0, len(self._buffer) - len(self._mark or b"")))
            return False
        self._write(at)
        if self._file is not None:
            whole.append(self._finished())
        del self._buffer[: len(self._mark or b"")]
        self._in_headers = True
        return True

    def _new_file(self) -> IO[bytes]:
        handle, name = tempfile.mkstemp(prefix="part-", dir=self._folder)  # mkstemp makes it with mode 0600
        os.close(handle)
        return open(name, "wb")

    def _write(self, count: int) -> None:
        self._size += count
        if self._size > self._limit:
            raise MultipartError(f"a part has more than {self._limit} bytes")
        if self._file is not None:
            self._file.write(self._buffer[:count])
        del self._buffer[:count]

    def _finished(self) -> Path:
        assert self._file is not None
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self._file = None
        return Path(file.name)
