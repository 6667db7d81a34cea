"""Every good real series: 400 random points of each slice, taken to millimetres from its own header, in our volume.

What the slices say is read with pydicom alone (see ``world.py``). Where one series holds several volumes, the k-th
image at each position, by InstanceNumber or by frame, belongs to the k-th volume: true of these sets, and found in
their headers by hand, not a rule for any series.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from readings import our_reader
from world import Plane, displacement, look_up, planes_of, same_volumes

pytestmark = pytest.mark.real_data

MR = "mr_multivendor_dicom"


@dataclass(frozen=True)
class Case:
    """One folder or archive of a set, and how many volumes of how many slices it holds, largest first."""

    path: str
    slices: tuple[int, ...]
    resampled: bool = False


CASES = [
    Case("crlm_ct_dicom/CRLM-CT-1004.zip", (41,)),
    Case("brain_mr_dicom", (40, 22, 22)),
    Case("sts_dicom_rtstruct", (59, 59, 48, 48, 35)),
    Case("totalsegmentator_example/example_ct_dicom", (20,)),
    Case("breast_mr_dicom_seg/UCSF-BR-06_PE1_SEG.zip", (60,)),
    Case("breast_mr_dicom_seg/UCSF-BR-06_dynamic.zip", (12, 12, 12)),
    Case("mr_two_time_points_dicom", (45, 36)),
    Case("ct_gantry_tilt_dicom/philips_tilt.zip", (10,), resampled=True),
    Case("dicom_seg_small/24x38x3/image", (3,)),
    Case("dicom_seg_small/24x38x3/multiframe", (3,)),
    Case("dicom_seg_small/ct_3slice_image.zip", (3,)),
    Case("dicomdir_multi_patient/98892001", (5,)),
    Case(f"{MR}/siemens_anatomical_001", (4,)),
    Case(f"{MR}/siemens_multiframe_anatomical_001", (8,)),
    Case(f"{MR}/ge_anatomical_001_implicit", (4,)),
    Case(f"{MR}/ge_fmri_001", (4, 4)),
    Case(f"{MR}/ge_dti_002", (4, 4, 4, 4)),
    Case(f"{MR}/philips_fmri_001", (2, 2, 2, 2)),
    Case(f"{MR}/philips_dti_001", (2, 2, 2, 2)),
    Case(f"{MR}/philips_anatomical_001", (4,)),
    Case(f"{MR}/philips_enhanced_fmri_001", (8, 8, 8, 8)),
    Case(f"{MR}/hitachi_anatomical_001", (4,)),
    Case(f"{MR}/hyperfine_anatomical_001", (8,)),
    Case(f"{MR}/generic_anatomical_002_non_isotropic", (4,)),
    Case(f"{MR}/generic_compressed_j2k_001", (4,)),
    Case(f"{MR}/generic_compressed_jpeg_001", (4,)),
    Case(f"{MR}/generic_compressed_jpegls_001", (4,)),
    Case(f"{MR}/generic_compressed_rle_001", (4,)),
]


def datasets(source: Path) -> Iterator[tuple[str, pydicom.Dataset]]:
    """DICOM objects, and the names of their folders, of a folder with the archives in it, or of an archive."""
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if not name.endswith("/"):
                        yield str(Path(name).parent), pydicom.dcmread(io.BytesIO(archive.read(name)))
        elif path.is_file() and path.name != "DICOMDIR" and pydicom.misc.is_dicom(path):
            yield str(path.parent), pydicom.dcmread(path)


def images(source: Path) -> dict[str, list[tuple[int, Plane]]]:
    """Numbered slices of each CT, MR or PET series; scouts left out."""
    found: dict[str, list[tuple[int, Plane]]] = defaultdict(list)
    for folder, dataset in datasets(source):
        if dataset.Modality not in ("CT", "MR", "PT") or "LOCALIZER" in dataset.get("ImageType", ()):
            continue
        number = int(dataset.get("InstanceNumber") or 0) * 10_000
        key = str(dataset.get("SeriesInstanceUID") or folder)
        found[key] += [(number + frame, plane) for frame, plane in enumerate(planes_of(dataset))]
    return found


def volumes_of(numbered: list[tuple[int, Plane]]) -> list[list[Plane]]:
    """The volumes of a series: the k-th image at each position belongs to the k-th volume."""
    normal = numbered[0][1].normal
    places: dict[float, list[tuple[int, Plane]]] = defaultdict(list)
    for number, plane in numbered:
        places[round(float(plane.origin @ normal), 2)].append((number, plane))
    ranked = [sorted(members, key=lambda member: member[0]) for _, members in sorted(places.items())]
    return [[plane for _, plane in volume] for volume in zip(*ranked, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_every_volume_lies_where_its_slices_say(case, real_data, tmp_path):
    name, _, inner = case.path.partition("/")
    source = real_data(name) / inner
    truth = [volume for series in images(source).values() for volume in volumes_of(series)]
    reading = our_reader(source, tmp_path)
    assert sorted(len(volume) for volume in truth)[::-1] == list(case.slices)
    assert sorted(array.shape[2] for array, _ in reading.volumes)[::-1] == list(case.slices)
    assert same_volumes(reading.volumes, truth, resampled=case.resampled)


def test_a_tilted_series_comes_out_straight_and_in_its_place(real_data, tmp_path):
    source = real_data("ct_gantry_tilt_dicom") / "philips_tilt.zip"
    (series,) = images(source).values()
    (slices,) = volumes_of(series)
    ((array, affine),) = our_reader(source, tmp_path).volumes
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    assert np.allclose(steps.T @ steps, np.eye(3), atol=1e-6)
    moved = displacement((array, affine), slices)
    assert (moved.shift_mm < 0.1, moved.inside > 0.99, moved.correlation > 0.98) == (True, True, True)
    assert look_up((array, affine), slices, tolerance=np.inf).share > 0.99
