"""Identifiers that come out the same whenever the same thing is written again."""

from __future__ import annotations

import hashlib

__all__ = ["derived_uid"]


def derived_uid(*parts: str) -> str:
    """A DICOM UID that depends on nothing but ``parts``.

    The form is "2.25." and a 128-bit integer (PS3.5 annex B.2), taken from the SHA-256 of the parts.
    A NUL stands between the parts, so that ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"
