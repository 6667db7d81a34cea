"""Where instances lie: plain files, and members of zip and tar archives that are read within limits.

No member is ever written under its own name. Archives inside archives are not opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from lvmmed_monai.dicom._members import (
    ARCHIVE_ENDINGS,
    DEFAULT_LIMITS,
    HEAD_BYTES,
    ArchiveLimits,
    Source,
    archive_kind,
    broken_archive,
    check_size,
)
from lvmmed_monai.dicom._tar import TarArchive, begins_tar
from lvmmed_monai.dicom._zip import ZipArchive
from lvmmed_monai.dicom.problems import DicomError

__all__ = [
    "DEFAULT_LIMITS",
    "ArchiveLimits",
    "Source",
    "SourceReader",
    "archive_members",
    "is_archive",
    "walk_files",
]


def walk_files(root: str | os.PathLike[str], skip: Iterable[Path] = ()) -> Iterator[Path]:
    """Files below ``root`` in sorted order; links are not followed and hidden files are left out.

    Args:
        root: a folder, or a single file.
        skip: folders and files that are not entered (the output folder, the site key).
    """
    start = Path(root)
    if start.is_file():
        yield start
        return
    skipped = {path.resolve() for path in skip}
    for folder, names, files in os.walk(start, followlinks=False):
        names[:] = sorted(n for n in names if not n.startswith(".") and Path(folder, n).resolve() not in skipped)
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and not path.is_symlink() and path.is_file() and path.resolve() not in skipped:
                yield path


def _kind(path: Path) -> str:
    """Kind of an archive by its first bytes; "" for any other file, also for one that is merely compressed."""
    with path.open("rb") as stream:
        kind = archive_kind(stream.read(HEAD_BYTES))
    return kind if kind in ("", "zip", "tar") or begins_tar(path, kind) else ""


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive (plain, gzip, bzip2, xz): by its bytes, not by its name.

    Files with the ending of another format are not looked into: many formats are zip files too.
    """
    return path.suffix.lower() in ARCHIVE_ENDINGS and bool(_kind(path))


def _opened(path: Path, limits: ArchiveLimits) -> ZipArchive | TarArchive:
    try:
        kind = _kind(path)
    except OSError:
        raise broken_archive() from None
    if not kind:
        raise broken_archive()
    return ZipArchive(path, limits) if kind == "zip" else TarArchive(path, kind, limits)


def archive_members(
    path: Path, limits: ArchiveLimits = DEFAULT_LIMITS, scratch: Path | None = None
) -> tuple[list[Source], list[DicomError]]:
    """The members of an archive that may be read, and why others may not; folders in it are passed over.

    Args:
        path: the archive.
        limits: what it may hold.
        scratch: a folder of mode 0700, of the caller who also removes it, to which a compressed tar is unpacked in one
            pass, in files that are named by number. None to leave it packed: then members can still be read, fast only
            in their order.

    Raises:
        DicomError: F03 the archive is broken; F06 it is over the limits as a whole.
        UserError: the scratch folder cannot be written to.
    """
    archive = _opened(Path(os.path.abspath(path)), limits)
    try:
        return archive.members() if isinstance(archive, ZipArchive) else archive.members(scratch)
    finally:
        archive.close()


class SourceReader:
    """Reads the bytes of instances and keeps the archive used last open; use as a context manager."""

    def __init__(self, limits: ArchiveLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._archive: ZipArchive | TarArchive | None = None
        self._path = ""

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive that is open, if any."""
        if self._archive is not None:
            self._archive.close()
        self._archive, self._path = None, ""

    def read(self, source: Source) -> bytes:
        """All bytes of an instance.

        Raises:
            DicomError: F03 it cannot be read; F06 it is larger than the limit.
        """
        return self._member(source, None) if source.member else self._file(source, None)

    def head(self, source: Source, size: int) -> bytes:
        """The first ``size`` bytes of an instance, or all if it has fewer; no more than these are read or unpacked.

        Raises:
            DicomError: F03 it cannot be read; F06 the instance is larger than the limit.
        """
        return self._member(source, size) if source.member else self._file(source, size)

    def _file(self, source: Source, size: int | None) -> bytes:
        try:
            with open(source.path, "rb") as stream:
                length = os.fstat(stream.fileno()).st_size
                check_size(length, self.limits, "a file")
                return stream.read(length if size is None else min(size, length))
        except OSError as error:
            # `from None`: the error's text holds the path.
            raise DicomError("F03", f"unreadable ({type(error).__name__})", "a readable file") from None

    def _member(self, source: Source, size: int | None) -> bytes:
        if self._archive is None or self._path != source.path:
            self.close()
            self._archive, self._path = _opened(Path(source.path), self.limits), source.path
        return self._archive.read(source, size)
