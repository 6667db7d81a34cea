"""Headers, frames and pixels of real files: pydicom is the oracle."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lvmmed_monai.dicom.archive import Source, SourceReader, archive_members, is_archive, walk_files
from lvmmed_monai.dicom.fast_header import fast_values
from lvmmed_monai.dicom.frames import read_frames
from lvmmed_monai.dicom.headers import HEAD_BYTES, Header, header_from_dataset, read_dataset, read_header
from lvmmed_monai.dicom.pixels import PixelReader
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom
from lvmmed_monai.dicom.values import parsing

pytestmark = pytest.mark.real_data

SETS = [
    *("crlm_ct_dicom", "brain_mr_dicom", "sts_dicom_rtstruct", "breast_mr_dicom_seg", "mr_two_time_points_dicom"),
    *("dicomdir_multi_patient", "ct_gantry_tilt_dicom", "mr_multivendor_dicom", "dicom_must_refuse"),
    *("dicom_seg_small", "dicom_compressed_odd", "totalsegmentator_example", "sts_ct_mr_nifti", "ct_volumes_nifti"),
]


def instances(folder: Path) -> Iterator[tuple[Source, bytes]]:
    """Every file below a folder and every member of its archives."""
    with SourceReader() as reader:
        for path in walk_files(folder):
            for source in archive_members(path)[0] if is_archive(path) else [Source(str(path))]:
                yield source, reader.read(source)


def by_pydicom(data: bytes, source: Source) -> Header | str:
    try:
        dataset = read_dataset(data, pixels=False)
        with parsing():
            return header_from_dataset(dataset, source)
    except DicomError as error:
        return str(error)


def ours(data: bytes, source: Source, whole: Callable[[], bytes] | None = None) -> Header | str:
    try:
        return read_header(data, source, whole)
    except DicomError as error:
        return str(error)


@pytest.mark.parametrize("name", SETS)
def test_headers_are_those_of_pydicom(real_data, name):
    read = 0
    for source, data in instances(real_data(name)):
        wanted = by_pydicom(data, source)
        assert ours(data[:HEAD_BYTES], source, lambda data=data: data) == wanted
        assert ours(data, source) == wanted
        read += 1
    assert read


def test_usual_files_take_the_fast_way(real_data):
    for name in ("crlm_ct_dicom", "brain_mr_dicom", "mr_two_time_points_dicom", "dicom_must_refuse"):
        for _, data in instances(real_data(name)):
            assert data[128:132] != b"DICM" or fast_values(data[:HEAD_BYTES], complete=len(data) < HEAD_BYTES)


def test_damaged_headers_give_what_pydicom_gives(real_data):
    chance = random.Random(11)
    pool = [pair for pair in instances(real_data("mr_multivendor_dicom")) if pair[1][128:132] == b"DICM"]
    for _ in range(500):
        source, data = chance.choice(pool)
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            where = chance.randrange(128, min(len(changed), 6000))
            if chance.random() < 0.6:
                changed[where] = chance.randrange(256)
            else:
                del changed[where : where + chance.choice([1, 2, 8])]
        broken = bytes(changed)
        assert ours(broken[:HEAD_BYTES], source, lambda broken=broken: broken) == by_pydicom(broken, source)


@pytest.mark.parametrize(
    ("name", "frames", "volumes"),
    [
        ("siemens_multiframe_anatomical_001", 8, 1),
        ("philips_enhanced_fmri_001", 32, 4),
        ("hyperfine_anatomical_001", 8, 1),
    ],
)
def test_frames_of_three_makers(real_data, name, frames, volumes):
    ((source, data),) = instances(real_data("mr_multivendor_dicom") / name)
    dataset = read_dataset(data, pixels=True)
    headers = read_frames(dataset, header_from_dataset(dataset, source))
    assert [header.frame for header in headers] == list(range(frames))
    places = {header.position for header in headers}
    assert len(places) == frames // volumes
    for place in places:
        assert len({header.phases[0] for header in headers if header.position == place}) == volumes
    groups = dataset.PerFrameFunctionalGroupsSequence
    for header, group in zip(headers, groups, strict=True):
        assert header.position == tuple(group.PlanePositionSequence[0].ImagePositionPatient)
        assert header.orientation is not None
        assert header.pixel_spacing is not None
        assert header.slope is not None
    pixels = PixelReader(SourceReader())
    for header, wanted in zip(headers, dataset.pixel_array, strict=True):
        assert np.array_equal(pixels.stored(header).values, wanted)


@pytest.mark.parametrize("name", ["mr_multivendor_dicom", "dicom_compressed_odd/decodable", "dicom_seg_small"])
def test_pixels_are_those_of_pydicom(real_data, name):
    compared = 0
    with SourceReader() as reader:
        pixels = PixelReader(reader)
        for source, data in instances(real_data(name.split("/")[0]) / "/".join(name.split("/")[1:])):
            header = ours(data, source)
            if isinstance(header, str) or not header.rows or "FLOAT" in Path(source.path).stem.upper():
                continue
            dataset = pydicom.dcmread(io.BytesIO(data))
            indices = range(min(header.frames, 4)) if header.frames > 1 else [None]
            for index in indices:
                stored = pixels.stored(replace(header, frame=index))
                plugin = "" if stored.decoder == "native" else stored.decoder
                with silent_pydicom():
                    dataset.pixel_array_options(index=index, decoding_plugin=plugin if plugin != "SimpleITK" else "")
                    wanted = dataset.pixel_array
                assert stored.values.dtype == wanted.dtype
                assert np.array_equal(stored.values, wanted)
                compared += 1
    assert compared > 10


def test_eight_encodings_of_one_image_are_equal(real_data):
    with SourceReader() as reader:
        folder = real_data("dicom_compressed_odd") / "same_image_8_encodings"
        headers = [ours(data, source) for source, data in instances(folder)]
        stored = [PixelReader(reader).stored(header) for header in headers if isinstance(header, Header)]
    assert len(stored) == 8
    assert len({one.decoder for one in stored}) >= 3
    for one in stored[1:]:
        assert np.array_equal(one.values, stored[0].values)


def test_broken_files_are_refused_with_their_reason(real_data):
    codes = {}
    with SourceReader() as reader:
        for source, data in instances(real_data("dicom_compressed_odd") / "broken_or_incomplete"):
            try:
                PixelReader(reader).stored(read_header(data, source))
            except DicomError as error:
                codes[Path(source.path).name] = error.code
    assert codes["MR_truncated.dcm"] == codes["emri_small_jpeg_2k_lossless_too_short.dcm"] == "F04"
    assert set(codes.values()) <= {"F02", "F03", "F04", "F05", "F06"}
