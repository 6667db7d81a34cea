"""Where instances lie: plain files, and members of zip archives that are streamed within limits.

Nothing is extracted to disk. Archives inside archives are not opened.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

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

_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold before it is refused (F06).

    Attributes:
        members: number of members in one archive.
        member_bytes: unpacked size of one member, which is read into memory; holds for plain files too.
        total_bytes: unpacked size of all members of one archive.
        ratio: unpacked through packed size of one member, looked at from ``ratio_from_bytes`` on: small
            empty masks pack far better than any image, and do no harm.
        ratio_from_bytes: see ``ratio``.
    """

    members: int = 200_000
    member_bytes: int = 2 * 1024**3
    total_bytes: int = 256 * 1024**3
    ratio: float = 300.0
    ratio_from_bytes: int = 64 * 1024**2


DEFAULT_LIMITS = ArchiveLimits()


@dataclass(frozen=True, order=True)
class Source:
    """One instance: a file, or a member of the archive at ``path`` (then ``member`` is its name, else "")."""

    path: str
    member: str = ""


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


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive: by its first bytes, and a name that does not belong to another format."""
    if path.suffix.lower() not in ("", ".zip"):
        return False
    with path.open("rb") as stream:
        return stream.read(4) == _ZIP_MAGIC


def _check_member(info: zipfile.ZipInfo, limits: ArchiveLimits) -> None:
    if info.file_size > limits.member_bytes:
        raise DicomError("F06", f"a member of {info.file_size} bytes", f"at most {limits.member_bytes} bytes")
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size >= limits.ratio_from_bytes and ratio > limits.ratio:
        raise DicomError("F06", f"a member that unpacks {ratio:.0f} fold", f"at most {limits.ratio:.0f} fold")


def archive_members(path: Path, limits: ArchiveLimits = DEFAULT_LIMITS) -> tuple[list[Source], list[DicomError]]:
    """The members of a zip archive that may be read, and why others may not.

    Raises:
        DicomError: F03 the archive is broken; F06 it is over the limits as a whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        raise DicomError("F03", "an archive that cannot be opened", "a whole zip archive") from None
    total = sum(info.file_size for info in infos)
    if len(infos) > limits.members:
        raise DicomError("F06", f"{len(infos)} members in one archive", f"at most {limits.members}")
    if total > limits.total_bytes:
        raise DicomError("F06", f"an archive that unpacks to {total} bytes", f"at most {limits.total_bytes} bytes")
    sources: list[Source] = []
    problems: list[DicomError] = []
    for info in infos:
        try:
            _check_member(info, limits)
        except DicomError as problem:
            problems.append(problem)
        else:
            sources.append(Source(os.path.abspath(path), info.filename))
    return sources, problems


class SourceReader:
    """Reads the bytes of instances and keeps the archive used last open; use as a context manager."""

    def __init__(self, limits: ArchiveLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._archive: zipfile.ZipFile | None = None
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
        try:
            return self._member(source) if source.member else self._file(Path(source.path))
        except (OSError, zipfile.BadZipFile, KeyError, RuntimeError, EOFError, NotImplementedError) as error:
            # RuntimeError is what zipfile raises for an encrypted member. The texts of these errors hold names.
            raise DicomError("F03", f"unreadable ({type(error).__name__})", "a readable file or member") from None

    def _file(self, path: Path) -> bytes:
        size = path.stat().st_size
        if size > self.limits.member_bytes:
            raise DicomError("F06", f"a file of {size} bytes", f"at most {self.limits.member_bytes} bytes")
        return path.read_bytes()

    def _member(self, source: Source) -> bytes:
        if self._archive is None or self._path != source.path:
            self.close()
            self._archive, self._path = zipfile.ZipFile(source.path), source.path
        _check_member(self._archive.getinfo(source.member), self.limits)
        return self._archive.read(source.member)
