"""A second ingest does nothing again, new files extend it, and it does not matter who does the jobs."""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from ingest_studies import difference, large_series, outputs, write_ten
from pydicom.uid import DeflatedExplicitVRLittleEndian
from synthetic_dicom import save, series, slice_dataset

from lvmmed_monai.data.datalist import SECTIONS, read_datalist
from lvmmed_monai.dicom.headers import DEFLATED_LIMIT_BYTES
from lvmmed_monai.ingest import process_workers
from lvmmed_monai.ingest.pipeline import IngestSummary, ingest
from lvmmed_monai.ingest.workers import WorkerLimits

PROCESSES = (0, 2)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ten")
    write_ten(folder, count=6, size=48)
    return folder


def times(folder: Path) -> dict[str, int]:
    """When each file was written, the journal left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "journal.sqlite")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def sections_of(out: Path) -> dict[str, str]:
    """Section of each subject in all datalists; in all the same."""
    found: dict[str, str] = {}
    for path in out.glob("datalist*.json"):
        datalist = read_datalist(path)
        for section in SECTIONS:
            for item in datalist[section]:
                assert found.setdefault(item["subject"], section) == section
    return found


def test_whoever_does_the_jobs_the_output_is_the_same(ten: Path, tmp_path: Path) -> None:
    for workers in PROCESSES:
        summary = ingest(ten, tmp_path / str(workers), site_key=tmp_path / "site.key", workers=workers)
        assert (summary.accepted, summary.labelled, summary.written, summary.failures) == (14, 3, 14, 0)
    assert difference(outputs(tmp_path / "0"), outputs(tmp_path / "2")) == []
    record = json.loads((tmp_path / "0" / "qc.json").read_text())
    found = {finding["code"] for entry in record["series"] for finding in entry["findings"]}
    assert {"T01", "G03"} <= found


@pytest.mark.parametrize("workers", PROCESSES)
def test_second_run_writes_nothing_whoever_did_the_first(ten: Path, tmp_path: Path, workers: int) -> None:
    key = tmp_path / "site.key"
    assert ingest(ten, tmp_path / "out", site_key=key, workers=2 - workers).written == 14
    before = times(tmp_path / "out")
    summary = ingest(ten, tmp_path / "out", site_key=key, workers=workers)
    assert (summary.accepted, summary.labelled, summary.written) == (14, 3, 0)
    assert times(tmp_path / "out") == before


@pytest.mark.parametrize("workers", PROCESSES)
def test_new_and_changed_files_make_their_series_only(tmp_path: Path, workers: int) -> None:
    src, out = tmp_path / "src", tmp_path / "out"

    def run(wanted: int) -> dict[str, int]:
        """Ingest once more; the files below ``images`` that it wrote."""
        earlier = times(out)
        assert ingest(src, out, site_key=tmp_path / "site.key", workers=workers).written == wanted
        return {name for name, when in times(out).items() if name.startswith("images/") and earlier.get(name) != when}

    for number in range(6):
        save(large_series(5, 24, seed=number, patient=f"PATIENT-{number}"), src / str(number))
    first = run(6)
    assert len(first) == 6
    settled = sections_of(out)
    for number in range(6, 11):
        modality = "MR" if number % 2 else "CT"
        save(large_series(5, 24, seed=number, patient=f"PATIENT-{number}", modality=modality), src / str(number))
    second = run(5)
    assert (len(second), first & second) == (5, set())
    extended = sections_of(out)
    assert len(extended) == 11
    assert settled.items() <= extended.items()
    changed = large_series(5, 24, seed=99, patient="PATIENT-3")
    save(changed, src / "3")
    third = run(1)
    assert len(third) == 1
    assert third <= first
    assert sections_of(out) == extended
    # A slice more at the end is a change, too, and so is one that was only touched.
    save(large_series(6, 24, seed=4, patient="PATIENT-4"), src / "4")
    os.utime(src / "5" / "002.dcm", (time.time() - 60,) * 2)
    assert len(run(2)) == 2
    assert run(0) == set()


def hostile_deflated(size: int) -> bytes:
    """A small file that says it is an image and unpacks to ``size`` zero bytes."""
    meta = b"\x02\x00\x10\x00UI\x16\x00" + b"1.2.840.10008.1.2.1.99"
    body = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = b"".join([*(body.compress(bytes(2**24)) for _ in range(-(-size // 2**24))), body.flush()])
    length = b"\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little")
    return bytes(128) + b"DICM" + length + meta + packed


def codes(summary: IngestSummary) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Codes and counts of refused series, and of files."""
    return [(row["code"], row["count"]) for row in summary.refused], [
        (row["code"], row["count"]) for row in summary.files
    ]


@pytest.mark.parametrize("workers", PROCESSES)
def test_a_hostile_file_costs_itself_only(tmp_path: Path, workers: int) -> None:
    bomb = hostile_deflated(DEFLATED_LIMIT_BYTES + 1)
    assert len(bomb) < DEFLATED_LIMIT_BYTES / 100
    for number in range(3):
        save(series(5, patient=f"PATIENT-{number}"), tmp_path / "src" / str(number))
    (tmp_path / "src" / "bomb.dcm").write_bytes(bomb)
    summary = ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "site.key", workers=workers)
    assert (summary.accepted, summary.failures) == (3, 1)
    assert codes(summary) == ([], [("F06", 1)])


def test_a_claim_beyond_memory_costs_its_series_only(tmp_path: Path) -> None:
    """A header that claims frames of gigabytes, and the hostile file beside a series."""
    save(series(5, patient="PATIENT-0"), tmp_path / "src" / "good")
    vast = series(5, patient="PATIENT-1")
    for one in vast:
        one.Rows = one.Columns = 65535
    save(vast, tmp_path / "src" / "vast")
    beside = save(series(5, patient="PATIENT-2"), tmp_path / "src" / "beside")
    beside[-1].write_bytes(hostile_deflated(DEFLATED_LIMIT_BYTES + 1))
    summary = ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "site.key", workers=2)
    assert summary.accepted == 1
    refused, files = codes(summary)
    # The file beside four slices was one of them: the series is not cut off in silence.
    assert ("S03", 1) in refused
    assert ("F06", 1) in files
    assert sum(count for _, count in refused) == 2


def test_a_worker_that_runs_out_of_memory_costs_its_series_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine files of 32 KB that unpack to 32 MiB each, in workers that may have 256 MiB."""
    size = 4096
    vast = [slice_dataset(np.zeros((size, size), np.int16), (0, 0, 2.0 * k), k + 1, patient="VAST") for k in range(9)]
    for one in vast:
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    paths = save(vast, tmp_path / "src" / "vast")
    assert paths[0].stat().st_size < 2**16
    for number in range(3):
        save(series(5, patient=f"PATIENT-{number}"), tmp_path / "src" / str(number))
    monkeypatch.setattr(process_workers, "WorkerLimits", lambda: WorkerLimits(memory_bytes=256 * 2**20))
    summary = ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "site.key", workers=2)
    assert summary.accepted == 3
    assert codes(summary) == ([("F06", 1)], [])
    (refused,) = [
        row for row in json.loads((tmp_path / "out" / "qc.json").read_text())["series"] if not row["accepted"]
    ]
    assert refused["findings"][-1]["measured"] == "more than 0.25 GiB of memory"
