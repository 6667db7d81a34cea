"""Which source instances a volume was made from: the one place where their paths are kept.

Paths of a hospital's files hold patient names. So the journal is readable by its owner only, and no
message of this module holds a path.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import IO

import pydicom
from pydicom.errors import InvalidDicomError

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom
from lvmmed_monai.errors import UserError

__all__ = ["SOURCES_SCHEMA", "insert_sources", "make_private", "read_sources", "write_sources"]

SOURCES_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS volume_sources "
    "(volume_id TEXT PRIMARY KEY, series_id TEXT NOT NULL, instances BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS sources_of_series ON volume_sources (series_id)",
)
"""Statements that make the table: ``instances`` is the packed list of (path, member) in slice order."""


def make_private(journal: str | os.PathLike[str]) -> None:
    """Make the journal's file if it is absent; only its owner may read it, and the files that SQLite puts beside it.

    Call it before a connection is open: closing a file ends SQLite's locks on it.
    """
    # Made by hand with its mode, so that there is no moment in which others can open it.
    os.close(os.open(journal, os.O_CREAT | os.O_RDWR, 0o600))
    # New files beside it take their mode from it; old ones may have been left by a killed process.
    for path in (Path(journal), Path(f"{journal}-wal"), Path(f"{journal}-shm")):
        if path.exists():
            path.chmod(0o600)


def insert_sources(
    connection: sqlite3.Connection, volume_id: str, series_id: str, sources: Sequence[tuple[str, str]]
) -> None:
    """Record the source instances of a volume in an open journal that has the table of `SOURCES_SCHEMA`."""
    # ASCII, with escapes for names that are no text: JSON keeps those, a text column does not.
    instances = zlib.compress(json.dumps([[str(path), member] for path, member in sources]).encode())
    connection.execute("INSERT OR REPLACE INTO volume_sources VALUES (?, ?, ?)", (volume_id, series_id, instances))


def write_sources(journal: str | os.PathLike[str], volume_id: str, sources: Sequence[tuple[str, str]]) -> None:
    """Record the source instances of one volume, replacing what was recorded for it.

    Args:
        journal: SQLite file; made with mode 0600 if it is absent, and set to it if it is there.
        volume_id: pseudonymous id of the volume.
        sources: (path, member) in the order of the volume's slices; ``member`` is the name inside an
            archive at ``path``, or "" for a plain file.
    """
    make_private(journal)
    with closing(sqlite3.connect(journal, timeout=30)) as connection, connection:
        for statement in SOURCES_SCHEMA:
            connection.execute(statement)
        insert_sources(connection, volume_id, "", sources)


def read_sources(journal: str | os.PathLike[str], volume_id: str) -> list[pydicom.Dataset]:
    """Read the headers (no pixels) of the instances that a volume was made from, in the order of its slices.

    Raises:
        UserError: the journal or the volume is unknown, or a source file is gone or unreadable.
    """
    rows = _rows(journal, volume_id)
    try:
        with SourceReader() as reader:
            return [_checked(io.BytesIO(reader.read(Source(path, member)))) for path, member in rows]
    except (DicomError, OSError, InvalidDicomError, EOFError) as error:
        # `from None`: the causing error's text may hold what stands in the file.
        raise UserError(
            f"a source file of volume {volume_id} is missing or unreadable ({type(error).__name__}); "
            "its path stands in the ingest journal; put the source files back, or ingest the study again"
        ) from None


def _rows(journal: str | os.PathLike[str], volume_id: str) -> list[tuple[str, str]]:
    if not Path(journal).is_file():
        raise UserError(f"the ingest journal was not found; {journal}; name the journal.sqlite that ingest wrote")
    query = "SELECT instances FROM volume_sources WHERE volume_id = ?"
    try:
        with closing(_connect_to_read(journal)) as connection:
            row = connection.execute(query, (volume_id,)).fetchone()
        rows = [] if row is None else json.loads(zlib.decompress(row[0]))
    except (sqlite3.DatabaseError, zlib.error, ValueError) as error:
        raise UserError(
            f"the ingest journal cannot be read ({error}); {journal}; "
            "name the journal.sqlite that ingest wrote, or ingest the studies again"
        ) from None
    if not rows:
        raise UserError(
            f"volume {volume_id} has no source instances in the ingest journal; {journal}; "
            "use volumes of this ingest output, or write NIfTI only"
        )
    return [(path, member) for path, member in rows]


def _connect_to_read(journal: str | os.PathLike[str]) -> sqlite3.Connection:
    address = Path(journal).absolute().as_uri()
    connection = sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=30)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        # A folder that cannot be written to has no place for the files that readers share with writers; then
        # there is no writer either.
        if Path(f"{journal}-wal").exists():
            raise
        return sqlite3.connect(f"{address}?immutable=1", uri=True)
    return connection


def _checked(stream: IO[bytes]) -> pydicom.Dataset:
    # Forced, because ingest also takes files without a preamble; so the answer has to be looked at.
    with silent_pydicom():
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    if "SOPInstanceUID" not in header:
        raise InvalidDicomError("no SOPInstanceUID")
    return header
