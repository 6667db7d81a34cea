"""Media directories (DICOMDIR): which files of a disc are named in them.

Names in them are taken apart and looked up below the folder of the directory, so that none leads out of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.headers import read_dataset, sop_class_of
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom

__all__ = ["MEDIA_DIRECTORY", "MediaDirectory", "has_directory_name", "is_media_directory", "read_media_directory"]

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a media directory."""

_HEAD_BYTES = 4096
_RECORDS = b"\x04\x00\x20\x12SQ\x00\x00"  # DirectoryRecordSequence, followed by its length
_UNDEFINED_LENGTH = 0xFFFFFFFF
_VERSION = re.compile(r"(;\d+)?$")  # ISO 9660 writes "NAME.;1" for "NAME"


@dataclass(frozen=True)
class MediaDirectory:
    """What a media directory names.

    Attributes:
        files: files that are there, each once, in the order of the directory.
        missing: where named files would lie that are not there.
    """

    files: tuple[Path, ...]
    missing: tuple[Path, ...]


def has_directory_name(path: Path) -> bool:
    """Whether a file is named DICOMDIR, as on a disc."""
    return _plain(path.name) == "dicomdir"


def is_media_directory(path: Path) -> bool:
    """Whether a file says in its first bytes that it is a media directory.

    Raises:
        DicomError: F03 it cannot be read; F06 it is over the limits.
    """
    with SourceReader() as reader:
        head = reader.head(Source(str(path)), _HEAD_BYTES)
    return head[128:132] == b"DICM" and MEDIA_DIRECTORY.encode() in head


def read_media_directory(path: Path) -> MediaDirectory:
    """The files that a media directory names; records that are out of use are passed over.

    Names are compared without regard to upper and lower case and to the version that ISO 9660 appends.

    Raises:
        DicomError: F01, F02, F03 it is no media directory, or damaged; F06 it is over the limits.
    """
    with SourceReader() as reader:
        data = reader.read(Source(str(path)))
    names = _referenced_names(data)
    root = path.absolute().parent
    lookup = _Lookup(root)
    found = {name: lookup.find(name) for name in names}
    files = dict.fromkeys(file for file in found.values() if file is not None)
    missing = (root / "missing" if ".." in name else root.joinpath(*name) for name in names if found[name] is None)
    return MediaDirectory(tuple(files), tuple(missing))


def _referenced_names(data: bytes) -> list[tuple[str, ...]]:
    """Each name once, as its parts."""
    dataset = read_dataset(data, pixels=False)
    if sop_class_of(dataset) != MEDIA_DIRECTORY:
        raise DicomError("F02", "no media directory", "a DICOMDIR")
    _refuse_cut(data)
    names: dict[tuple[str, ...], None] = {}
    with silent_pydicom():
        try:
            for record in dataset.get("DirectoryRecordSequence") or []:
                parts = record.get("ReferencedFileID")
                if parts and record.get("RecordInUseFlag") != 0:
                    names[_parts(parts)] = None
        except Exception as error:
            # Values are parsed here, and whatever broken ones make the parser raise, its text may hold them.
            raise DicomError("F03", f"parsing ended with {type(error).__name__}", "a whole DICOMDIR") from None
    return list(names)


def _refuse_cut(data: bytes) -> None:
    """Raise F03 when the records claim more bytes than there are: the parser takes what is left as the whole."""
    start = data.find(_RECORDS)
    if start < 0:
        return
    length = int.from_bytes(data[start + 8 : start + 12], "little")
    if length != _UNDEFINED_LENGTH and start + 12 + length > len(data):
        raise DicomError("F03", f"{len(data) - start - 12} bytes of records", f"{length} bytes")


def _parts(value: object) -> tuple[str, ...]:
    """Parts of a name; some writers give one text with slashes in place of several values."""
    values = [value] if isinstance(value, str) else list(value)  # type: ignore[call-overload]
    return tuple(part for text in values for part in re.split(r"[/\\]", str(text).strip()) if part)


def _plain(name: str) -> str:
    return _VERSION.sub("", name.lower(), count=1).rstrip(".")


class _Lookup:
    """Finds files below a folder by names of a disc; links are not followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[Path, dict[str, Path]] = {}

    def find(self, parts: tuple[str, ...]) -> Path | None:
        """The file, or None if there is none of this name below the folder."""
        path: Path | None = self.root
        for part in parts:
            if path is None or part in (".", ".."):
                return None
            listing = self._listing(path)
            path = listing.get(part) or listing.get(_plain(part))
        return path if path is not None and path.is_file() else None

    def _listing(self, folder: Path) -> dict[str, Path]:
        """Entries by their plain names, and by their own, which win."""
        if folder not in self._listings:
            try:
                entries = sorted(entry for entry in folder.iterdir() if not entry.is_symlink())
            except OSError:  # a file, or a folder that may not be listed: nothing is found below it
                entries = []
            self._listings[folder] = {_plain(entry.name): entry for entry in reversed(entries)}
            self._listings[folder].update({entry.name: entry for entry in entries})
        return self._listings[folder]
