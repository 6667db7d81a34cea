"""The fault matrix on a real CT of 41 slices: each damaged copy is read right or refused with the right code."""

from __future__ import annotations

import functools
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from damage import DAMAGES, in_order
from readings import check_damage

pytestmark = pytest.mark.real_data

CROP = slice(120, 376)
"""Rows and columns that are kept: the middle of the body, in a quarter of the time."""


@functools.cache
def cropped(folder: Path) -> list[pydicom.Dataset]:
    """The series, cropped, in the order of its positions."""
    with zipfile.ZipFile(next(folder.glob("*.zip"))) as archive:
        members = [name for name in archive.namelist() if name.endswith(".dcm")]
        slices = [pydicom.dcmread(io.BytesIO(archive.read(member))) for member in members]
    for one in slices:
        pixels = one.pixel_array[CROP, CROP]
        axes = np.array(one.ImageOrientationPatient, dtype=float).reshape(2, 3)
        down, across = (float(value) * CROP.start for value in one.PixelSpacing)
        corner = np.array(one.ImagePositionPatient, dtype=float) + across * axes[0] + down * axes[1]
        one.ImagePositionPatient = [round(float(value), 6) for value in corner]
        one.PixelData = np.ascontiguousarray(pixels).tobytes()
        one.Rows, one.Columns = pixels.shape
    return in_order(slices)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_each_damage_of_a_real_series(damage, real_data, tmp_path):
    check_damage(damage, cropped(real_data("crlm_ct_dicom")), tmp_path)
    shutil.rmtree(tmp_path)
