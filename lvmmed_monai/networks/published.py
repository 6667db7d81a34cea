"""Published weight files that are known by name, and the check that a file of such a name is that file."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from lvmmed_monai.errors import UserError

__all__ = ["LVM_MED_FILES", "PUBLISHED", "PublishedFile", "check_published"]

logger = logging.getLogger(__name__)


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
_SAM = "github.com/facebookresearch/segment-anything"

# MD5 values as in libraries that load these files: eva of kaiko; IOPaint. SAM's begin with the digits in the names.
PUBLISHED: dict[str, PublishedFile] = {
    "VoCo_B_SSL_head.pt": PublishedFile("f80c4da2f81d700bdae3df188f2057eb", 220_186_120, _VOCO),
    "VoCo_L_SSL_head.pt": PublishedFile("795095d1d43ef3808ec4c41798310136", 855_526_984, _VOCO),
    "VoCo_H_SSL_head.pt": PublishedFile("76f95a474736b60bf5b8aad94643744d", 3_396_634_312, _VOCO),
    "sam_vit_b_01ec64.pth": PublishedFile("01ec64d29a2fca3f0661936605ae66f8", 374_941_888, _SAM),
    "sam_vit_l_0b3195.pth": PublishedFile("0b3195507c641ddb6910d2bb5adee89c", 1_249_371_328, _SAM),
    "sam_vit_h_4b8939.pth": PublishedFile("4b8939a88964f0f4ff5f5b2642c598a6", 2_564_362_432, _SAM),
}

# No hash of these is published.
LVM_MED_FILES = ("lvmmed_resnet.torch", "lvmmed_vit.pth")


def check_published(path: Path) -> None:
    """Pass over files of other names; remind of the licence of LVM-Med's.

    Raises:
        UserError: the file has the name of a published one and other bytes.
    """
    if path.name in LVM_MED_FILES:
        logger.warning(
            "%s has the name of released LVM-Med weights. All licences stated for them forbid commercial use, and they "
            "contradict each other on derived weights (CC BY-NC-ND 2.0 and CC BY-NC-SA 4.0)",
            path.name,
        )
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
