"""Files that are either whole or absent, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lvmmed_monai.errors import UserError

__all__ = [
    "atomic_path",
    "locked",
    "output_folder",
    "read_json",
    "remove_partial",
    "sha256_file",
    "sha256_json",
    "storage_error",
    "write_json",
    "write_text",
]

# What the system answers when a file cannot grow: disk full, quota, file size limit, read-only, no permission.
_STORAGE_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
# torch.save and numpy.save say it in their own words, without a number.
_STORAGE_WORDS = ("file write failed", "inline_container.cc", "requested and")
_PARTIAL = ".partial-"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffixes); rename it to ``path`` when the block succeeds.

    The file is flushed to disk before it is renamed. On any error the temporary file is removed and
    what stood at ``path`` before is untouched.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(final.suffixes[-2:])
    handle, name = tempfile.mkstemp(prefix=_PARTIAL, suffix=suffix, dir=final.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp makes files that only the owner may read; ours follow the user's umask like any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path, *, below: bool = False) -> None:
    """Remove what `atomic_path` left behind in processes that were killed. Only while nobody else writes there.

    Args:
        folder: where to look; it need not be there.
        below: look into the folders in it, too.
    """
    for path in folder.glob(f"{'**/' if below else ''}{_PARTIAL}*"):
        if path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes out of the block, by a lock on the file ``path`` that ends with the process."""
    import fcntl

    with Path(path).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: a failed number is ``null``."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what the file is, for the message ("datalist", "manifest").

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} not found; {path}; check the path") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{what} cannot be read ({error.strerror}); {path}; name a readable JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} is not valid JSON ({error}); {path}; repair or rewrite the file") from None


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of ``value`` as canonical JSON (sorted keys, no spaces), in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def output_folder(path: str | os.PathLike[str], *, need_bytes: int = 0) -> Path:
    """Make a folder that can be written to and has ``need_bytes`` free.

    Raises:
        UserError: it cannot be made, is not writable, or has too little space.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"the output folder cannot be written to ({error.strerror}); {folder}; "
            "choose another folder or change its permissions"
        ) from None
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise UserError(
            f"too little disk space: {need_bytes / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free; {folder}; "
            "free some space or choose another folder"
        )
    return folder


def storage_error(error: BaseException | None) -> UserError | None:
    """A `UserError` for a failed write (disk full, no permission) behind ``error``, or None if it was none."""
    while error is not None:
        reason = _storage_reason(error)
        if reason is not None:
            where = getattr(error, "filename", None) or "the output folder"
            return UserError(
                f"writing failed ({reason}); {where}; free some space or choose a writable folder, then run again"
            )
        error = error.__cause__ or error.__context__
    return None


def _storage_reason(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRNO:
        return error.strerror
    if isinstance(error, OSError | RuntimeError) and any(words in str(error) for words in _STORAGE_WORDS):
        return "the file could not be written whole"
    return None
