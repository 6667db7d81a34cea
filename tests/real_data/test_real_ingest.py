"""The ingest on real, public DICOM: what the data's own README names, and SimpleITK as the oracle."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from lvmmed_monai.errors import DataError
from lvmmed_monai.ingest.mosaic import converter
from lvmmed_monai.ingest.pipeline import ingest

pytestmark = pytest.mark.real_data


@pytest.fixture
def ingested(tmp_path, real_data):
    def run(name: str, **options: Any) -> tuple[Path, list[dict[str, Any]]]:
        out = tmp_path / "out"
        try:
            ingest(real_data(name), out, site_key=tmp_path / "site.key", **options)
        except DataError:
            assert not list(out.glob("datalist*"))
        series: list[dict[str, Any]] = json.loads((out / "qc.json").read_text())["series"]
        return out, series

    return run


def accepted(series: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in series if entry["accepted"]]


def errors(entry: dict[str, Any]) -> list[str]:
    return [finding["code"] for finding in entry["findings"] if finding["severity"] == "error"]


def shapes(series: list[dict[str, Any]]) -> list[list[int]]:
    return sorted(entry["shape"] for entry in accepted(series))


def unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as source:
        source.extractall(folder)
    return folder


def series_of_simpleitk(folder: Path) -> Any:
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    (inner,) = {path.parent for path in folder.rglob("*.dcm")}
    (series,) = reader.GetGDCMSeriesIDs(str(inner))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(inner), series))
    return reader.Execute()


def test_clean_ct_equals_simpleitk_voxel_for_voxel(ingested, real_data, tmp_path):
    out, series = ingested("crlm_ct_dicom")
    (entry,) = series
    assert (entry["accepted"], entry["modality"], entry["findings"]) == (True, "CT", [])
    assert entry["shape"] == [512, 512, 41]
    assert np.allclose(entry["spacing_mm"], (0.796875, 0.796875, 5.0), atol=1e-4)
    assert entry["value_range"] == [-3024.0, 1377.0]
    image = nib.load(out / "images" / f"{entry['id']}.nii.gz")
    oracle = series_of_simpleitk(unpacked(next(real_data("crlm_ct_dicom").glob("*.zip")), tmp_path / "dicom"))
    assert oracle.GetSize() == image.shape
    assert image.get_data_dtype() == np.int16
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(image.shape) - 1)
    for index in [*corners.tolist(), [100, 200, 30]]:
        lps = np.array(oracle.TransformIndexToPhysicalPoint(index))
        assert np.allclose((image.affine @ [*index, 1])[:3], lps * (-1, -1, 1), atol=1e-3)
    import SimpleITK

    values = SimpleITK.GetArrayFromImage(oracle).transpose(2, 1, 0)
    assert np.array_equal(np.asarray(image.dataobj), values)


def test_oblique_mr_takes_its_spacing_from_positions(ingested):
    _, series = ingested("brain_mr_dicom")
    assert shapes(series) == [[34, 50, 40], [280, 320, 22], [280, 320, 22]]
    for entry in accepted(series):
        large = entry["shape"] == [280, 320, 22]
        assert np.allclose(entry["spacing_mm"], (0.6875, 0.6875, 6.5) if large else (1, 1, 1), atol=1e-3)
        assert ("W01" in [finding["code"] for finding in entry["findings"]]) == large


def test_two_time_points_are_in_the_order_of_their_dates(ingested):
    out, series = ingested("mr_two_time_points_dicom")
    assert [(entry["shape"], round(entry["spacing_mm"][2], 3)) for entry in series] == [
        ([256, 288, 45], 6.0),
        ([256, 288, 36], 7.0),
    ]
    items = [
        item
        for section in ("training", "validation", "test")
        for item in json.loads((out / "datalist.json").read_text())[section]
    ]
    assert [item["series"] for item in items] == [entry["id"] for entry in series]
    assert len({item["subject"] for item in items}) == 1
    assert len({item["study"] for item in items}) == 2


def test_what_must_be_refused_has_its_own_reason(ingested):
    _, series = ingested("dicom_must_refuse")
    assert accepted(series) == []
    assert sorted(errors(entry) for entry in series) == [["D04"], ["G01"], ["G07"], ["S01", "G06"]]


def test_even_tilt_is_straightened_and_uneven_steps_are_refused(ingested):
    _, series = ingested("ct_gantry_tilt_dicom")
    even, uneven = sorted(series, key=lambda entry: not entry["accepted"])
    assert (even["accepted"], even["shape"]) == (True, [512, 527, 10])
    assert errors(uneven) == ["G02"]
    tilts = [f["measured"] for entry in series for f in entry["findings"] if f["code"] == "G03"]
    assert tilts == ["stacked at 18.5 degrees to the normal"] * 2


def test_breast_label_lies_on_its_slices_and_phases_are_told_apart(ingested, real_data):
    out, series = ingested("breast_mr_dicom_seg")
    volume, *phases = sorted(series, key=lambda entry: entry.get("time_point", 0))
    assert [(phase["shape"], phase["time_point"], phase["time_points"]) for phase in phases] == [
        ([256, 256, 12], number, 3) for number in (1, 2, 3)
    ]
    assert (volume["shape"], volume["labels"]) == ([256, 256, 60], ["breast"])
    assert np.allclose(volume["spacing_mm"], (0.703125, 0.703125, 2.0), atol=1e-3)
    label = nib.load(out / "labels" / f"{volume['id']}.nii.gz")
    image = nib.load(out / "images" / f"{volume['id']}.nii.gz")
    assert np.array_equal(label.affine, image.affine)
    mask = np.asarray(label.dataobj)
    assert np.count_nonzero(mask.any(axis=(0, 1))) == 42
    with zipfile.ZipFile(real_data("breast_mr_dicom_seg") / "UCSF-BR-06_PE1_SEG.zip") as archive:
        (member,) = [name for name in archive.namelist() if "/SEG/" in name and name.endswith(".dcm")]
        seg = pydicom.dcmread(io.BytesIO(archive.read(member)))
    frames = seg.pixel_array
    assert int(mask.sum()) == int(np.count_nonzero(frames == 255))
    # Each frame's first pixel, taken to RAS by its own header, must land on the slice that holds its mask.
    inverse = np.linalg.inv(image.affine)
    for frame, item in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        x, y, z = item.PlanePositionSequence[0].ImagePositionPatient
        column, row, k = (inverse @ [-x, -y, z, 1])[:3]
        assert np.allclose((column, row), 0, atol=0.02)
        assert np.array_equal(mask[:, :, round(k)], frame.T == 255)


def test_only_the_proper_volume_of_a_media_directory(ingested):
    _, series = ingested("dicomdir_multi_patient")
    assert shapes(series) == [*[[16, 16]] * 3, [16, 16, 5]]
    (volume,) = (entry for entry in accepted(series) if entry["kind"] == "volume")
    assert np.allclose(volume["spacing_mm"], (0.488281, 0.488281, 2.5), atol=1e-4)
    assert all(errors(entry) for entry in series if not entry["accepted"])
    assert {code for entry in series for code in errors(entry)} == {"G01", "G06", "G07", "R01"}


def test_emptied_uids_and_thickness_unlike_spacing(ingested, real_data):
    out, series = ingested("totalsegmentator_example")
    (entry,) = accepted(series)
    assert entry["shape"] == [512, 512, 20]
    assert np.allclose(entry["spacing_mm"], (0.977, 0.977, 2.0), atol=1e-3)
    twin = nib.load(real_data("totalsegmentator_example") / "example_ct_dicom_seg.nii.gz")
    ours = nib.load(out / "images" / f"{entry['id']}.nii.gz")
    corners = {tuple(np.round(image.affine @ [*corner, 1], 2)) for image in (twin,) for corner in _corners(image.shape)}
    assert corners == {tuple(np.round(ours.affine @ [*corner, 1], 2)) for corner in _corners(ours.shape)}


def _corners(shape: tuple[int, ...]) -> list[list[int]]:
    return (np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)).tolist()


def test_small_label_objects_and_overlap(ingested, real_data):
    out, series = ingested("dicom_seg_small")
    (small,) = (entry for entry in accepted(series) if entry["labels"])
    (large,) = (entry for entry in accepted(series) if entry["label_channels"])
    assert (small["shape"], small["labels"]) == ([24, 38, 3], ["liver"])
    assert (large["shape"], large["labels"], errors(large)) == ([512, 512, 3], None, [])
    assert "M05" in [finding["code"] for finding in large["findings"]]
    channels = nib.load(out / "labels" / f"{large['id']}_channels.nii.gz")
    assert channels.shape == (512, 512, 3, len(large["label_channels"]))
    sitk = pytest.importorskip("SimpleITK")
    oracle = sitk.GetArrayFromImage(
        sitk.ReadImage(str(real_data("dicom_seg_small") / "24x38x3" / "nrrd" / "label.nrrd"))
    )
    mask = np.asarray(nib.load(out / "labels" / f"{small['id']}.nii.gz").dataobj)
    assert np.array_equal(mask > 0, oracle.transpose(2, 1, 0) > 0)


def test_makers_and_codecs(ingested):
    _, series = ingested("mr_multivendor_dicom")
    single = [[256, 256, 4]] * 3 + [[240, 240, 4], [64, 64, 4], [64, 28, 4], [256, 256, 8], [112, 138, 8]]
    repeated = [[64, 64, 4]] * 6 + [[80, 80, 2]] * 4 + [[128, 128, 2]] * 4 + [[64, 64, 8]] * 4
    mosaics = [[80, 80, 64]] * 2 if converter() else []
    assert shapes(series) == sorted(single + repeated + mosaics)
    assert [code for entry in series for code in errors(entry)] == ([] if mosaics else ["R04"])


def test_only_pictures_come_out_of_single_files(ingested):
    _, series = ingested("dicom_compressed_odd", keep_burned_in=True)
    assert {(entry["kind"], entry["modality"]) for entry in accepted(series)} == {("image", "US"), ("image", "DX")}
    assert sorted(entry["frames"] for entry in accepted(series)) == [1, 1, 1, 30]


def test_ultrasound_that_does_not_deny_text_stays_out(ingested):
    out, series = ingested("dicom_compressed_odd")
    ultrasound = [entry for entry in series if entry["modality"] == "US"]
    assert [errors(entry) for entry in ultrasound] == [["P01"]] * 3
    assert len(list((out / "images").iterdir())) == 1
    assert not any((out / "previews" / f"{entry['id']}.png").exists() for entry in ultrasound)
