"""The fast way to a header gives what pydicom gives, or leaves it to pydicom."""

from __future__ import annotations

import io
import pickle
import random

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from synthetic_dicom import series

from lvmmed_monai.dicom import headers
from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.fast_header import fast_values
from lvmmed_monai.dicom.headers import HEAD_BYTES, Header, header_from_dataset, read_dataset, read_header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.values import parsing

SOURCE = Source("/somewhere/file")
PIECES = [
    *(b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\x00\xe0", b"\xff\xff\xff\xff", b"\0\0"),
    *(b"SQ", b"UN", b"OB", b"UT", b"XX", b"\\", b"nan", b"1e999", b"1_0", b"\xe4", b"\x1b$B", b"=", b"\t", b"-0.0"),
]


def encoded(dataset: Dataset, *, implicit: bool = False, big: bool = False) -> bytes:
    stream = io.BytesIO()
    if implicit:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    if big:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.save_as(stream, implicit_vr=implicit, little_endian=not big, enforce_file_format=True)
    return stream.getvalue()


def rich() -> Dataset:
    """A slice with all that is read, and with nested sequences of both kinds of length and private elements."""
    dataset, inner, outer = series(3)[1], Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "1", "inner"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner, Dataset()])
    outer.ReferencedSOPInstanceUID = "1.2.3"
    dataset.ReferencedImageSequence = Sequence([outer, Dataset(), outer])
    dataset.ReferencedImageSequence.is_undefined_length = True
    outer.is_undefined_length_sequence_item = True
    outer["PurposeOfReferenceCodeSequence"].value.is_undefined_length = True
    block = dataset.private_block(0x0009, "MAKER", create=True)
    block.add_new(1, "SQ", Sequence([inner]))
    block.add_new(2, "OB", b"\1\2\3\4")
    dataset.SpecificCharacterSet, dataset.StudyDescription = "ISO_IR 100", "Sch\xe4del brain"
    dataset.AcquisitionTime, dataset.EchoTime, dataset.TriggerTime = "101112.25", 2.5, 7
    dataset.AcquisitionNumber, dataset.TemporalPositionIdentifier, dataset.DiffusionBValue = 3, 2, 700.5
    dataset.SpacingBetweenSlices, dataset.BurnedInAnnotation, dataset.NumberOfFrames = 2.5, "NO", 1
    return dataset


def by_pydicom(data: bytes) -> Header | str:
    try:
        dataset = read_dataset(data, pixels=False)
        with parsing():
            return header_from_dataset(dataset, SOURCE)
    except DicomError as error:
        return error.code


def ours(data: bytes) -> Header | str:
    try:
        return read_header(data[:HEAD_BYTES], SOURCE, lambda: data)
    except DicomError as error:
        return error.code


@pytest.mark.parametrize("implicit", [False, True])
def test_equal_to_pydicom_and_fast(implicit):
    data = encoded(rich(), implicit=implicit)
    fast = fast_values(data, complete=True)
    assert fast is not None
    assert Header(source=SOURCE, **fast) == by_pydicom(data)
    assert fast["head"]
    assert fast["phases"] == (2.0, 3.0, 7.0, 101112.25, None, 700.5, 2.5)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SpecificCharacterSet", ["ISO 2022 IR 6", "ISO 2022 IR 87"]),
        ("PatientName", "Anna^Bel=Other"),
        ("PatientID", "a\\b"),
        ("ImagePositionPatient", [1, 2]),
        ("PixelSpacing", None),
        ("RescaleSlope", ""),
        ("ImageType", ["ORIGINAL", "", "b=1000"]),
        ("EchoTime", [1, 2]),
        ("AcquisitionTime", "10:11"),
        ("SeriesDescription", "ep2d b=1000"),
        ("InstanceNumber", None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
def test_odd_values_are_equal_too(keyword, value, implicit):
    dataset = rich()
    setattr(dataset, keyword, value)
    data = encoded(dataset, implicit=implicit)
    assert ours(data) == by_pydicom(data)


def test_big_endian_is_left_to_pydicom():
    data = encoded(rich(), big=True)
    assert fast_values(data, complete=True) is None
    assert ours(data) == by_pydicom(data)
    assert isinstance(ours(data), Header)


def test_all_bytes_are_asked_for_only_when_needed():
    dataset = rich()
    dataset.PixelData = b"\0" * 240 + b"\0" * HEAD_BYTES
    asked = []
    whole = encoded(dataset)

    def give() -> bytes:
        asked.append(1)
        return whole

    assert read_header(whole[:HEAD_BYTES], SOURCE, give) == by_pydicom(whole)
    assert not asked
    dataset.ReferencedPatientPhotoSequence = Sequence()
    dataset.OriginalAttributesSequence = Sequence()
    dataset.add_new(0x00091003, "OB", b"\0" * HEAD_BYTES)
    whole = encoded(dataset)
    assert read_header(whole[:HEAD_BYTES], SOURCE, give) == by_pydicom(whole)
    assert asked == [1]


def test_what_is_no_dicom_is_not_read_whole():
    with pytest.raises(DicomError, match="F02"):
        read_header(b"text " * (HEAD_BYTES // 5 + 1), SOURCE, lambda: pytest.fail("read whole"))


@pytest.mark.parametrize("implicit", [False, True])
def test_every_cut_gives_what_pydicom_gives(implicit):
    data = encoded(rich(), implicit=implicit)
    for end in range(128, len(data), 3):
        assert ours(data[:end]) == by_pydicom(data[:end]), end


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One to three bytes, pieces or lengths of ``data`` changed, taken out or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 3])):
        where, kind = chance.randrange(128, len(changed)), chance.random()
        if kind < 0.4:
            changed[where] = chance.randrange(256)
        elif kind < 0.6:
            piece = chance.choice(PIECES)
            changed[where : where + len(piece)] = piece
        elif kind < 0.8:
            changed[where:where] = chance.choice(PIECES)
        else:
            del changed[where : where + chance.choice([1, 2, 4, 8, 20])]
    return bytes(changed)


@pytest.mark.parametrize("implicit", [False, True])
def test_damaged_headers_give_what_pydicom_gives(implicit):
    chance, data = random.Random(5), encoded(rich(), implicit=implicit)
    results = []
    for _ in range(600):
        broken = damaged(data, chance)
        results.append(by_pydicom(broken))
        assert ours(broken) == results[-1]
    assert {type(result) for result in results} == {Header, str}


def test_deep_nesting_ends_for_both():
    item, end = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    start = b"\x08\x00\x15\x11SQ\x00\x00\xff\xff\xff\xff"
    data = encoded(series(3)[1])
    place = data.index(b"\x10\x00\x10\x00PN")
    for depth in (3, 3000):
        nested = data[:place] + (start + item) * depth + end * depth + data[place:]
        assert ours(nested) == by_pydicom(nested)


def test_lengths_of_odd_numbers_are_malformed_values():
    data = encoded(series(3)[1], implicit=True)
    place = data.index(b"\x28\x00\x11\x00") + 4
    broken = data[:place] + b"\x03\0\0\0" + data[place + 4 : place + 6] + b"\0" + data[place + 6 :]
    assert ours(broken) == by_pydicom(broken)
    assert ours(broken).columns == 0


def test_headers_share_what_is_equal_and_cross_processes():
    first, second = (read_header(encoded(dataset), SOURCE) for dataset in series(3)[:2])
    for name in ("series_uid", "study_uid", "patient", "names", "image_type", "orientation", "pixel_spacing"):
        assert getattr(first, name) is getattr(second, name)
    copies = pickle.loads(pickle.dumps([first, second]))
    assert copies == [first, second]
    assert copies[0].series_uid is copies[1].series_uid
    assert not hasattr(first, "__dict__")


def test_malformed_regions_cost_a_value_and_not_the_file(monkeypatch):
    dataset = series(3)[1]
    del dataset.PixelSpacing
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, -0.04
    dataset.SequenceOfUltrasoundRegions = Sequence([region])
    data = encoded(dataset)
    header = ours(data)
    assert isinstance(header, Header)
    assert header.planar_spacing == pytest.approx((0.4, 0.5))
    broken = data.replace(b"\xfe\xff\x00\xe0", b"\xfe\xff\x00", 1)
    assert ours(broken) == by_pydicom(broken)
    monkeypatch.setattr(headers, "header_from_dataset", lambda *_: (_ for _ in ()).throw(RecursionError))
    assert ours(data) == "F06"
