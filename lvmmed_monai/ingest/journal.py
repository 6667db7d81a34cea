"""What earlier runs wrote, so that a second run on the same input does nothing again.

The journal is one SQLite file, readable by its owner only; the table of source paths in it belongs to
`lvmmed_monai.dicom.sources`. A row is written after its files, so that a row always means whole files.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import sha256_json

__all__ = ["RULES", "Journal", "fingerprint"]

RULES = 1
"""Version of the rules that turn a series into files; a new one makes every volume anew."""

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS volumes (volume_id TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, entry TEXT NOT NULL)"
)


def fingerprint(sources: Iterable[Source], settings: Any) -> str:
    """A hash that changes when a source file or a setting does (by size and time of change, not by content).

    Raises:
        DicomError: F03 a source file is gone.
    """
    stats = {}
    rows = []
    for source in sources:
        if source.path not in stats:
            try:
                status = os.stat(source.path)
            except OSError:
                # `from None`: the error's text holds the path.
                raise DicomError("F03", "a file that is gone by now", "a readable file") from None
            stats[source.path] = (status.st_size, status.st_mtime_ns)
        rows.append([source.path, source.member, *stats[source.path]])
    return sha256_json([RULES, rows, settings])


class Journal:
    """Finished volumes, in ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Made with its mode, so that there is no moment in which others can open it.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        os.chmod(path, 0o600)
        try:
            with closing(self._connect()) as connection, connection:
                connection.execute(_SCHEMA)
        except sqlite3.DatabaseError:
            raise UserError(
                f"the ingest journal is damaged; {path}; remove it, or choose another output folder"
            ) from None

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)

    def find(self, volume_id: str, wanted: str) -> dict[str, Any] | None:
        """The entry of a volume, if it was made from the same sources under the same settings."""
        with closing(self._connect()) as connection:
            row = connection.execute(
                "SELECT fingerprint, entry FROM volumes WHERE volume_id = ?", (volume_id,)
            ).fetchone()
        if row is None or row[0] != wanted:
            return None
        entry: dict[str, Any] = json.loads(row[1])
        return entry

    def put(self, volume_id: str, mark: str, entry: dict[str, Any]) -> None:
        """Record a finished volume."""
        with closing(self._connect()) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO volumes VALUES (?, ?, ?)", (volume_id, mark, json.dumps(entry)))

    def remove(self, volume_id: str) -> None:
        """Forget a volume before its files are made anew."""
        with closing(self._connect()) as connection, connection:
            connection.execute("DELETE FROM volumes WHERE volume_id = ?", (volume_id,))
