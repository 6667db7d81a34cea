"""Mutated bytes of real files, 2,000 times: no crash, no hang, bounded memory, no wrong volume."""

from __future__ import annotations

import shutil

import pytest
from mutations import run

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "pattern", "first", "count"),
    [
        ("sts_dicom_rtstruct", "STS_002/PET/image/*", 20, 1000),
        ("mr_multivendor_dicom", "hitachi_anatomical_001/*", 0, 500),
        ("dicom_seg_small", "24x38x3/image/*", 0, 300),
        ("mr_multivendor_dicom", "generic_compressed_rle_001/*", 0, 100),
        ("mr_multivendor_dicom", "generic_compressed_j2k_001/*", 0, 100),
    ],
)
def test_mutated_real_files_never_give_a_wrong_volume(name, pattern, first, count, real_data, tmp_path):
    (tmp_path / "clean").mkdir()
    for path in sorted(real_data(name).glob(pattern))[first : first + 8]:
        shutil.copy(path, tmp_path / "clean")
    found = run(tmp_path / "clean", tmp_path / "mutated", count)
    assert found["failures"] == []
    assert found["peak_mib"] < 1024
    assert found["outcomes"]["accepted"] > 0
