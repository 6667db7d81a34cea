"""Generated studies for whole ingests, and what an ingest left behind, to be compared byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from synthetic_dicom import save, segmentation, slice_dataset, uid

X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"


def large_series(count: int = 12, size: int = 128, *, seed: int = 0, **kinds: Any) -> list[Dataset]:
    """A clean axial series of ``count`` slices of ``size`` x ``size``, smooth with noise, air in one corner."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    smooth = 700 * np.sin(5 * rows + seed) * np.cos(4 * columns) + 800
    values = smooth + rng.integers(0, 60, (count, size, size))
    values[:, :4, :4] = 0
    return [slice_dataset(values[k].astype(np.int16), (-60.0, -50.0, 3.0 * k), k + 1, **kinds) for k in range(count)]


def labels_of(source: Sequence[Dataset]) -> Dataset:
    """A SEG of two structures."""
    size = int(source[0].Rows)
    liver, spleen = np.zeros((2, len(source), size, size), dtype=bool)
    liver[2:-2, size // 4 : size // 2, size // 4 : size // 2] = True
    spleen[1:-3, size // 2 : -size // 4, size // 2 : -size // 4] = True
    return segmentation(source, {1: liver, 2: spleen}, {1: "Liver", 2: "Spleen"})


def time_points(times: int, count: int, size: int, **kinds: Any) -> list[Dataset]:
    """A series that holds several volumes, numbered."""
    found = []
    for time in range(times):
        for one in large_series(count, size, seed=20 + time, **kinds):
            one.InstanceNumber = len(found) + 1
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = uid(f"{one.SOPInstanceUID} {time}")
            one.TemporalPositionIdentifier, one.NumberOfTemporalPositions = time + 1, times
            found.append(one)
    return found


def x_rays(count: int, size: int, patient: str) -> list[Dataset]:
    """A series of planar images."""
    found = large_series(count, size, seed=31, series="planar", patient=patient)
    for one in found:
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = X_RAY
        one.Modality, one.PixelRepresentation, one.ImagerPixelSpacing = "DX", 0, one.PixelSpacing
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"):
            delattr(one, keyword)
    return found


def ultrasound(patient: str, *, burned_in: bool = False) -> list[Dataset]:
    """One picture of grey ultrasound, which may state that text is burned in."""
    (one,) = x_rays(1, 48, patient)
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    one.Modality, one.PixelData, one.BitsAllocated, one.BitsStored, one.HighBit = "US", bytes(range(48)) * 48, 8, 8, 7
    one.BurnedInAnnotation = "YES" if burned_in else "NO"
    return [one]


def tilted(source: list[Dataset], degrees: float) -> list[Dataset]:
    """The same slices on a table that moves at an angle."""
    for one in source:
        x, y, z = one.ImagePositionPatient
        one.ImagePositionPatient = [x, round(float(y) + float(z) * float(np.tan(np.radians(degrees))), 6), z]
    return source


def write_ten(folder: Path, count: int = 12, size: int = 128) -> None:
    """Ten series: five CT (three with labels, one of them tilted), two MR, one of three time points, one planar, one
    in a compressed archive."""
    for number in range(5):
        source = large_series(count, size, seed=number, patient=f"PATIENT-{number}")
        if number == 2:
            tilted(source, 12.0)
        save(source, folder / f"ct{number}")
        if number < 3:
            save([labels_of(source)], folder / f"ct{number}" / "labels")
    for number in (5, 6):
        save(large_series(count, size, seed=number, patient=f"PATIENT-{number}", modality="MR"), folder / f"mr{number}")
    save(time_points(3, 4, size, series="times", patient="PATIENT-5", modality="MR"), folder / "times")
    save(x_rays(3, size, "PATIENT-8"), folder / "planar")
    loose = save(large_series(count, size, seed=9, patient="PATIENT-9"), folder / "loose")
    with tarfile.open(folder / "export.tar.gz", "w:gz", compresslevel=1) as archive:
        for path in reversed(loose):
            archive.add(path, path.name)
            path.unlink()
    (folder / "loose").rmdir()


def outputs(folder: Path) -> dict[str, bytes]:
    """All files below an output folder but the journal; ``qc.json`` without its timings."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "journal.sqlite"
    }
    if "qc.json" in found:
        record = json.loads(found["qc.json"])
        assert record.pop("timings")
        found["qc.json"] = json.dumps(record).encode()
    return found


def difference(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """Names of files that are in one only, or not equal."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def environment(**more: str) -> dict[str, str]:
    """For a child process that is to use this checkout."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **more}


def command(*words: object) -> list[str]:
    """The words of ``lvmmed`` as a child process."""
    return [sys.executable, "-m", "lvmmed_monai", *map(str, words)]


def lvmmed(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``lvmmed``; ``more`` are environment variables."""
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, env=environment(**more))
