"""The first stage: which files there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from lvmmed_monai.dicom.archive import Source, archive_members, is_archive, walk_files
from lvmmed_monai.dicom.dicomdir import has_directory_name, is_media_directory, read_media_directory
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.checks import files as file_checks
from lvmmed_monai.ingest.findings import Finding

__all__ = ["BadFile", "Inventory", "Progress", "no_progress", "take_inventory"]

Item = TypeVar("Item")


class Progress(Protocol):
    """Wraps an iterable to show how far it is."""

    def __call__(self, iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        """Yield from ``iterable``."""


def no_progress(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Show nothing."""
    return iter(iterable)


@dataclass(frozen=True)
class BadFile:
    """An instance, or an archive, that cannot be used, and why."""

    source: Source
    finding: Finding

    @classmethod
    def of(cls, path: Path, error: DicomError, member: str = "") -> BadFile:
        """From the error that it brought about."""
        return cls(Source(str(path.absolute()), member), file_checks.from_error(error))


@dataclass
class Inventory:
    """What lies in the source folder.

    Attributes:
        files: number of files, archives counted once.
        archives: number of archives among them.
        sources: instances to look at.
        bad: files and members that are out already.
    """

    files: int = 0
    archives: int = 0
    sources: list[Source] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)


def take_inventory(
    src: Path, skip: Sequence[Path], progress: Progress = no_progress, scratch: Path | None = None
) -> Inventory:
    """List the files of a folder, or those that a media directory names, and the members of the archives among them.

    Args:
        src: folder, file or media directory (DICOMDIR).
        skip: folders and files that are not entered.
        progress: shows how far it is.
        scratch: where compressed tar archives are unpacked to, of the caller who removes it; None to leave them packed.

    Raises:
        UserError: the scratch folder cannot be written to.
    """
    inventory = Inventory()
    for path in progress(walk_files(src, skip), "listing files"):
        inventory.files += 1
        try:
            if (path == src or has_directory_name(path)) and is_media_directory(path):
                _take_media_directory(path, inventory, with_files=path == src)
            elif is_archive(path):
                _take_archive(path, inventory, scratch)
            else:
                inventory.sources.append(Source(str(path.absolute())))
        except DicomError as error:
            inventory.bad.append(BadFile.of(path, error))
        except OSError:
            unreadable = DicomError("F03", "a file that cannot be opened", "a readable file")
            inventory.bad.append(BadFile.of(path, unreadable))
    return inventory


def _take_archive(path: Path, inventory: Inventory, scratch: Path | None) -> None:
    inventory.archives += 1
    members, errors = archive_members(path, scratch=scratch)
    inventory.sources += members
    # What stands in front of its members' names, so that the finding belongs to the archive and not to its folder.
    inventory.bad += [BadFile.of(path, error, member="-") for error in errors]


def _take_media_directory(path: Path, inventory: Inventory, *, with_files: bool) -> None:
    """Note what is missing; take the files only when they are not met by walking through the folder anyway."""
    directory = read_media_directory(path)
    missing = DicomError("F07", "a file that the media directory names is missing", "all files of the disc")
    inventory.bad += [BadFile.of(file, missing) for file in directory.missing]
    if with_files:
        inventory.files += len(directory.files)
        inventory.sources += [Source(str(file)) for file in directory.files]
