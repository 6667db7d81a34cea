"""The journal: what it keeps, what a kill can cost, and how large it gets."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.sources import _rows as rows_of_volume
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest import journal as journal_module
from lvmmed_monai.ingest.journal import Journal, fingerprint

OUTCOME = {"accepted": True, "shape": [512, 512, 40], "value_range": [-1024.0, 3071.0], "labels": None}
SOURCES = {"v1": [("/in/DOE^JANE/2", ""), ("/in/DOE^JANE/1", "")], "v2": [("/in/x.zip", "deep/1.dcm")]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_outcome_comes_back_for_its_mark_only(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.outcome("s1", "m1") is None
        journal.keep_outcome("s1", "m1", OUTCOME, SOURCES)
        assert journal.outcome("s1", "m1") == OUTCOME
        assert journal.outcome("s1", "m2") is None
        assert journal.outcome("s2", "m1") is None
    with Journal(path) as journal:
        assert journal.outcome("s1", "m1") == OUTCOME
    assert rows_of_volume(path, "v1") == SOURCES["v1"]
    assert rows_of_volume(path, "v2") == SOURCES["v2"]


def test_a_new_outcome_replaces_the_old_one_and_all_its_volumes(path: Path) -> None:
    with Journal(path) as journal:
        journal.keep_outcome("s1", "m1", OUTCOME, SOURCES)
        journal.keep_outcome("s2", "m1", OUTCOME, {"v3": SOURCES["v1"]})
        journal.keep_outcome("s1", "m2", {"accepted": False}, {"v2": [("/in/other", "")]})
        assert journal.outcome("s1", "m1") is None
        assert journal.outcome("s1", "m2") == {"accepted": False}
    assert rows_of_volume(path, "v2") == [("/in/other", "")]
    assert rows_of_volume(path, "v3") == SOURCES["v1"]
    with pytest.raises(UserError, match="v1 has no source instances"):
        rows_of_volume(path, "v1")


def test_what_is_forgotten_is_gone_for_others_at_once(path: Path) -> None:
    with Journal(path) as journal:
        for series in ("s1", "s2"):
            journal.keep_outcome(series, "m1", OUTCOME, {f"volume of {series}": SOURCES["v1"]})
        journal.forget("s1")
        journal.forget("never seen")
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT series_id FROM outcomes").fetchall() == [("s2",)]
            assert other.execute("SELECT volume_id FROM volume_sources").fetchall() == [("volume of s2",)]


def test_rows_are_written_also_when_the_run_fails(path: Path) -> None:
    def fail(series: str, error: type[BaseException]) -> None:
        with Journal(path) as journal:
            journal.keep_outcome(series, "m1", OUTCOME, {})
            raise error

    for number, error in enumerate((ValueError, KeyboardInterrupt)):
        with pytest.raises(error):
            fail(f"s{number}", error)
    with Journal(path) as journal:
        assert journal.outcome("s0", "m1") == journal.outcome("s1", "m1") == OUTCOME


def test_a_row_is_whole_or_absent_when_it_is_interrupted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with Journal(path) as journal:
        journal.keep_outcome("s1", "m1", OUTCOME, SOURCES)
        monkeypatch.setattr(journal_module, "insert_sources", interrupt)
        with pytest.raises(KeyboardInterrupt):
            journal.keep_outcome("s1", "m2", {"new": 1}, SOURCES)
    with Journal(path) as journal:
        assert journal.outcome("s1", "m1") == OUTCOME
    assert rows_of_volume(path, "v1") == SOURCES["v1"]


def test_rows_are_written_in_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(path) as journal, closing(sqlite3.connect(path)) as other:

        def seen() -> int:
            return other.execute("SELECT count(*) FROM outcomes").fetchone()[0]

        monkeypatch.setattr(journal_module, "_BATCH_ROWS", 3)
        for number, expected in enumerate((0, 0, 3, 3, 3, 6)):
            journal.keep_outcome(str(number), "m", OUTCOME, {})
            assert seen() == expected
        journal.keep_outcome("6", "m", OUTCOME, {})
        monkeypatch.setattr(journal_module, "_BATCH_SECONDS", 0.0)
        journal.keep_outcome("7", "m", OUTCOME, {})
        assert seen() == 8


def test_only_the_owner_may_read_any_of_its_files(path: Path) -> None:
    before = os.umask(0)
    try:
        path.touch(mode=0o666)
        path.with_name("journal.sqlite-wal").touch(mode=0o666)
        with Journal(path) as journal:
            journal.keep_outcome("s1", "m1", OUTCOME, SOURCES)
            journal.flush()
            beside = sorted(path.parent.iterdir())
            assert [file.name for file in beside] == ["journal.sqlite", "journal.sqlite-shm", "journal.sqlite-wal"]
            assert [mode(file) for file in beside] == [0o600] * 3
    finally:
        os.umask(before)
    assert [file.name for file in path.parent.iterdir()] == ["journal.sqlite"]


def test_looking_up_leaves_the_file_as_it_is(path: Path) -> None:
    with Journal(path) as journal:
        journal.keep_outcome("s1", "m1", OUTCOME, SOURCES)
    before = path.read_bytes(), path.stat().st_mtime_ns
    with Journal(path) as journal:
        assert journal.outcome("s1", "m1") == OUTCOME
        journal.forget("s9")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_the_journal_of_version_1_is_taken_over(path: Path) -> None:
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("CREATE TABLE volumes (volume_id TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, entry TEXT NOT NULL)")
        old.execute(
            "CREATE TABLE sources (volume_id TEXT NOT NULL, position INTEGER NOT NULL, path TEXT NOT NULL, "
            "member TEXT NOT NULL, PRIMARY KEY (volume_id, position))"
        )
        old.execute("INSERT INTO volumes VALUES ('v1', 'm1', '{}')")
        rows = [("v2", 0, "/in/x.zip", "a"), ("v1", 1, "/in/1", ""), ("v1", 0, "/in/2", "")]
        old.executemany("INSERT INTO sources VALUES (?, ?, ?, ?)", rows)
    for _ in range(2):
        with Journal(path) as journal:
            assert journal.outcome("v1", "m1") is None
        assert rows_of_volume(path, "v1") == [("/in/2", ""), ("/in/1", "")]
        assert rows_of_volume(path, "v2") == [("/in/x.zip", "a")]
    with Journal(path) as journal:
        journal.keep_outcome("v1", "m2", OUTCOME, {"v1": [("/in/3", "")]})
    assert rows_of_volume(path, "v1") == [("/in/3", "")]


def use(path: Path) -> None:
    with Journal(path) as journal:
        journal.outcome("1", "m")
        journal.keep_outcome("1", "m2", OUTCOME, {})


@pytest.mark.parametrize("kind", ["text", "cut", "foreign", "newer", "folder", "locked"])
def test_what_cannot_be_used_is_one_sentence(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_BUSY_SECONDS", 0.1)
    if kind == "text":
        path.write_text("DOE^JANE " * 1000)
    elif kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("CREATE TABLE patients (name TEXT)")
    else:
        with Journal(path) as journal:
            for number in range(50):
                journal.keep_outcome(str(number), "m", OUTCOME, SOURCES)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:6000])
    if kind == "newer":
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("PRAGMA user_version=99")
    before = path.read_bytes() if path.is_file() else b""
    with closing(sqlite3.connect(":memory:" if kind != "locked" else path)) as other:
        if kind == "locked":
            other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="ingest journal") as caught:
            use(path)
    assert str(caught.value).count(";") == 2
    assert "DOE" not in str(caught.value)
    assert caught.value.__cause__ is None
    if kind in ("text", "foreign", "newer"):
        assert path.read_bytes() == before


def test_a_full_disk_is_one_sentence(path: Path) -> None:
    with Journal(path) as journal:
        journal.keep_outcome("small", "m", OUTCOME, {})
        journal.flush()
        pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
        journal._connection.execute(f"PRAGMA max_page_count={pages + 2}")
        with pytest.raises(UserError, match="disk is full"):
            journal.keep_outcome("large", "m", {"noise": os.urandom(100_000).hex()}, {})
        assert journal.outcome("small", "m") == OUTCOME


def test_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    sources = [Source(str(path), str(number)) for number in range(3000)]
    mark = fingerprint(sources, {"labels": 1})
    assert fingerprint(sources, {"labels": 1}) == mark
    others = [fingerprint(sources, {"labels": 2}), fingerprint(sources[1:], {"labels": 1})]
    os.utime(path, ns=(1, 1))
    others.append(fingerprint(sources, {"labels": 1}))
    path.write_bytes(b"12")
    os.utime(path, ns=(1, 1))
    others.append(fingerprint(sources, {"labels": 1}))
    monkeypatch.setattr(journal_module, "RULES", journal_module.RULES + 1)
    others.append(fingerprint(sources, {"labels": 1}))
    assert len({mark, *others}) == 6
    calls = []
    status = path.stat()
    monkeypatch.setattr(os, "stat", lambda path: calls.append(path) or status)
    fingerprint(sources, {"labels": 1})
    assert len(calls) == 1
    monkeypatch.undo()
    path.unlink()
    with pytest.raises(DicomError, match="F03") as caught:
        fingerprint(sources, {})
    assert str(tmp_path) not in str(caught.value)


WRITER = """
import itertools, sys
from lvmmed_monai.ingest import journal as module
module._BATCH_ROWS = 20
with module.Journal(sys.argv[1]) as journal:
    known = 0
    while journal.outcome(str(known), "m") is not None:
        known += 1
    print("from", known, flush=True)
    for number in itertools.count(known):
        if number % 7 == 0 and number:
            journal.forget(str(number - 1))
            journal.keep_outcome(str(number - 1), "m", {"number": number - 1}, {f"v{number - 1}": [("p", "again")]})
        sources = {f"v{number}": [(f"/in/{number}/{k}", "") for k in range(30)]}
        journal.keep_outcome(str(number), "m", {"number": number}, sources)
        print(number, flush=True)
"""


def test_a_kill_at_any_moment_costs_the_last_batch_at_most(path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    draw = random.Random(5)
    known = 0
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        begun = writer.stdout.readline()
        assert begun.split() == ["from", str(known)]
        time.sleep(draw.uniform(0.0, 0.2))
        writer.send_signal(signal.SIGKILL)
        lines = writer.communicate()[0].splitlines()
        with Journal(path) as journal:
            ((verdict,),) = journal._connection.execute("PRAGMA integrity_check")
            assert verdict == "ok"
            rows = dict(journal._connection.execute("SELECT series_id, mark FROM outcomes"))
            volumes = journal._connection.execute("SELECT series_id, volume_id FROM volume_sources").fetchall()
            assert sorted(volumes) == sorted((series, f"v{series}") for series in rows)
            for series in rows:
                assert journal.outcome(series, "m") == {"number": int(series)}
            known = next(number for number in itertools.count() if str(number) not in rows)
        # The writer says more than the journal holds by a batch at most, but for the series that it does again.
        assert known >= int(lines[-1] if lines else begun.split()[1]) - 20
        for number in draw.sample(range(known), min(known, 20)):
            sources = rows_of_volume(path, f"v{number}")
            assert sources in ([("p", "again")], [(f"/in/{number}/{k}", "") for k in range(30)])
    assert known > 100


def generated_series(number: int) -> tuple[str, str, dict, dict]:
    """A series with an outcome of about 1 KB and 40 sources, as an archive of a hospital has them."""
    draw = random.Random(number)
    series = f"{draw.getrandbits(64):016x}"
    findings = [
        {
            "code": code,
            "severity": "warning",
            "measured": f"SliceThickness {draw.uniform(1, 6):.4f} mm, distance {draw.uniform(1, 6):.4f} mm",
            "expected": "both equal within 0.05 mm; the positions are used",
            "remedy": "none needed: positions win over what the header says of thickness",
        }
        for code in draw.sample(["W01", "W02", "W03", "W04", "G08", "S03"], 3)
    ]
    volume = {
        "id": series,
        "shape": [512, 512, 40],
        "spacing_mm": [round(draw.uniform(0.4, 1.0), 6), round(draw.uniform(0.4, 1.0), 6), 2.5],
        "value_range": [-1024.0, round(draw.uniform(1000, 3071), 2)],
        "labels": ["liver", "kidney_left", "kidney_right"],
        "preview": f"previews/{series}.png",
        "digest": f"{draw.getrandbits(256):064x}",
        "findings": findings,
    }
    outcome = {"accepted": True, "subject": f"{draw.getrandbits(64):016x}", "modality": "CT", "volumes": [volume]}
    root = f"1.2.840.113619.2.{draw.randrange(10**9)}.{draw.randrange(10**9)}"
    folder = f"/mnt/pacs_export/2019/{number // 1000:05d}/DOE^JANE^{draw.randrange(10**7):07d}/{root}/{root}.{number}"
    sources = {series: [(f"{folder}/{root}.{draw.randrange(10**6)}.{k}.dcm", "") for k in range(40)]}
    return series, f"{draw.getrandbits(256):064x}", outcome, sources


def journal_of(path: Path, count: int) -> dict[str, float]:
    """Fill a journal with ``count`` generated series; its size in MB, and seconds to write and to look all up."""
    series = [generated_series(number) for number in range(min(count, 500))]
    start = time.perf_counter()
    keys = []
    with Journal(path) as journal:
        for number in range(count):
            # Generating takes longer than writing: the same sources again, under other names.
            series_id, mark, outcome, sources = series[number % len(series)]
            keys.append((f"{number:05x}{series_id[5:]}", mark))
            journal.keep_outcome(*keys[-1], outcome, {keys[-1][0]: next(iter(sources.values()))})
    written = time.perf_counter() - start
    start = time.perf_counter()
    with Journal(path) as journal:
        found = sum(journal.outcome(*key) is not None for key in keys)
    seconds = time.perf_counter() - start
    assert found == count
    return {"megabytes": path.stat().st_size / 1e6, "write_seconds": written, "look_up_seconds": seconds}


def test_size_and_speed_of_a_large_journal(path: Path) -> None:
    _, _, outcome, sources = generated_series(1)
    assert 900 < len(json.dumps(outcome)) < 1400
    assert len(next(iter(sources.values()))[0][0]) > 150
    count = 10_000
    figures = journal_of(path, count)
    share = count / 100_000
    assert figures["megabytes"] < 200 * share
    assert figures["look_up_seconds"] < 10 * share * 2  # twice: other tests run beside
