"""What earlier runs found and wrote, so that an interrupted ingest continues and a second run does nothing again.

One SQLite file in WAL mode, readable by its owner only; the table of source paths in it belongs to
`lvmmed_monai.dicom.sources`. One process writes. Rows are written after their files and in batches: a row
always means whole files, and a run that is killed does its last series again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.sources import SOURCES_SCHEMA, insert_sources, make_private
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import sha256_json

__all__ = ["RULES", "Journal", "fingerprint"]

RULES = 2
"""Version of the rules that turn a series into files; a new one makes every volume anew."""

_BATCH_ROWS = 500
_BATCH_SECONDS = 2.0
_BUSY_SECONDS = 30.0

_SCHEMA_VERSION = 2
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS outcomes (series_id TEXT PRIMARY KEY, mark TEXT NOT NULL, outcome BLOB NOT NULL)",
    *SOURCES_SCHEMA,
)
_TABLES = {"outcomes", "volume_sources"}
_TABLES_BEFORE = {"volumes", "sources"}  # of version 1


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
    """The journal at ``path``; a context manager, which writes what is left also when the run fails.

    Raises:
        UserError: it is damaged or no journal, or cannot be written to. So do all methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = 0
        self._since = 0.0
        with self._explained():
            make_private(path)
            # None: transactions begin and end where we say so.
            self._connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._connection.close()

    def outcome(self, series_id: str, mark: str) -> dict[str, Any] | None:
        """What was kept for a series, if it was made from the same sources under the same settings."""
        with self._explained():
            query = "SELECT outcome FROM outcomes WHERE series_id = ? AND mark = ?"
            row = self._connection.execute(query, (series_id, mark)).fetchone()
            found: dict[str, Any] | None = None if row is None else json.loads(zlib.decompress(row[0]))
        return found

    def keep_outcome(
        self,
        series_id: str,
        mark: str,
        outcome: Mapping[str, Any],
        sources: Mapping[str, Sequence[tuple[str, str]]],
    ) -> None:
        """Record what became of a series, once its files are on the disk.

        Args:
            series_id: pseudonymous id of the series.
            mark: its `fingerprint`.
            outcome: as JSON has it.
            sources: (path, member) of each slice in order, by the id of the volume made from them.
        """
        packed = zlib.compress(json.dumps(outcome, separators=(",", ":"), allow_nan=False).encode())
        with self._writing():
            self._connection.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", (series_id, mark, packed))
            self._connection.execute("DELETE FROM volume_sources WHERE series_id = ?", (series_id,))
            for volume_id, instances in sources.items():
                insert_sources(self._connection, volume_id, series_id, instances)

    def forget(self, series_id: str) -> None:
        """Drop a series before its files are made anew; it is gone for good when this returns."""
        with self._explained():
            row = self._connection.execute("SELECT 1 FROM outcomes WHERE series_id = ?", (series_id,)).fetchone()
        if row is None:
            return
        with self._writing():
            self._connection.execute("DELETE FROM outcomes WHERE series_id = ?", (series_id,))
            self._connection.execute("DELETE FROM volume_sources WHERE series_id = ?", (series_id,))
        self.flush()
        with self._explained():
            # Onto the disk, too: after a power cut, the old row must not vouch for the new files.
            self._connection.execute("PRAGMA wal_checkpoint(FULL)")

    def flush(self) -> None:
        """Write all rows so far: they survive when this process is killed."""
        with self._explained():
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")

    def _prepare(self) -> None:
        tables = {row[0] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION or not tables <= _TABLES | _TABLES_BEFORE:
            raise self._unusable()
        # Where a file system cannot do it, SQLite stays with its rollback file: slower, and as safe.
        (mode,) = self._connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode == "wal":
            self._connection.execute("PRAGMA synchronous=NORMAL")
        if version == _SCHEMA_VERSION:
            return
        with self._writing():
            for statement in _SCHEMA:
                self._connection.execute(statement)
            self._take_over(tables)
            self._connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        self.flush()

    def _take_over(self, tables: set[str]) -> None:
        """Bring the sources of version 1 into the new form; its volumes were made by older rules."""
        if "sources" in tables:
            sources: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
            query = "SELECT volume_id, path, member FROM sources ORDER BY volume_id, position"
            for volume_id, path, member in self._connection.execute(query):
                sources[volume_id].append((path, member))
            for volume_id, instances in sources.items():
                insert_sources(self._connection, volume_id, volume_id, instances)
        for table in tables & _TABLES_BEFORE:
            self._connection.execute(f"DROP TABLE {table}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Statements that stand or fall together, in the transaction of the batch."""
        with self._explained():
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
                self._rows, self._since = 0, time.monotonic()
            self._connection.execute("SAVEPOINT rows")
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:  # a full disk ends the transaction by itself
                    self._connection.execute("ROLLBACK TO rows")
                raise
            self._connection.execute("RELEASE rows")
            self._rows += 1
            if self._rows >= _BATCH_ROWS or time.monotonic() - self._since >= _BATCH_SECONDS:
                self.flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        # `from None` throughout: SQLite's errors may quote values.
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"the ingest journal cannot be written to ({reason}); {self.path}; "
                "free some space, choose a writable folder or end the other run, then run again"
            ) from None
        except (sqlite3.DatabaseError, zlib.error):
            raise self._unusable() from None

    def _unusable(self) -> UserError:
        return UserError(
            f"the ingest journal is damaged, or not one of this version; {self.path}; "
            "remove it, or choose another output folder"
        )
