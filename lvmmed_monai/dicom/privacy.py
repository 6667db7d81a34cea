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

__all__ = ["KINDS", "SiteKey", "day_shift", "default_site_key_path", "load_site_key", "new_uid", "pseudonym"]

KINDS = ("patient", "study", "series", "instance", "label")
"""What a pseudonym may stand for. Equal values of different kinds get different pseudonyms."""

_KEY_BYTES = 32
_LONGEST_FILE = 4096
_SHIFT_DAYS = 365
_log = logging.getLogger(__name__)


class SiteKey(bytes):
    """The site's secret key. It does not show itself where an object that holds it is printed."""

    def __repr__(self) -> str:
        return "SiteKey(...)"

    __str__ = __repr__


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
        _log.info("a new site key was made; keep a copy of it: without it later ids differ")
    except FileExistsError:
        _log.debug("another process made the site key")
    finally:
        os.unlink(temporary)
    # The name is to outlive a power failure as well: ids that were given out must not lose their key.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _weakness(file: os.stat_result, folder: os.stat_result) -> str | None:
    """Why a key is not safe: others can read it, or give us another one. None if it is."""
    if not stat.S_ISREG(file.st_mode):
        return "is no plain file"
    if file.st_mode & 0o022:
        return "can be written to by other users"
    if file.st_mode & 0o004:
        return "can be read by every user"
    if folder.st_mode & 0o002 and not folder.st_mode & stat.S_ISVTX:
        return "lies in a folder that every user may write to"
    # In a folder like /tmp nobody can exchange our file, but anybody may have put his own there first.
    if folder.st_mode & 0o002 and file.st_uid not in (os.geteuid(), 0):
        return "belongs to another user and lies in a folder that every user may write to"
    return None


def _read_key(path: Path) -> str:
    """The text of the key file; what is checked is the very file that is read.

    Raises:
        UserError: it is not safe.
    """
    # Not blocking: a named pipe would wait for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb", closefd=True) as stream:
        status = os.fstat(stream.fileno())
        weakness = _weakness(status, os.stat(path.resolve().parent))
        if weakness is not None:
            raise UserError(
                f"the site key {weakness}; {path}; make it readable for you alone (chmod 600) in a folder of your own, "
                "or name another file with --site-key"
            )
        if status.st_mode & 0o040:
            _log.warning("the site key can be read by its group; set its mode to 0600 if that is not meant")
        return stream.read(_LONGEST_FILE).decode("ascii").strip()


def load_site_key(path: str | os.PathLike[str] | None = None) -> SiteKey:
    """The site's secret key; made on first use with mode 0600.

    A link is followed; what it leads to is checked. A key that the group may read is warned of, since a team may
    share one.

    Args:
        path: key file; None for `default_site_key_path`.

    Raises:
        UserError: the file cannot be made or read, holds no key, or is not safe: others may write to it or exchange
            it, or everybody may read it.
    """
    file = Path(path) if path is not None else default_site_key_path()
    try:
        if not file.exists():
            _make_key(file)
        text = _read_key(file)
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
    return SiteKey(key)


def _keyed(key: bytes, kind: str, value: str) -> bytes:
    return hmac.new(key, f"{kind}\0{value}".encode(), hashlib.sha256).digest()


def pseudonym(key: bytes, kind: str, value: str) -> str:
    """16 hex digits that stand for ``value``: HMAC-SHA256 under the site key, of kind and value.

    Args:
        key: from `load_site_key`.
        kind: one of `KINDS`.
        value: the identifier, as it stands in the header.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return _keyed(key, kind, value).hex()[:16]


def new_uid(key: bytes, uid: str) -> str:
    """The UID that stands for ``uid`` in objects that leave the site: "2.25." and 128 bits of a keyed hash.

    It is the same wherever ``uid`` stands, so that references between objects hold.
    """
    return f"2.25.{int.from_bytes(_keyed(key, 'uid', uid)[:16], 'big')}"


def day_shift(key: bytes, patient: str) -> int:
    """By how many days the dates of a patient are moved, -365 to -1: one number for all of them keeps the intervals."""
    return -1 - int.from_bytes(_keyed(key, "days", patient), "big") % _SHIFT_DAYS
