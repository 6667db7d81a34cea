"""The ingest against other readers: wrong volumes, speed, memory.

(a) The fault matrix: a good series is damaged one way at a time, and each reader's volumes are compared with the slices
    in world coordinates (400 random points a slice; 99.9 % within 1 HU; all slices and no others). A cell is right,
    refused (an error), or WRONG: a wrong or incomplete volume without an error.
(b) Speed in one run on this machine: headers against pydicom with the same tags read, and loading a series of native
    512x512 CT slices. The ratio says more than the milliseconds. Readers that are commands or write files are timed
    with the file.
(c) Peak memory of an ingest of several series against that of one.
(d) The journal with many rows.

Without a folder the series are generated. Each reader works in a process of its own: a crash or a hang costs its cell.

Example:
    python benchmarks/ingest.py
    python benchmarks/ingest.py FOLDER --only matrix --json matrix.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from ingest_journal import journal_figures
from other_readers import OtherReader, other_readers
from pydicom.dataset import Dataset

# The damages and the oracle are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from damage import DAMAGES, damaged, in_order, oblique_series
from readings import our_reader
from world import Volume, planes, same_volumes

OURS = "lvmmed"
CELL_SECONDS = 120.0
PARTS = ("matrix", "speed", "memory", "journal")
#: What both sides read of a header.
TAGS = """
    SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID FrameOfReferenceUID PatientID PatientName Modality
    StudyDate StudyTime ImageType Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated BitsStored
    PixelRepresentation PhotometricInterpretation ImagePositionPatient ImageOrientationPatient PixelSpacing
    SliceThickness SpacingBetweenSlices RescaleSlope RescaleIntercept InstanceNumber BurnedInAnnotation
    AcquisitionNumber AcquisitionTime ContentTime
""".split()  # noqa: SIM905


# -- readers in processes of their own ---------------------------------------------------------------------------------


def _ours(folder: Path) -> list[Volume]:
    with tempfile.TemporaryDirectory() as scratch:
        reading = our_reader(folder, Path(scratch))
    if not reading.volumes:
        raise ValueError(f"refused: {sorted(reading.refused)}")
    return reading.volumes


def all_readers() -> dict[str, OtherReader]:
    """Ours first, then the others that are installed."""
    return {OURS: _ours, **other_readers()}


def _quiet() -> None:
    """Send what readers print to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _serve(pipe: Any) -> None:
    """Answer questions (a function and its arguments) until the other end closes."""
    _quiet()
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            pipe.send(function(*arguments))


class Guarded:
    """A process that calls functions; when it crashes or takes too long, it is replaced."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, end = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(end,), daemon=False)
        self._process.start()
        end.close()

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float = CELL_SECONDS) -> Any:
        """What ``function(*arguments)`` returns, or None after a crash or ``seconds``."""
        self._pipe.send((function, arguments))
        with contextlib.suppress(EOFError, ConnectionResetError):
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        self.close()
        self._start()
        return None

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()


# -- (a) the fault matrix ----------------------------------------------------------------------------------------------


def _judge(name: str, case: Path) -> str:
    """The cell of one reader and one damaged folder."""
    truth = pickle.loads((case / "truth.pickle").read_bytes())
    try:
        volumes = all_readers()[name](case / "dicom")
    except Exception:  # whatever a reader raises is its way to refuse
        return "refused"
    right = truth["accept"] and same_volumes(volumes, truth["volumes"], resampled=truth["resampled"])
    return "right" if right else "WRONG"


def _make_cases(good: Sequence[Dataset], folder: Path) -> list[Path]:
    cases = []
    for number, damage in enumerate(DAMAGES):
        case = folder / f"{number:02d}"
        held = damaged(damage, good, case / "dicom")
        volumes = [planes(slices) for slices in held] if damage.accept else []
        truth = {"accept": damage.accept, "resampled": damage.resampled, "volumes": volumes}
        (case / "truth.pickle").write_bytes(pickle.dumps(truth))
        cases.append(case)
    return cases


def matrix(good: Sequence[Dataset]) -> dict[str, Any]:
    """Every reader on every damage.

    Returns:
        ``rows`` {damage: {reader: cell}}, ``totals`` {reader: {cell: count}}; rows that judge nobody are not counted.
    """
    rows: dict[str, dict[str, str]] = {damage.name: {} for damage in DAMAGES}
    with tempfile.TemporaryDirectory() as folder:
        cases = _make_cases(good, Path(folder))
        for name in all_readers():
            worker = Guarded()
            for damage, case in zip(DAMAGES, cases, strict=True):
                rows[damage.name][name] = worker.call(_judge, name, case) or "refused"
            worker.close()
    counted = [damage.name for damage in DAMAGES if damage.visible]
    totals = {name: dict(Counter(rows[row][name] for row in counted)) for name in all_readers()}
    return {"rows": rows, "totals": totals}


def print_matrix(found: dict[str, Any]) -> None:
    """As a table."""
    names = list(found["totals"])
    width = max(map(len, found["rows"])) + 2
    print("".ljust(width) + "  ".join(name.rjust(8) for name in names))
    for row, cells in found["rows"].items():
        print(row.ljust(width) + "  ".join(cells[name].rjust(max(8, len(name))) for name in names))
    for cell in ("right", "refused", "WRONG"):
        counts = [str(found["totals"][name].get(cell, 0)).rjust(max(8, len(name))) for name in names]
        print(f"total {cell}".ljust(width) + "  ".join(counts))


# -- (b) speed ---------------------------------------------------------------------------------------------------------


def least_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The least time of some calls, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _headers_of_pydicom(paths: Sequence[Path]) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        for tag in TAGS:
            dataset.get(tag)


def _our_headers(paths: Sequence[Path]) -> None:
    from lvmmed_monai.dicom.archive import Source
    from lvmmed_monai.ingest.jobs import ScanJob, scan

    scan(ScanJob(0, tuple(Source(str(path)) for path in paths)))


def _load_ours(folder: Path) -> Any:
    from lvmmed_monai.ingest import read_volume

    return read_volume(sorted(folder.iterdir()))


def _timed_load(name: str, folder: Path, repeats: int) -> float:
    reader = _load_ours if name == OURS else other_readers()[name]
    return least_seconds(lambda: reader(folder), repeats)


def speed(slices: int, size: int, repeats: int) -> dict[str, Any]:
    """Seconds of reading headers and of loading one series, and the ratios to ours."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_native(folder, slices, size)
        paths = sorted(folder.iterdir())
        headers = {
            OURS: least_seconds(lambda: _our_headers(paths), repeats),
            "pydicom": least_seconds(lambda: _headers_of_pydicom(paths), repeats),
        }
        loads = {}
        for reader in all_readers():
            worker = Guarded()
            loads[reader] = worker.call(_timed_load, reader, folder, repeats)
            worker.close()
    per_file = {reader: seconds / slices for reader, seconds in headers.items()}
    return {"header_seconds_per_file": per_file, "load_seconds": loads, "shape": [size, size, slices]}


def write_native(folder: Path, slices: int, size: int, series: str = "speed") -> None:
    """A CT of native pixels, of noise on a ramp as in a body."""
    from synthetic_dicom import slice_dataset

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (size, size), dtype=np.int16)
    for k in range(slices):
        pixels = np.roll(noise, 7 * k, axis=0) + np.int16(900 + k)
        one = slice_dataset(pixels, (-200.0, -200.0, float(k)), k + 1, series=series, spacing=(0.8, 0.8))
        one.save_as(folder / f"{series}_{k:04d}.dcm", enforce_file_format=True)


def print_speed(found: dict[str, Any]) -> None:
    """As a table, with ratios to ours."""
    for title, seconds in (
        ("headers, each file", found["header_seconds_per_file"]),
        (f"loading {found['shape']}", found["load_seconds"]),
    ):
        print(f"{title}".ljust(34) + "seconds".rjust(12) + "x ours".rjust(10))
        for name, value in seconds.items():
            shown = "failed" if value is None else f"{value:.6f}"
            ratio = "" if value is None else f"{value / seconds[OURS]:.2f}"
            print(f"  {name}".ljust(34) + shown.rjust(12) + ratio.rjust(10))


# -- (c) memory, (d) journal -------------------------------------------------------------------------------------------

_PEAK = """
import resource, sys
from pathlib import Path
from lvmmed_monai.ingest import ingest
if __name__ == "__main__":
    src, out = map(Path, sys.argv[1:3])
    ingest(src, out / "out", site_key=out / "site.key", workers=int(sys.argv[3]))
    # getrusage of this process would count the one that started it as well.
    status = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def _peak_mib(src: Path, scratch: Path, workers: int) -> float:
    """Peak memory in MiB of the largest process of an ingest (Linux)."""
    scratch.mkdir()
    script = scratch / "peak.py"
    script.write_text(_PEAK)
    done = subprocess.run(
        [sys.executable, str(script), str(src), str(scratch), str(workers)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return max(map(float, done.stdout.split()[-2:])) / 1024


def memory(series: int, slices: int, size: int) -> dict[str, Any]:
    """Peak memory in MiB of the largest process: importing, one series, several series; with 0 and 2 workers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {"series": series, "series_mib": slices * size * size * 2 / 2**20}
        for title, count, length in (("tiny", 1, 3), ("one", 1, slices), ("several", series, slices)):
            src = folder / title
            src.mkdir()
            for number in range(count):
                write_native(src, length, size, series=f"series{number}")
            for workers in (0, 2):
                found[f"{title}_mib_{workers}"] = _peak_mib(src, folder / f"{title} out {workers}", workers)
    return found


def print_memory(found: dict[str, Any]) -> None:
    """As a table."""
    print(f"peak memory of the largest process, MiB (a series holds {found['series_mib']:.0f})")
    for title in ("tiny", "one", "several"):
        name = f"{found['series']} series" if title == "several" else f"{title} series"
        for workers in (0, 2):
            print(f"  {name}, {workers} workers".ljust(34) + f"{found[f'{title}_mib_{workers}']:.0f}".rjust(12))


def print_journal(found: dict[str, float]) -> None:
    """One line a figure."""
    for name, value in found.items():
        print(f"  {name}".ljust(34) + f"{value:.3f}".rjust(12))


# -- the command -------------------------------------------------------------------------------------------------------


def largest_series(folder: Path) -> list[Dataset]:
    """The series with most slices of a folder, in the order of its positions."""
    groups: dict[str, list[Dataset]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and pydicom.misc.is_dicom(path):
            dataset = pydicom.dcmread(path)
            if "ImagePositionPatient" in dataset and "PixelData" in dataset:
                groups.setdefault(str(dataset.SeriesInstanceUID), []).append(dataset)
    found = max(groups.values(), key=len, default=[])
    if len(found) < 20:
        raise SystemExit(f"no series of 20 slices or more; {folder}; name a folder with a good series, unpacked")
    return in_order(found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="DICOM files of a good CT series, for the fault matrix")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--slices", type=int, default=140, help="of the series for speed and memory")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of these")
    parser.add_argument("--series", type=int, default=6, help="series for memory")
    parser.add_argument("--rows", type=int, default=100_000, help="series in the journal")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many times")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    return parser.parse_args()


def main() -> None:
    """Run the parts and print them."""
    options = _options()
    known = {"SimpleITK", "MONAI ITKReader", "MONAI PydicomReader", "dicom2nifti", "dcm2niix", "highdicom"}
    for name in sorted(known - set(other_readers())):
        print(f"left out: {name} is not installed")
    parts: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
        "matrix": (
            lambda: matrix(largest_series(options.folder) if options.folder else oblique_series()),
            print_matrix,
        ),
        "speed": (lambda: speed(options.slices, options.size, options.repeats), print_speed),
        "memory": (lambda: memory(options.series, options.slices, options.size), print_memory),
        "journal": (lambda: journal_figures(options.rows), print_journal),
    }
    found = {}
    for name in options.only:
        measure, show = parts[name]
        print(f"\n== {name}")
        found[name] = measure()
        show(found[name])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
