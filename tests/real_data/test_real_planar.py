"""Real X-rays, ultrasound and odd encodings, against SimpleITK, highdicom and pydicom."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_color_lut, get_decoder

from lvmmed_monai.data.images import read_content
from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.headers import Header, read_header
from lvmmed_monai.dicom.planar import CUT, TURNED, UNSCALED, PlanarImage, decode_planar
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.pipeline import ingest
from lvmmed_monai.ingest.planar import make_planar

pytestmark = pytest.mark.real_data


@pytest.fixture
def odd(real_data) -> Path:
    return real_data("dicom_compressed_odd")


def header_of(path: Path) -> Header:
    return read_header(path.read_bytes(), Source(str(path)))


def decoded(path: Path) -> PlanarImage:
    return decode_planar(path.read_bytes(), header_of(path))


def test_monochrome1_film_equals_simpleitk_and_highdicom(odd):
    path = odd / "decodable" / "dx_image.dcm"
    image = decoded(path)
    assert image.notes == (TURNED,)
    assert round(float(image.frames.mean()), 1) == 89.2
    assert image.spacing_mm == pytest.approx((1.2, 1.2012))
    sitk = pytest.importorskip("SimpleITK")
    assert np.array_equal(image.frames, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    highdicom = pytest.importorskip("highdicom")
    assert np.array_equal(image.frames[0], highdicom.imread(path).get_frame(1))


def test_colour_ultrasound_clip(odd):
    path = odd / "decodable" / "examples_ybr_color.dcm"
    image = decoded(path)
    assert image.frames.shape == (30, 240, 320, 3)
    assert (image.decoder, image.notes) == ("pylibjpeg", ())
    dataset = pydicom.dcmread(path)
    region = dataset.SequenceOfUltrasoundRegions[0]
    assert image.spacing_mm == pytest.approx((10 * region.PhysicalDeltaY, 10 * region.PhysicalDeltaX))
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    same, facts = decoder.as_array(dataset, decoding_plugin="pylibjpeg")
    assert facts["photometric_interpretation"] == "RGB"
    assert np.array_equal(image.frames, same)
    other, _ = decoder.as_array(dataset, decoding_plugin="pillow")
    assert int(np.abs(image.frames.astype(int) - other).max()) <= 3


def test_palette_of_sixteen_bits(odd):
    path = odd / "decodable" / "examples_palette.dcm"
    image = decoded(path)
    dataset = pydicom.dcmread(path)
    assert np.array_equal(image.frames[0], apply_color_lut(dataset.pixel_array, dataset) >> 8)
    assert image.notes == (CUT,)
    assert len(np.unique(image.frames[0].reshape(-1, 3), axis=0)) > 64


def test_transform_of_jpeg_2000_is_undone_once(odd):
    path = odd / "decodable" / "examples_jpeg2k.dcm"
    sitk = pytest.importorskip("SimpleITK")
    assert np.array_equal(
        decoded(path).frames[0], sitk.GetArrayFromImage(sitk.ReadImage(str(path))).reshape(480, 640, 3)
    )


@pytest.mark.parametrize(
    "name",
    ["HTJ2K_08_RGB", "SC_rgb_jls_lossy_line", "SC_rgb_rle", "SC_rgb_small_odd", "SC_ybr_full_422_uncompressed"],
)
def test_colours_equal_pydicom(odd, name):
    path = odd / "decodable" / f"{name}.dcm"
    assert np.array_equal(decoded(path).frames[0], pydicom.dcmread(path).pixel_array)


def test_lossy_colours_are_those_of_the_uncompressed_twin(odd):
    one, twin = (decoded(odd / "decodable" / name).frames.astype(int) for name in (
        "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle.dcm"))  # fmt: skip
    assert np.abs(one - twin).mean() < 1


def test_eight_encodings_of_one_image_are_one(odd, tmp_path):
    headers = [header_of(path) for path in sorted((odd / "same_image_8_encodings").glob("*.dcm"))]
    with SourceReader() as reader:
        (result,) = make_planar(headers, reader, tmp_path, lambda header: "0" * 16)
    assert [(finding.code, finding.measured) for finding in result.findings] == [("D01", "exact copies dropped: 7")]
    with Image.open(tmp_path / result.paths[0]) as picture:
        assert np.array_equal(np.asarray(picture), pydicom.dcmread(headers[0].source.path).pixel_array)


def test_broken_and_foreign_files_are_refused_with_a_code(odd):
    paths = [path for folder in ("broken_or_incomplete", "not_images") for path in (odd / folder).glob("*.dcm")]
    assert len(paths) == 15
    for path in paths:
        with pytest.raises(DicomError) as caught:
            decoded(path)
        assert caught.value.code in ("F02", "F03", "F04", "R07")


def test_cut_files_never_give_a_picture(odd):
    for name in ("examples_jpeg2k.dcm", "dx_image.dcm", "SC_rgb_rle.dcm", "examples_palette.dcm"):
        data = (odd / "decodable" / name).read_bytes()
        header = read_header(data, Source(name))
        for share in (0.3, 0.6, 0.9):
            with pytest.raises(DicomError):
                decode_planar(data[: int(share * len(data))], header)


def test_films_of_fractional_rescaling_keep_their_stored_values(real_data, tmp_path):
    source = real_data("dicomdir_multi_patient")
    files = (path for path in sorted(source.rglob("*")) if path.is_file() and path.read_bytes()[128:132] == b"DICM")
    films = [path for path in files if header_of(path).modality == "CR"]
    (tmp_path / "src").mkdir()
    for number, path in enumerate(films):
        shutil.copyfile(path, tmp_path / "src" / str(number))
    out = tmp_path / "out"
    ingest(tmp_path / "src", out, site_key=tmp_path / "site.key", split=(1, 0, 0), workers=0)
    entries = json.loads((out / "qc.json").read_text())["series"]
    assert [entry["accepted"] for entry in entries] == [True] * 3
    for entry in entries:
        assert sorted(f["code"] for f in entry["findings"] if f["severity"] == "note") == ["W03", "W05"]
        assert entry["decoders"] == ["native"]
    datalist = json.loads((out / "datalist.json").read_text())
    assert datalist["modality"] == "XR"
    pictures = [read_content(out / item["image"]).array for item in datalist["training"]]
    # MONOCHROME1 of 12 bits, slope 0.684: turned and not rescaled.
    stored = [4095 - pydicom.dcmread(path).pixel_array for path in films]
    assert sorted(picture.tobytes() for picture in pictures) == sorted(one.tobytes() for one in stored)
    assert all(decoded(path).notes == (UNSCALED, TURNED) for path in films)
