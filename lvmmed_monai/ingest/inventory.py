"""The first two stages: which files there are, and their headers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from lvmmed_monai.dicom.archive import Source, SourceReader, archive_members, is_archive, walk_files
from lvmmed_monai.dicom.headers import Header, read_header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.checks import files as file_checks
from lvmmed_monai.ingest.findings import Finding, run_checks
from lvmmed_monai.ingest.routes import route

__all__ = ["Inventory", "Progress", "no_progress", "read_headers", "take_inventory"]

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_IMAGE_ROUTES = ("stack", "multi-frame", "segmentation")

Item = TypeVar("Item")


class Progress(Protocol):
    """Wraps an iterable to show how far it is."""

    def __call__(self, iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        """Yield from ``iterable``."""


def no_progress(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Show nothing."""
    return iter(iterable)


@dataclass
class Inventory:
    """What lies in the source folder.

    Attributes:
        files: number of files, archives counted once.
        archives: number of archives among them.
        sources: instances to look at.
        findings: files and members that are out already.
    """

    files: int = 0
    archives: int = 0
    sources: list[Source] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def take_inventory(src: Path, skip: Sequence[Path], progress: Progress = no_progress) -> Inventory:
    """List the files of a folder and the members of the archives in it.

    Args:
        src: folder or file.
        skip: folders and files that are not entered.
        progress: shows how far it is.
    """
    inventory = Inventory()
    for path in progress(walk_files(src, skip), "listing files"):
        inventory.files += 1
        try:
            if is_archive(path):
                inventory.archives += 1
                members, errors = archive_members(path)
                inventory.sources += members
                inventory.findings += [file_checks.from_error(error) for error in errors]
            else:
                inventory.sources.append(Source(str(path.absolute())))
        except DicomError as error:
            inventory.findings.append(file_checks.from_error(error))
        except OSError:
            unreadable = DicomError("F03", "a file that cannot be opened", "a readable file")
            inventory.findings.append(file_checks.from_error(unreadable))
    return inventory


def read_headers(
    sources: Sequence[Source], reader: SourceReader, progress: Progress = no_progress
) -> tuple[list[Header], list[Finding]]:
    """Read all headers; a bad file costs one finding and never the run. Media directories are passed over."""
    headers: list[Header] = []
    findings: list[Finding] = []
    for source in progress(sources, "reading headers", len(sources)):
        try:
            header = read_header(reader.read(source), source)
        except DicomError as error:
            findings.append(file_checks.from_error(error))
            continue
        if header.sop_class == _MEDIA_DIRECTORY:
            continue
        found = run_checks(file_checks.CHECKS, header) if route(header) in _IMAGE_ROUTES else []
        findings += found
        if not found:
            headers.append(header)
    return headers, findings
