"""Pseudonyms: keyed hashes of identifiers.

A plain hash of a hospital number can be undone by trying all numbers; a keyed one needs the site's key,
which never leaves the site. The same key gives the same pseudonyms in every run.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

from lvmmed_monai.errors import UserError

__all__ = ["KINDS", "default_site_key_path", "load_site_key", "pseudonym"]

KINDS = ("patient", "study", "series", "instance")
"""What a pseudonym may stand for. Equal values of different kinds get different pseudonyms."""

_KEY_BYTES = 32
_log = logging.getLogger(__name__)


def default_site_key_path() -> Path:
    """``lvmmed/site.key`` in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "lvmmed" / "site.key"


def _make_key(path: Path) -> None:
    """Write a new key that only the owner may read; of two processes at once, one wins and both use its key."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(prefix=".site-key-", dir=path.parent)  # mkstemp makes it with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(_KEY_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError:
        _log.debug("another process made the site key")
    finally:
        os.unlink(temporary)


def load_site_key(path: str | os.PathLike[str] | None = None) -> bytes:
    """The site's secret key; made on first use with mode 0600.

    Args:
        path: key file; None for `default_site_key_path`.

    Raises:
        UserError: the file cannot be made or read, or holds no key.
    """
    file = Path(path) if path is not None else default_site_key_path()
    try:
        if not file.exists():
            _make_key(file)
            _log.info("a new site key was made; keep a copy of it: without it later ids differ")
        text = file.read_text(encoding="ascii").strip()
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            _log.warning("the site key can be read by other users; set its mode to 0600")
    except OSError as error:
        raise UserError(
            f"the site key cannot be read or made ({error.strerror}); {file}; name another file with --site-key"
        ) from None
    except UnicodeDecodeError:
        text = ""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < _KEY_BYTES:
        raise UserError(
            f"the site key file holds no key of {_KEY_BYTES} bytes in hex; {file}; "
            "restore your copy of it, or name a new file with --site-key"
        )
    return key


def pseudonym(key: bytes, kind: str, value: str) -> str:
    """16 hex digits that stand for ``value``: HMAC-SHA256 under the site key, of kind and value.

    Args:
        key: from `load_site_key`.
        kind: one of `KINDS`.
        value: the identifier, as it stands in the header.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return hmac.new(key, f"{kind}\0{value}".encode(), hashlib.sha256).hexdigest()[:16]
