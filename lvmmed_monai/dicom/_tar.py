"""Tar archives, plain and compressed: read forward in small pieces, members named by us and never by the archive."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

from lvmmed_monai.dicom._members import (
    HEAD_BYTES,
    ArchiveLimits,
    MemberNames,
    Source,
    archive_kind,
    broken_archive,
    check_size,
    check_total,
    looks_nested,
    nested_archive,
    too_many_members,
)
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.errors import UserError

__all__ = ["TarArchive", "begins_tar"]

_PIECE_BYTES = 1024**2
_HEADER_BYTES = 64 * 1024
"""A header (long names, extended ones) may have this much; `tarfile` reads one at once, whatever size it claims."""
_XZ_MEMORY_BYTES = 256 * 1024**2
_GLOBAL_HEADERS = 1000
# RecursionError: a chain of headers that each announce the next one.
_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError)


class _Xz(io.RawIOBase):
    """Unpacks xz within limited memory: its header may ask for a dictionary of 4 GB, and `lzma.open` obeys."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._decoder.eof:
            packed = self._file.read(_HEADER_BYTES) if self._decoder.needs_input else b""
            if not packed and self._decoder.needs_input:
                raise EOFError("xz data end too early")
            data = self._decoder.decompress(packed, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0


def _unpacked(file: IO[bytes], kind: str) -> IO[bytes]:
    if kind == "gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if kind == "bz2":
        return bz2.BZ2File(file)
    return io.BufferedReader(_Xz(file)) if kind == "xz" else file


def begins_tar(path: Path, kind: str) -> bool:
    """Whether a compressed file holds a tar archive."""
    try:
        with path.open("rb") as file:
            return archive_kind(_unpacked(file, kind).read(HEAD_BYTES)) == "tar"
    except _ERRORS:
        return False


class _Stream:
    """The bytes of an unpacked tar, forward only. `tarfile` reads headers through it, of limited size."""

    def __init__(self, path: Path, kind: str, limits: ArchiveLimits) -> None:
        self._file = path.open("rb")
        self._bytes = _unpacked(self._file, kind)
        self._plain = kind == "tar"
        self._packed = os.fstat(self._file.fileno()).st_size
        self._limits = limits
        self._position = 0
        self.last = b""

    def close(self) -> None:
        if self._bytes is not self._file:
            self._bytes.close()
        self._file.close()

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise DicomError("F06", "a tar header larger than the limit", f"at most {_HEADER_BYTES} bytes")
        self.last = self._piece(size)
        return self.last

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("a member before the one read last")
        if self._plain:
            self._position = self._file.seek(position)
            return
        for _ in self.pieces(position - self._position):
            continue

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes, piece by piece; raises EOFError if there are fewer."""
        while size:
            piece = self._piece(min(size, _PIECE_BYTES))
            if not piece:
                raise EOFError("the archive ends within a member")
            size -= len(piece)
            yield piece

    def _piece(self, size: int) -> bytes:
        data = self._bytes.read(size)
        self._position += len(data)
        check_total(self._position, self._limits)
        ratio = self._position / max(self._packed, 1)
        if not self._plain and self._position >= self._limits.ratio_from_bytes and ratio > self._limits.ratio:
            limit = self._limits.ratio
            raise DicomError("F06", f"an archive that unpacks {ratio:.0f} fold or more", f"at most {limit:.0f} fold")
        return data


class TarArchive:
    """A tar archive, plain ("tar") or compressed ("gz", "bz2", "xz")."""

    def __init__(self, path: Path, kind: str, limits: ArchiveLimits) -> None:
        self.path, self.kind, self.limits = path, kind, limits
        self._stream: _Stream | None = None
        self._index: dict[str, Source] = {}

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def members(self, scratch: Path | None = None) -> tuple[list[Source], list[DicomError]]:
        """Members that may be read, and why others may not.

        Args:
            scratch: folder to unpack a compressed archive to, in one pass; None to leave it packed.

        Raises:
            DicomError: F03 it is broken; F06 it is over the limits as a whole.
            UserError: the scratch folder cannot be written to.
        """
        folder = None
        if scratch is not None and self.kind != "tar":
            folder = Path(tempfile.mkdtemp(prefix="tar-", dir=scratch))  # mkdtemp makes it with mode 0700
        try:
            return self._listed(folder)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def read(self, source: Source, size: int | None = None) -> bytes:
        """A member's first ``size`` bytes, or all of them; from where it was unpacked to, or from the archive.

        Raises:
            DicomError: F03 it is absent or the archive is damaged; F06 it is over a limit.
        """
        if source.offset < 0:
            source = self._found(source.member)
        check_size(source.size, self.limits)
        wanted = source.size if size is None else min(size, source.size)
        try:
            if source.scratch:
                with open(source.scratch, "rb") as file:
                    return file.read(wanted)
            return b"".join(self._stream_at(source.offset).pieces(wanted))
        except _ERRORS:
            raise DicomError("F03", "a damaged member of an archive", "a whole member") from None

    def _stream_at(self, offset: int) -> _Stream:
        if self._stream is not None and self._stream.tell() > offset:
            self.close()
        if self._stream is None:
            self._stream = _Stream(self.path, self.kind, self.limits)
        self._stream.seek(offset)
        return self._stream

    def _found(self, member: str) -> Source:
        if not self._index:
            self._index = {source.member: source for source in self._listed(None)[0]}
        if member not in self._index:
            raise DicomError("F03", "a member that is not in its archive", "the archive as it was listed")
        return self._index[member]

    def _listed(self, folder: Path | None) -> tuple[list[Source], list[DicomError]]:
        sources: list[Source] = []
        problems: list[DicomError] = []
        names = MemberNames()
        stream = None
        try:
            stream = _Stream(self.path, self.kind, self.limits)
            for number, info in enumerate(_infos(stream, self.limits)):
                source = Source(str(self.path), names.unique(info.name), info.offset_data, info.size)
                problem, head = _looked_at(info, stream, self.limits)
                if problem is not None:
                    problems.append(problem)
                    continue
                if folder is not None:
                    source = replace(source, scratch=str(folder / f"{number:07d}"))
                    _write(Path(source.scratch), chain([head], stream.pieces(info.size - len(head))))
                sources.append(source)
        except UserError:
            raise
        except _ERRORS:
            raise broken_archive() from None
        finally:
            if stream is not None:
                stream.close()
        return sources, problems


def _infos(stream: _Stream, limits: ArchiveLimits) -> Iterator[tarfile.TarInfo]:
    """Headers of all members but folders, in the order of the archive."""
    archive = tarfile.TarFile(fileobj=cast(Any, stream), encoding="utf-8", errors="replace")
    count = 0
    while (info := archive.next()) is not None:
        cast(Any, archive).members.clear()  # it would keep all of them
        count += 1
        if count > limits.members:
            raise too_many_members(limits)
        if len(archive.pax_headers) > _GLOBAL_HEADERS:
            raise DicomError("F06", f"more than {_GLOBAL_HEADERS} global headers in a tar archive", "few or none")
        if not info.isdir():
            yield info
    # `tarfile` ends without an error at a damaged header, and where a file was cut between two members.
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise broken_archive()


def _looked_at(info: tarfile.TarInfo, stream: _Stream, limits: ArchiveLimits) -> tuple[DicomError | None, bytes]:
    """Why a member is not taken, or None; and the first bytes, as far as they had to be read for that."""
    if not info.isreg() or info.issparse():
        return DicomError("F02", "a link or special member of an archive, which is not followed", "files"), b""
    try:
        check_size(info.size, limits)
    except DicomError as problem:
        return problem, b""
    if not looks_nested(info.name):
        return None, b""
    head = b"".join(stream.pieces(min(info.size, HEAD_BYTES)))
    return (nested_archive() if archive_kind(head) else None), head


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a new file that only the owner may read."""
    with _scratch_errors(path.parent.parent):
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "wb") as file:
        for piece in pieces:
            with _scratch_errors(path.parent.parent):
                file.write(piece)
        with _scratch_errors(path.parent.parent):
            file.flush()


@contextmanager
def _scratch_errors(scratch: Path) -> Iterator[None]:
    """A full disk is no fault of the archive."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"an archive cannot be unpacked ({error.strerror}); {scratch}; free some space, or unpack it yourself"
        ) from None
