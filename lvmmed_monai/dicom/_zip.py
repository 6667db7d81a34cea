"""Zip archives: members are streamed within limits, and nothing is written."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

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

__all__ = ["ZipArchive"]

_ENTRY_MAGIC = b"PK\x01\x02"
_ENTRY_BYTES = 1024  # far more than an entry of the table of contents has on average
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1
# Other methods hand out whatever one piece unpacks to, so that a limit cannot be kept.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ERRORS = (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError, EOFError, zlib.error)


class _CountedEntries(io.BufferedReader):
    """Refuses a table of contents of too many entries before `zipfile` makes an object of each."""

    limits: ArchiveLimits | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limits is not None and size is not None and size > self.limits.members * _ENTRY_BYTES:
            raise too_many_members(self.limits)
        data = super().read(size)
        if self.limits is not None and data.count(_ENTRY_MAGIC) > self.limits.members:
            raise too_many_members(self.limits)
        return data


class ZipArchive:
    """An open zip archive.

    Raises:
        DicomError: F03 it is broken; F06 it is over the limits as a whole, or its members overlap.
    """

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        self.path, self.limits = path, limits
        file = _CountedEntries(io.FileIO(path))
        try:
            file.limits = limits
            self._zip = zipfile.ZipFile(file)
            file.limits = None
            names = MemberNames()
            infos = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
            self._infos = {names.unique(info.filename): info for info in infos}
            _refuse_overlaps(infos, self._zip.start_dir)
            check_total(sum(info.file_size for info in infos), limits)
        except DicomError:
            file.close()
            raise
        except _ERRORS:
            file.close()
            raise broken_archive() from None
        self._file = file

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    def members(self) -> tuple[list[Source], list[DicomError]]:
        """Members that may be read, and why others may not."""
        sources: list[Source] = []
        problems: list[DicomError] = []
        for member in self._infos:
            try:
                self._check(self._infos[member])
                if looks_nested(member) and archive_kind(self.read(Source(str(self.path), member), HEAD_BYTES)):
                    raise nested_archive()
            except DicomError as problem:
                problems.append(problem)
            else:
                sources.append(Source(str(self.path), member))
        return sources, problems

    def read(self, source: Source, size: int | None = None) -> bytes:
        """A member's first ``size`` bytes, or all of them.

        Raises:
            DicomError: F03 it is absent, damaged, encrypted or of another size than it says; F06 it is over a limit.
        """
        info = self._infos.get(source.member)
        if info is None:
            raise DicomError("F03", "a member that is not in its archive", "the archive as it was listed")
        self._check(info)
        try:
            with self._zip.open(info) as stream:
                # One byte more than it says, so that the end is reached and the check sum looked at.
                data = stream.read(info.file_size + 1 if size is None else min(size, info.file_size))
        except _ERRORS:
            raise DicomError("F03", "a damaged member of an archive", "a whole member") from None
        if size is None and len(data) != info.file_size:
            raise DicomError("F03", f"a member of {len(data)} bytes", f"{info.file_size} bytes, as its archive says")
        return data

    def _check(self, info: zipfile.ZipInfo) -> None:
        limits = self.limits
        check_size(info.file_size, limits)
        ratio = info.file_size / max(info.compress_size, 1)
        if info.file_size >= limits.ratio_from_bytes and ratio > limits.ratio:
            raise DicomError("F06", f"a member that unpacks {ratio:.0f} fold", f"at most {limits.ratio:.0f} fold")
        if info.flag_bits & _ENCRYPTED:
            raise DicomError("F03", "an encrypted member of an archive", "a member without a password")
        if info.compress_type not in _METHODS:
            raise DicomError("F03", f"a member packed by method {info.compress_type}", "stored or deflated members")


def _refuse_overlaps(infos: list[zipfile.ZipInfo], table: int) -> None:
    """Raise F06 when members share bytes: this is how a small archive unpacks to any size.

    Args:
        infos: the members.
        table: where the table of contents begins, which is behind all members.
    """
    starts = sorted((info.header_offset, info.compress_size) for info in infos)
    ends = [start + _LOCAL_HEADER_BYTES + size for start, size in starts]
    following = [start for start, _ in starts[1:]] + [table]
    overlaps = sum(end > start for end, start in zip(ends, following, strict=True)) if infos else 0
    if overlaps:
        raise DicomError("F06", f"{overlaps} members that overlap in their archive", "members one after another")
