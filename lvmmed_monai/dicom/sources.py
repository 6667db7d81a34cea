"""Which source instances a volume was made from: the one place where their paths are kept.

Paths of a hospital's files hold patient names. So the journal is readable by its owner only, and no
message of this module holds a path.
"""

from __future__ import annotations

import os
import sqlite3
import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import IO

import pydicom
from pydicom.errors import InvalidDicomError

from lvmmed_monai.errors import UserError

__all__ = ["read_sources", "write_sources"]

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS sources "
    "(volume_id TEXT NOT NULL, position INTEGER NOT NULL, path TEXT NOT NULL, member TEXT NOT NULL, "
    "PRIMARY KEY (volume_id, position))"
)


def write_sources(journal: str | os.PathLike[str], volume_id: str, sources: Sequence[tuple[str, str]]) -> None:
    """Record the source instances of one volume, replacing what was recorded for it.

    Args:
        journal: SQLite file; made with mode 0600 if it is absent, and set to it if it is there.
        volume_id: pseudonymous id of the volume.
        sources: (path, member) in the order of the volume's slices; ``member`` is the name inside a zip
            archive at ``path``, or "" for a plain file.
    """
    # Made by hand with its mode, so that there is no moment in which others can open it.
    os.close(os.open(journal, os.O_CREAT | os.O_RDWR, 0o600))
    os.chmod(journal, 0o600)
    rows = [(volume_id, position, str(path), member) for position, (path, member) in enumerate(sources)]
    with closing(sqlite3.connect(journal, timeout=30)) as connection, connection:
        connection.execute(_SCHEMA)
        connection.execute("DELETE FROM sources WHERE volume_id = ?", (volume_id,))
        connection.executemany("INSERT INTO sources VALUES (?, ?, ?, ?)", rows)


def read_sources(journal: str | os.PathLike[str], volume_id: str) -> list[pydicom.Dataset]:
    """Read the headers (no pixels) of the instances that a volume was made from, in the order of its slices.

    Raises:
        UserError: the journal or the volume is unknown, or a source file is gone or unreadable.
    """
    rows = _rows(journal, volume_id)
    archives: dict[str, zipfile.ZipFile] = {}
    try:
        return [_read_header(path, member, archives) for path, member in rows]
    except (OSError, KeyError, zipfile.BadZipFile, InvalidDicomError, EOFError) as error:
        # `from None`: the causing error's text holds the path.
        raise UserError(
            f"a source file of volume {volume_id} is missing or unreadable ({type(error).__name__}); "
            "its path stands in the ingest journal; put the source files back, or ingest the study again"
        ) from None
    finally:
        for archive in archives.values():
            archive.close()


def _rows(journal: str | os.PathLike[str], volume_id: str) -> list[tuple[str, str]]:
    if not Path(journal).is_file():
        raise UserError(f"the ingest journal was not found; {journal}; name the journal.sqlite that ingest wrote")
    query = "SELECT path, member FROM sources WHERE volume_id = ? ORDER BY position"
    try:
        with closing(sqlite3.connect(f"{Path(journal).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute(query, (volume_id,)).fetchall()
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"the ingest journal cannot be read ({error}); {journal}; name the journal.sqlite that ingest wrote"
        ) from None
    if not rows:
        raise UserError(
            f"volume {volume_id} has no source instances in the ingest journal; {journal}; "
            "use volumes of this ingest output, or write NIfTI only"
        )
    return rows


def _read_header(path: str, member: str, archives: dict[str, zipfile.ZipFile]) -> pydicom.Dataset:
    if not member:
        with open(path, "rb") as stream:
            return _checked(stream)
    if path not in archives:
        archives[path] = zipfile.ZipFile(path)
    with archives[path].open(member) as stream:
        return _checked(stream)


def _checked(stream: IO[bytes]) -> pydicom.Dataset:
    # Forced, because ingest also takes files without a preamble; so the answer has to be looked at.
    header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    if "SOPInstanceUID" not in header:
        raise InvalidDicomError("no SOPInstanceUID")
    return header
