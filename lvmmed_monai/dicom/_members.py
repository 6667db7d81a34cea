"""What zip and tar archives have in common: limits, names of members, and what a member is called on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from lvmmed_monai.dicom.problems import DicomError

__all__ = [
    "DEFAULT_LIMITS",
    "HEAD_BYTES",
    "ArchiveLimits",
    "MemberNames",
    "Source",
    "archive_kind",
    "broken_archive",
    "check_size",
    "check_total",
    "looks_nested",
    "nested_archive",
    "too_many_members",
]

HEAD_BYTES = 512
"""What `archive_kind` needs to see."""

ARCHIVE_ENDINGS = ("", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz")
"""Other formats are zip files too (arrays, documents); a file with another ending is never taken for an archive."""

_MAGIC = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold before it is refused (F06).

    Attributes:
        members: number of members in one archive.
        member_bytes: unpacked size of one member, which is read into memory; holds for plain files too.
        total_bytes: unpacked size of all members of one archive.
        ratio: unpacked through packed size of one member (of the whole archive if it is a compressed tar), looked at
            from ``ratio_from_bytes`` on: small empty masks pack far better than any image, and do no harm.
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
    """One instance: a file, or a member of an archive. Holds names of files: never written out or logged.

    Attributes:
        path: the file, or the archive that holds the member.
        member: name within the archive, made unique there; "" for a plain file.
        offset: where a tar member's data begin in the unpacked archive, in bytes; -1 where it has to be looked up.
        size: bytes of a tar member.
        scratch: where a member of a compressed tar was unpacked to; "" if it was not. The same member unpacked
            elsewhere is the same source.
    """

    path: str
    member: str = ""
    offset: int = -1
    size: int = 0
    scratch: str = field(default="", compare=False)


class MemberNames:
    """Makes the names in one archive unique: an archive may hold several members of one name, or of none."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        """The name itself when it is met for the first time, else with its count behind a NUL, which no name holds."""
        name = name.replace("\0", "?")
        self._seen[name] += 1
        count = self._seen[name]
        return name if name and count == 1 else f"{name}\0{count}"


def archive_kind(head: bytes) -> str:
    """ "zip", "gz", "bz2", "xz" or "tar" by the first `HEAD_BYTES` bytes, "" if they begin none of these."""
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return "tar" if _begins_tar(head) else ""


def _begins_tar(block: bytes) -> bool:
    """The mark of POSIX, or the sum that older tar files have instead of a mark."""
    if len(block) < HEAD_BYTES or block[128:132] == b"DICM":
        return False
    if block[257:262] == b"ustar":
        return True
    stored = block[148:156].strip(b" \0")
    total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:HEAD_BYTES])
    return 0 < len(stored) <= 7 and all(48 <= digit < 56 for digit in stored) and int(stored, 8) == total


def looks_nested(name: str) -> bool:
    """Whether a member's name has the ending of an archive, so that its first bytes should be looked at."""
    return PurePosixPath(name).suffix.lower() in ARCHIVE_ENDINGS[1:]


def nested_archive() -> DicomError:
    """F02 for an archive that lies within an archive."""
    return DicomError("F02", "an archive within an archive, which is not opened", "DICOM files in an archive")


def broken_archive() -> DicomError:
    """F03 for an archive that is damaged or cut."""
    return DicomError("F03", "an archive that cannot be read to its end", "a whole zip or tar archive")


def too_many_members(limits: ArchiveLimits) -> DicomError:
    """F06 for an archive of too many members, which are not counted to the end."""
    return DicomError("F06", f"more than {limits.members} members in one archive", f"at most {limits.members}")


def check_size(size: int, limits: ArchiveLimits, what: str = "a member") -> None:
    """Raise F06 when one instance is larger than the limit."""
    if size > limits.member_bytes:
        raise DicomError("F06", f"{what} of {size} bytes", f"at most {limits.member_bytes} bytes")


def check_total(total: int, limits: ArchiveLimits) -> None:
    """Raise F06 when an archive unpacks to more than the limit."""
    if total > limits.total_bytes:
        raise DicomError("F06", f"an archive that unpacks to {total} bytes or more", f"at most {limits.total_bytes}")
