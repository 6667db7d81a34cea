"""Siemens mosaics: volumes tiled into one image, converted by dcm2niix where that is installed.

Which tiles hold slices, and which way they are stacked, stands in private headers that dcm2niix knows. Its answer is
not taken on trust: the corner of a slice has to lie where the public headers say (dicom.md's rule for mosaics: the
position of the whole image is that of a slice as large as the mosaic, so a slice's own corner is half of the
difference further in).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.geometry import Array, SliceGrid, plane_axes
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.checks import values as value_checks
from lvmmed_monai.ingest.findings import run_checks
from lvmmed_monai.ingest.hold import UNPACKED
from lvmmed_monai.ingest.volumes import DecodedVolume
from lvmmed_monai.ingest.writer import VolumePaths, facts, write_volume

__all__ = ["CONVERTER", "MosaicJob", "converter", "make_mosaic", "read_mosaic"]

CONVERTER = "dcm2niix"
_SECONDS = 300.0
_CORNER_TOLERANCE_MM = 0.1


def converter() -> str | None:
    """The dcm2niix program: that of the Python package, else the one on the path, else None."""
    if find_spec(CONVERTER) is not None:
        import dcm2niix

        return str(dcm2niix.bin)
    return shutil.which(CONVERTER)


def _first_corner(header: Header, columns: int, rows: int) -> Array:
    """Centre of the first pixel of the first slice (LPS, mm)."""
    if header.position is None or header.orientation is None or header.pixel_spacing is None:
        raise DicomError("G04", "a mosaic without position, orientation or spacing", "a place in space")
    row, column, _ = plane_axes(header.orientation)
    between_rows, between_columns = header.pixel_spacing
    across = row * between_columns * (header.columns - columns) / 2
    down = column * between_rows * (header.rows - rows) / 2
    return np.asarray(header.position) + across + down


def _check_corner(header: Header, shape: Sequence[int], affine: Array) -> None:
    corner = _first_corner(header, shape[0], shape[1]) * (-1, -1, 1)
    ends = np.array(np.meshgrid([0, shape[0] - 1], [0, shape[1] - 1], [0, shape[2] - 1], [1])).reshape(4, -1)
    distance = float(np.linalg.norm((affine @ ends)[:3].T - corner, axis=1).min())
    if distance > _CORNER_TOLERANCE_MM:
        raise DicomError(
            "R04", f"a converted mosaic whose corner is {distance:.1f} mm off", f"at most {_CORNER_TOLERANCE_MM} mm"
        )


def read_mosaic(
    headers: Sequence[Header], reader: SourceReader, program: str, scratch: Path | None = None
) -> tuple[NDArray[Any], Array]:
    """Convert a series of mosaics.

    Args:
        headers: one for each time point.
        reader: of their files.
        program: from `converter`.
        scratch: folder in which a private one is made for the time; None for that of the system.

    Returns:
        (columns, rows, slices, time points) and its affine (4, 4) to RAS in mm.

    Raises:
        DicomError: R04 it was not converted to one grid with a volume for each image, at its place.
    """
    with tempfile.TemporaryDirectory(prefix=UNPACKED, dir=scratch) as folder:
        source, result = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        result.mkdir()
        for number, header in enumerate(headers):
            (source / f"{number:06d}.dcm").write_bytes(reader.read(header.source))
        command = [program, "-b", "n", "-z", "n", "-f", "%s", "-o", str(result), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DicomError("R04", f"{CONVERTER} ended with {type(error).__name__}", "a converted mosaic") from None
        files = sorted(result.glob("*.nii"))
        if done.returncode or len(files) != 1:
            measured = f"{CONVERTER} gave {len(files)} volumes and exit code {done.returncode}"
            raise DicomError("R04", measured, "one volume and exit code 0")
        image: Any = nib.load(files[0])
        values = np.asanyarray(image.dataobj)
    values = values[..., None] if values.ndim == 3 else values
    if values.shape[3] != len(headers):
        raise DicomError("R04", f"{values.shape[3]} time points", f"{len(headers)}, one for each image")
    affine = np.asarray(image.affine, dtype=np.float64)
    _check_corner(headers[0], values.shape, affine)
    return values, affine


@dataclass(frozen=True)
class MosaicJob:
    """Make the volumes of a series of mosaics; ``ids`` are the pseudonyms of its time points."""

    headers: tuple[Header, ...]
    ids: tuple[str, ...]
    out: Path
    program: str


def _grid(shape: Sequence[int], affine: Array) -> SliceGrid:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(lps[:3, :2], axis=0)
    return SliceGrid(
        columns=shape[0],
        rows=shape[1],
        orientation=np.concatenate([lps[:3, 0] / steps[0], lps[:3, 1] / steps[1]]),
        pixel_spacing=(float(steps[1]), float(steps[0])),
        positions=lps[:3, 3] + np.arange(shape[2])[:, None] * lps[:3, 2],
    )


def make_mosaic(job: MosaicJob) -> dict[str, Any]:
    """Convert a series of mosaics and write its volumes.

    Returns:
        "volumes": what ``qc.json`` says of each.

    Raises:
        DicomError: see `read_mosaic`; nothing was written.
    """
    with SourceReader() as reader:
        values, affine = read_mosaic(job.headers, reader, job.program, job.out)
    grid = _grid(values.shape, affine)
    kind = np.int16 if values.dtype == np.int16 else np.float32
    made = []
    for index, volume_id in enumerate(job.ids):
        array = values[..., index].astype(kind)
        volume = DecodedVolume(job.headers[0].modality, array, grid, (1.0,), False, (CONVERTER,))
        write_volume(VolumePaths(job.out, volume_id), volume, None, None)
        made.append(facts(volume, run_checks(value_checks.CHECKS, volume)))
    return {"volumes": made}
