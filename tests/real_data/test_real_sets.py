"""Every real DICOM set gives the volumes that its own README demands, and refusals have the reasons that it names."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lvmmed_monai.errors import DataError
from lvmmed_monai.ingest import ingest

pytestmark = pytest.mark.real_data

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]
Volumes = list[tuple[Size, Spacing]]


@dataclass(frozen=True)
class Demand:
    """What a set must give.

    Attributes:
        path: the set, or a folder or archive of it.
        volumes: shape and spacing in mm of each accepted volume; time points, echoes and b-values one by one.
        refused: codes, one set for each refused series or label; one of the set must be among its errors.
        reported: codes that must be found anywhere.
    """

    path: str
    volumes: Volumes
    refused: tuple[frozenset[str], ...] = ()
    reported: frozenset[str] = frozenset()


def _codes(*choices: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(choice.split()) for choice in choices)


MR = "mr_multivendor_dicom"
SAGITTAL: Volumes = [((256, 256, 4), (1.0, 1.0, 1.0))]

DEMANDS = [
    Demand("crlm_ct_dicom", [((512, 512, 41), (0.797, 0.797, 5.0))]),
    Demand(
        "brain_mr_dicom",
        [((34, 50, 40), (1.0, 1.0, 1.0)), *[((280, 320, 22), (0.688, 0.688, 6.5))] * 2],
        reported=frozenset({"W01"}),
    ),
    Demand(
        "sts_dicom_rtstruct",
        [
            ((198, 202, 59), (0.977, 0.977, 3.27)),
            ((41, 43, 59), (4.688, 4.688, 3.27)),
            ((161, 143, 48), (0.977, 0.977, 3.27)),
            ((115, 90, 35), (0.977, 0.977, 3.27)),
            ((30, 27, 48), (5.469, 5.469, 3.27)),
        ],
    ),
    Demand("totalsegmentator_example", [((512, 512, 20), (0.977, 0.977, 2.0))], reported=frozenset({"W01"})),
    Demand(
        "breast_mr_dicom_seg",
        [((256, 256, 60), (0.703, 0.703, 2.0)), *[((256, 256, 12), (0.703, 0.703, 2.0))] * 3],
        reported=frozenset({"T01"}),
    ),
    Demand(
        "mr_two_time_points_dicom",
        [((256, 288, 45), (1.562, 1.562, 6.0)), ((256, 288, 36), (1.562, 1.562, 7.0))],
        reported=frozenset({"W01"}),
    ),
    Demand("ct_gantry_tilt_dicom/philips_tilt.zip", [((512, 527, 10), (0.482, 0.482, 2.371))], (), frozenset({"G03"})),
    Demand("ct_gantry_tilt_dicom/ge_tilt_variable_spacing.zip", [], _codes("G02")),
    Demand("dicom_must_refuse/notavolume.zip", [], _codes("D04 G07")),
    Demand("dicom_must_refuse/slicecount.zip", [], _codes("G07")),
    Demand("dicom_must_refuse/sliceincrement.zip", [], _codes("G01 G02")),
    Demand("dicom_must_refuse/sliceorientation.zip", [], _codes("G06 S01")),
    Demand("dicomdir_multi_patient/98892001", [((16, 16, 5), (0.488, 0.488, 2.5))], _codes("R01")),
    Demand(f"{MR}/siemens_anatomical_001", SAGITTAL),
    Demand(f"{MR}/ge_anatomical_001_implicit", SAGITTAL),
    Demand(f"{MR}/generic_compressed_j2k_001", SAGITTAL),
    Demand(f"{MR}/generic_compressed_jpeg_001", SAGITTAL),
    Demand(f"{MR}/generic_compressed_jpegls_001", SAGITTAL),
    Demand(f"{MR}/generic_compressed_rle_001", SAGITTAL),
    Demand(f"{MR}/siemens_multiframe_anatomical_001", [((256, 256, 8), (0.938, 0.938, 0.9))]),
    Demand(f"{MR}/ge_fmri_001", [((64, 64, 4), (3.0, 3.0, 3.6))] * 2, reported=frozenset({"T01"})),
    Demand(f"{MR}/ge_dti_002", [((64, 64, 4), (3.438, 3.438, 3.8))] * 4, reported=frozenset({"T01"})),
    Demand(f"{MR}/philips_anatomical_001", [((240, 240, 4), (1.042, 1.042, 0.6))]),
    Demand(f"{MR}/philips_fmri_001", [((80, 80, 2), (3.0, 3.0, 3.3))] * 4, reported=frozenset({"T01"})),
    Demand(f"{MR}/philips_dti_001", [((128, 128, 2), (2.0, 2.0, 2.0))] * 4, reported=frozenset({"T01"})),
    Demand(f"{MR}/philips_enhanced_fmri_001", [((64, 64, 8), (3.312, 3.312, 3.313))] * 4, reported=frozenset({"T01"})),
    Demand(f"{MR}/hitachi_anatomical_001", [((64, 64, 4), (2.344, 2.344, 4.0))]),
    Demand(f"{MR}/hyperfine_anatomical_001", [((112, 138, 8), (1.59, 1.61, 5.0))]),
    Demand(f"{MR}/generic_anatomical_002_non_isotropic", [((64, 28, 4), (6.4, 4.0, 0.5))]),
    Demand("dicom_seg_small/24x38x3/image", [((24, 38, 3), (0.7, 0.7, 2.5))]),
    Demand("dicom_seg_small/24x38x3/multiframe", [((24, 38, 3), (0.7, 0.7, 2.5))]),
    Demand("dicom_seg_small/ct_3slice_image.zip", [((512, 512, 3), (0.811, 0.811, 1.0))]),
]


def _record(source: Any, tmp_path: Any) -> dict[str, Any]:
    with suppress(DataError):  # nothing was accepted; the record says why
        ingest(source, tmp_path / "out", site_key=tmp_path / "site.key")
    record: dict[str, Any] = json.loads((tmp_path / "out" / "qc.json").read_text())
    return record


def _errors(entry: dict[str, Any]) -> set[str]:
    return {finding["code"] for finding in entry["findings"] if finding["severity"] == "error"}


@pytest.mark.parametrize("demand", DEMANDS, ids=lambda demand: demand.path)
def test_a_set_gives_what_its_readme_demands(demand, real_data, tmp_path):
    name, _, inner = demand.path.partition("/")
    series = _record(real_data(name) / inner, tmp_path)["series"]
    volumes = [entry for entry in series if entry["accepted"] and len(entry["shape"]) == 3]
    assert Counter(tuple(entry["shape"]) for entry in volumes) == Counter(size for size, _ in demand.volumes)
    found = sorted((tuple(entry["shape"]), *entry["spacing_mm"]) for entry in volumes)
    wanted = sorted((size, *spacing) for size, spacing in demand.volumes)
    for (_, *spacing), (_, *expected) in zip(found, wanted, strict=True):
        assert np.allclose(spacing, expected, atol=0.006)
    refused = [_errors(entry) for entry in series if not entry["accepted"]]
    assert len(refused) == len(demand.refused), refused
    for choice in demand.refused:
        assert any(choice & errors for errors in refused), refused
    assert demand.reported <= {finding["code"] for entry in series for finding in entry["findings"]}


def test_a_mosaic_is_converted_or_refused_with_its_code(real_data, tmp_path):
    series = _record(real_data(MR) / "siemens_fmri_001", tmp_path)["series"]
    if any(entry["accepted"] for entry in series):
        assert [tuple(entry["shape"]) for entry in series] == [(80, 80, 64)] * 2
        for entry in series:
            assert np.allclose(entry["spacing_mm"], (2.5, 2.5, 3.08), atol=0.01)
    else:
        assert [_errors(entry) for entry in series] == [{"R04"}]


def test_one_slice_in_eight_encodings_and_broken_files_give_no_volume(real_data, tmp_path):
    record = _record(real_data("dicom_compressed_odd") / "broken_or_incomplete", tmp_path)
    assert not [entry for entry in record["series"] if entry["accepted"]]
    assert {row["code"] for row in record["files"]} <= {"F02", "F03", "F04", "F05"}


def test_four_codecs_of_one_series_read_together_count_once(real_data, tmp_path):
    for codec in ("j2k", "jpeg", "jpegls", "rle"):
        shutil.copytree(real_data(MR) / f"generic_compressed_{codec}_001", tmp_path / "all" / codec)
    (entry,) = _record(tmp_path / "all", tmp_path)["series"]
    assert (entry["accepted"], entry["shape"]) == (True, [256, 256, 4])
    assert "D01" in {finding["code"] for finding in entry["findings"]}
