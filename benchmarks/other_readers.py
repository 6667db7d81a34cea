"""DICOM readers of other projects behind one interface, for comparison: those that are installed.

    pip install SimpleITK monai dicom2nifti dcm2niix highdicom

A reader takes a folder that holds a study and gives every volume that it makes of it as (array (columns, rows, slices),
affine (4, 4) to RAS in mm), or raises. Each is used as its own documentation shows it, with its default settings; where
it reads one series at a time and lists the series of a folder, all of them are read.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["OtherReader", "RefusalError", "Volume", "other_readers"]

Volume = tuple[np.ndarray, np.ndarray]
OtherReader = Callable[[Path], list[Volume]]
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class RefusalError(Exception):
    """A reader ended with an error of its own."""


def other_readers() -> dict[str, OtherReader]:
    """Readers that are installed, by name."""
    found: dict[str, tuple[str, OtherReader]] = {
        "SimpleITK": ("SimpleITK", simpleitk),
        "MONAI ITKReader": ("itk", monai_itk),
        "MONAI PydicomReader": ("monai", monai_pydicom),
        "dicom2nifti": ("dicom2nifti", dicom2nifti),
        "dcm2niix": ("dcm2niix", dcm2niix),
        "highdicom": ("highdicom", highdicom),
    }
    return {name: reader for name, (module, reader) in found.items() if importlib.util.find_spec(module)}


def simpleitk(folder: Path) -> list[Volume]:
    """`ImageSeriesReader` over every series that it lists."""
    import SimpleITK

    volumes = []
    for series in SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series))
        image = reader.Execute()
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3)[:3, :3] * image.GetSpacing()[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
        volumes.append((SimpleITK.GetArrayViewFromImage(image).T.copy(), _LPS_TO_RAS @ affine))
    return _some(volumes)


def monai_itk(folder: Path) -> list[Volume]:
    """`monai.data.ITKReader` on the folder."""
    from monai.data import ITKReader

    return _monai(ITKReader(), folder)


def monai_pydicom(folder: Path) -> list[Volume]:
    """`monai.data.PydicomReader` on the folder."""
    from monai.data import PydicomReader

    return _monai(PydicomReader(), folder)


def _monai(reader: object, folder: Path) -> list[Volume]:
    array, meta = reader.get_data(reader.read(str(folder)))  # type: ignore[attr-defined]
    return [(np.asarray(array), np.asarray(meta["affine"], dtype=float))]


def dicom2nifti(folder: Path) -> list[Volume]:
    """`dicom_series_to_nifti` on the folder, not reoriented, not compressed."""
    from dicom2nifti import convert_dicom

    with tempfile.TemporaryDirectory() as out:
        convert_dicom.dicom_series_to_nifti(str(folder), str(Path(out) / "volume.nii"), reorient_nifti=False)
        return _nifti(sorted(Path(out).glob("*.nii")))


def dcm2niix(folder: Path) -> list[Volume]:
    """The command; where it writes a corrected file (`_Eq`, `_Tilt`) beside a raw one, the corrected one counts."""
    beside = Path(sys.executable).with_name("dcm2niix")
    program = str(beside) if beside.exists() else shutil.which("dcm2niix")
    if program is None:
        raise FileNotFoundError("dcm2niix")
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run([program, "-z", "n", "-b", "n", "-f", "v", "-o", out, str(folder)], check=False)
        if done.returncode:
            raise RefusalError(f"exit {done.returncode}")
        best: dict[str, Path] = {}
        for path in sorted(Path(out).glob("*.nii"), key=lambda path: len(path.stem)):
            best[path.stem.split("_")[0]] = path
        return _nifti(list(best.values()))


def highdicom(folder: Path) -> list[Volume]:
    """`get_volume_from_series` on every file of the folder."""
    import highdicom as hd
    from pydicom import dcmread

    volume = hd.get_volume_from_series([dcmread(path) for path in sorted(folder.iterdir())])
    array, affine = volume.array, volume.affine
    if array.ndim != 3:
        raise RefusalError("no single volume")
    # Its axes are (slices, rows, columns) and its affine is that of LPS.
    return [(array.transpose(2, 1, 0), _LPS_TO_RAS @ affine[:, [2, 1, 0, 3]])]


def _nifti(paths: list[Path]) -> list[Volume]:
    import nibabel as nib

    volumes = []
    for path in paths:
        image = nib.load(path)
        array = np.asarray(image.dataobj)
        times = [array] if array.ndim < 4 else [array[..., time] for time in range(array.shape[3])]
        volumes += [(one, np.asarray(image.affine, dtype=float)) for one in times]
    return _some(volumes)


def _some(volumes: list[Volume]) -> list[Volume]:
    if not volumes:
        raise RefusalError("no volume")
    return volumes
