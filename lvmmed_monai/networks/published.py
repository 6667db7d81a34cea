"""Published weight files that are known by name, and the check that a file of such a name is that file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lvmmed_monai.errors import UserError

__all__ = ["PUBLISHED", "PublishedFile", "check_published"]


@dataclass(frozen=True)
class PublishedFile:
    """A released weight file.

    Attributes:
        md5: of its bytes, in hex.
        payload_bytes: of its tensors; the file itself is a little longer.
        source: where it is published.
    """

    md5: str
    payload_bytes: int
    source: str


_VOCO = "huggingface.co/Luffy503/VoCo"

# MD5 values as in the eva library of kaiko, which loads these files.
PUBLISHED: dict[str, PublishedFile] = {
    "VoCo_B_SSL_head.pt": PublishedFile("f80c4da2f81d700bdae3df188f2057eb", 220_186_120, _VOCO),
    "VoCo_L_SSL_head.pt": PublishedFile("795095d1d43ef3808ec4c41798310136", 855_526_984, _VOCO),
    "VoCo_H_SSL_head.pt": PublishedFile("76f95a474736b60bf5b8aad94643744d", 3_396_634_312, _VOCO),
}


def check_published(path: Path) -> None:
    """Pass over files of other names.

    Raises:
        UserError: the file has the name of a published one and other bytes.
    """
    published = PUBLISHED.get(path.name)
    if published is None:
        return
    with path.open("rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 == published.md5:
        return
    size = path.stat().st_size
    what = "it is incomplete" if size < published.payload_bytes else "it is damaged or another file"
    raise UserError(
        f"{path.name} is not the published file: its MD5 is {md5}, that of the published one {published.md5}; {what} "
        f"({size / 1e6:.1f} MB of at least {published.payload_bytes / 1e6:.1f} MB); {path}; "
        f"download it again from {published.source}, or rename it if it is meant to be another file"
    )
