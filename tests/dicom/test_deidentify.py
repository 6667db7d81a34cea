"""De-identification: what the profile's table says of each attribute, and what passes at all."""

from __future__ import annotations

import copy
import io
import json
import random
from datetime import datetime
from importlib import resources

import numpy as np
import pydicom
import pytest
from leak_scan import SECRET_VRS, Secrets, plant_marks, scan_bytes
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless
from synthetic_dicom import segmentation, series, uid

from lvmmed_monai.dicom.clean_values import moved
from lvmmed_monai.dicom.deidentify import Options, deidentify
from lvmmed_monai.dicom.headers import read_dataset
from lvmmed_monai.dicom.privacy import day_shift, new_uid, pseudonym
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.profile import action_for, family_of

KEY = b"k" * 32
TABLE = json.loads(resources.files("lvmmed_monai.dicom").joinpath("basic_profile.json").read_text())
KEYWORDS = sorted(pydicom.datadict.keyword_dict)


def one_slice() -> Dataset:
    return series(1)[0]


def saved(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_table_names_attributes_of_the_dictionary_once():
    names = [name for part in ("profile", "own") for names in TABLE[part].values() for name in names]
    assert len(names) == len(set(names)) > 500
    assert [name for name in [*names, *TABLE["safe"]["attributes"]] if tag_for_keyword(name) is None] == []
    assert not set(names) & set(TABLE["safe"]["attributes"])
    assert {name for types in TABLE["types"].values() for name in types} <= {
        name for action, members in TABLE["profile"].items() if "/" in action for name in members
    }


# Rows of the standard's table, typed in by hand: what must not go wrong whatever becomes of the file.
@pytest.mark.parametrize(
    ("keyword", "sop_class", "action"),
    [
        ("PatientName", "2", "Z"),
        ("PatientBirthDate", "2", "Z"),
        ("AccessionNumber", "2", "Z"),
        ("InstitutionName", "2", "X"),
        ("DeviceSerialNumber", "2", "X"),
        ("DeviceSerialNumber", "2.1", "D"),
        ("SeriesDate", "2", "X"),
        ("SeriesDate", "128", "D"),
        ("AcquisitionDate", "4", "X"),
        ("AcquisitionDate", "128", "Z"),
        ("ContentDate", "4", "Z"),
        ("ContentDate", "4.1", "D"),
        ("StudyDescription", "2", "X"),
        ("ReferencedImageSequence", "2", "S"),
        ("RequestAttributesSequence", "2", "X"),
        ("StudyInstanceUID", "2", "U"),
        ("IrradiationEventUID", "2", "U"),
        ("ImagePositionPatient", "2", "K"),
        ("PatientID", "2", "Z"),
    ],
)
def test_rows_of_the_standard(keyword, sop_class, action):
    family = family_of(f"1.2.840.10008.5.1.4.1.1.{sop_class}")
    assert action_for(Tag(tag_for_keyword(keyword)), family) == action


def test_net_removes_whatever_text_the_table_forgot():
    listed = {name for part in ("profile", "own") for names in TABLE[part].values() for name in names}
    actions = {
        keyword: action_for(Tag(tag_for_keyword(keyword)), "classic") for keyword in KEYWORDS if keyword not in listed
    }
    texts = {name for name in actions if dictionary_VR(tag_for_keyword(name)) in (*SECRET_VRS, "UN", "OB or OW")}
    kept = {name for name in texts if actions[name] != "X" and dictionary_VR(tag_for_keyword(name)) != "UI"}
    assert kept == {"PixelData"}
    assert len(texts) > 600
    assert action_for(Tag(0x0009, 0x1001), "classic") == "X"
    assert action_for(Tag(0x5002, 0x3000), "classic") == action_for(Tag(0x6002, 0x3000), "classic") == "X"


@pytest.mark.parametrize("options", [Options(), Options(keep_intervals=True), Options(True, True)])
@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
def test_no_mark_in_any_attribute_passes_at_any_depth(options):
    dataset = one_slice()
    marks = plant_marks(dataset)
    inner, coded = Dataset(), Dataset()
    marks |= plant_marks(inner)
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = "QZ-code", "QZLOCAL", "Qzmark meaning"
    inner.AnatomicRegionSequence = DicomSequence([coded])
    for keyword in ("ReferencedImageSequence", "SharedFunctionalGroupsSequence", "RequestAttributesSequence"):
        setattr(dataset, keyword, DicomSequence([copy.deepcopy(inner)]))
    dataset.add_new((0x0009, 0x0010), "LO", "QZMAKER")
    dataset.add_new((0x0009, 0x1001), "UN", b"Qzmark private")
    dataset.add_new((0x6000, 0x4000), "LT", "Qzmark overlay")
    dataset.BodyPartExamined, dataset.FilterType = "Qzmark lower", "QZ\\MARK*"
    dataset.file_meta.SourceApplicationEntityTitle = "QZMARKAE"
    dataset.preamble = b"Qzmark preamble".ljust(128, b"\0")
    result, _ = deidentify(dataset, KEY, options)
    data = saved(result)
    secrets = Secrets((*marks, "Qzmark", "QZMAKER", "QZ-code", "QZMARK", "QZLOCAL", "Planted", "PATIENT-7"))
    assert len(marks) > 1000
    shown = scan_bytes("file", data, secrets)
    if options.keep_intervals:  # times of day stay, and a moved date may be another attribute's mark
        shown = [(where, value) for where, value in shown if not value[0].isdigit()]
    assert shown == []
    assert len(pydicom.dcmread(io.BytesIO(data)).SharedFunctionalGroupsSequence) == 1


def test_uids_are_replaced_alike_everywhere_and_standard_ones_kept():
    source = series(2)
    reference = Dataset()
    reference.ReferencedSOPInstanceUID, reference.ReferencedSOPClassUID = (
        source[1].SOPInstanceUID,
        source[1].SOPClassUID,
    )
    source[0].ReferencedImageSequence = DicomSequence([reference])
    first, second = (deidentify(dataset, KEY)[0] for dataset in source)
    assert first.ReferencedImageSequence[0].ReferencedSOPInstanceUID == second.SOPInstanceUID
    assert first.ReferencedImageSequence[0].ReferencedSOPClassUID == source[0].SOPClassUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID == new_uid(KEY, source[0].SeriesInstanceUID)
    assert first.SOPClassUID == first.file_meta.MediaStorageSOPClassUID == source[0].SOPClassUID
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID != second.SOPInstanceUID
    source[0].IrradiationEventUID = ["1.2.3", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.77.1"]
    uids = list(deidentify(source[0], KEY)[0].IrradiationEventUID)
    # What only begins like the standard's own is replaced too.
    assert uids == [new_uid(KEY, "1.2.3"), "1.2.840.10008.5.1.4.1.1.2", new_uid(KEY, "1.2.840.10008.77.1")]


def test_what_was_done_is_stated():
    result, remains = deidentify(one_slice(), KEY)
    assert result.PatientIdentityRemoved == "YES"
    assert [item.CodeValue for item in result.DeidentificationMethodCodeSequence] == ["113100"]
    assert result.LongitudinalTemporalInformationModified == "REMOVED"
    assert result.PatientID == result.PatientName == pseudonym(KEY, "patient", "PATIENT-7")
    assert "StudyDate" in result
    assert not result.StudyDate
    assert (remains.burned_in, remains.head) == ("not stated", False)
    assert remains.attributes["ImagePositionPatient"] == "number"
    assert "StudyDate" not in remains.attributes
    both, _ = deidentify(one_slice(), KEY, Options(True, True))
    assert [item.CodeValue for item in both.DeidentificationMethodCodeSequence] == ["113100", "113107", "113108"]
    assert both.LongitudinalTemporalInformationModified == "MODIFIED"


@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
def test_intervals_are_kept_to_the_second_at_every_depth():
    dataset = one_slice()
    inner = Dataset()
    inner.RadiopharmaceuticalStartDateTime = "20240229235959.5+0100"
    dataset.RadiopharmaceuticalInformationSequence = DicomSequence([inner])
    dataset.StudyDate, dataset.SeriesDate, dataset.PatientBirthDate = "20240301", "20240229", "19480504"
    dataset.AcquisitionDate, dataset.ContentDate = ["20240301", "20240302"], "in March"
    result, remains = deidentify(dataset, KEY, Options(keep_intervals=True))
    days = day_shift(KEY, "PATIENT-7")

    def distance(after: str, before: str) -> int:
        return (datetime.strptime(after[:8], "%Y%m%d") - datetime.strptime(before[:8], "%Y%m%d")).days

    assert distance(result.StudyDate, "20240301") == distance(result.SeriesDate, "20240229") == days
    started = result.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime
    assert distance(str(started), "20240229") == days
    assert str(started)[8:] == "235959.5+0100"
    assert [distance(date, "20240301") for date in result.AcquisitionDate] == [days, days + 1]
    assert result.StudyTime == "030405"
    assert not result.PatientBirthDate
    assert "ContentDate" not in result
    assert remains.attributes["StudyDate"].startswith("date")


@pytest.mark.parametrize("text", ["0000", "20241301", "00010101", "2024", "20240101garbage", "20240101-20240201"])
def test_dates_that_cannot_be_moved_are_dropped(text):
    element = pydicom.DataElement("StudyDate", "LO", text)
    element.VR = "DA"
    assert moved(element, -10) is None


@pytest.mark.parametrize(("age", "kept"), [("047Y", "047Y"), ("089Y", "089Y"), ("090Y", "089Y"), ("999M", "999M"),
                                           ("104Y", "089Y"), ("012D", "012D"), ("old", None)])  # fmt: skip
def test_age_is_capped(age, kept):
    dataset = one_slice()
    with pydicom.config.disable_value_validation():
        dataset.PatientAge = age
    dataset.PatientSex, dataset.PatientWeight = "F", "71.5"
    result, _ = deidentify(dataset, KEY, Options(keep_characteristics=True))
    assert result.get("PatientAge") == kept
    assert (result.PatientSex, result.PatientWeight) == ("F", 71.5)
    plain, _ = deidentify(dataset, KEY)
    assert "PatientAge" not in plain
    assert "PatientWeight" not in plain
    assert not plain.PatientSex


@pytest.mark.parametrize(("keyword", "given", "kept"), [
    ("Manufacturer", "GE MEDICAL SYSTEMS", "GE"), ("Manufacturer", "Smith Instruments", None),
    ("ConvolutionKernel", "B30f", "B30f"), ("ConvolutionKernel", "SMITH JOHN", None), ("RescaleType", "HU", "HU"),
    ("RescaleType", "Smith", None), ("StackID", "1", "1"), ("StackID", "Smith", None)])  # fmt: skip
def test_texts_out_of_fixed_lists(keyword, given, kept):
    dataset = one_slice()
    setattr(dataset, keyword, given)
    assert deidentify(dataset, KEY)[0].get(keyword) == kept


def test_values_that_do_not_fit_their_type_are_dropped():
    data = saved(one_slice())
    assert data.count(b"MONOCHROME2") == 1
    broken = data.replace(b"DS\x04\x002.0 ", b"DS\x04\x00Ruth").replace(b"\\AXIAL", b"\\axial")
    dataset = pydicom.dcmread(io.BytesIO(broken))
    result, _ = deidentify(dataset, KEY)
    assert b"Ruth" in broken
    assert "SliceThickness" not in result
    assert "ImageType" not in result


def test_codes_carry_the_meaning_of_the_standard_or_go():
    dataset = one_slice()
    codes = []
    for value, scheme, meaning in (("10200004", "SCT", "Liver of Smith"), ("4711", "99LOCAL", "Smith")):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        codes.append(item)
    dataset.AnatomicRegionSequence = DicomSequence(codes)
    (kept,) = deidentify(dataset, KEY)[0].AnatomicRegionSequence
    assert (kept.CodeValue, "Smith" in kept.CodeMeaning, kept.CodeMeaning.startswith("Liver")) == (
        "10200004",
        False,
        True,
    )


def test_segment_labels_stay_apart_and_say_no_more_than_their_code():
    source = series(3)
    mask = np.zeros((3, 12, 10), dtype=bool)
    mask[1, 2:5, 2:5] = True
    label = segmentation(source, {1: mask, 2: mask, 3: mask}, {1: "Liver", 2: "Lump of Smith", 3: "Lump of Jones"})
    result, _ = deidentify(label, KEY)
    first, second, third = (item.SegmentLabel for item in result.SegmentSequence)
    assert first == "Liver"
    assert second == f"label {pseudonym(KEY, 'label', 'Lump of Smith')}" != third
    assert np.array_equal(result.pixel_array, label.pixel_array)
    assert result.ReferencedSeriesSequence[0].SeriesInstanceUID == deidentify(source[0], KEY)[0].SeriesInstanceUID


class TestPixels:
    def test_values_stay_and_what_hides_beside_them_goes(self):
        dataset = one_slice()
        values = np.arange(120, dtype=np.uint16).reshape(12, 10)
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, 12, 11
        dataset.PixelData = (values | 0xA000).tobytes() + b"SMITH behind the pixels."
        result, _ = deidentify(dataset, KEY)
        assert np.array_equal(np.frombuffer(result.PixelData, "<u2").reshape(12, 10), values)

    def test_compressed_streams_are_decoded(self):
        dataset = one_slice()
        values = dataset.pixel_array
        dataset.compress(RLELossless, generate_instance_uid=False)
        frame = bytes(next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)))
        result, _ = deidentify(dataset, KEY)
        assert result.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert np.array_equal(pydicom.dcmread(io.BytesIO(saved(result))).pixel_array, values)
        dataset.PixelData = encapsulate([frame + b"SMITH!"])
        with pytest.raises(DicomError, match="F04"):
            deidentify(dataset, KEY)

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
    def test_other_encodings_are_read(self, syntax):
        dataset = one_slice()
        dataset.add_new("SmallestImagePixelValue", "SS", -5)
        values = dataset.pixel_array
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax.is_little_endian is False:
            dataset.PixelData = values.astype(">i2").tobytes()
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        result, _ = deidentify(pydicom.dcmread(io.BytesIO(buffer.getvalue())), KEY)
        again = pydicom.dcmread(io.BytesIO(saved(result)))
        assert np.array_equal(again.pixel_array, values)
        assert again.SmallestImagePixelValue == -5

    def test_bits_behind_the_last_one_go(self):
        mask = np.zeros((3, 12, 10), dtype=bool)
        mask[1, :, 3] = True
        label = segmentation(series(3), {1: mask}, {1: "Liver"})
        label.PixelData = label.PixelData[:15] + b"\xff" * 9
        result, _ = deidentify(label, KEY)
        assert result.PixelData == label.PixelData[:15] + b"\0"

    @pytest.mark.parametrize(
        ("change", "code"),
        [({"SamplesPerPixel": 3}, "R03"), ({"HighBit": 14, "BitsStored": 12}, "P04"), ({"Rows": 1000}, "F04")],
    )
    def test_what_cannot_be_cleaned_is_refused(self, change, code):
        dataset = one_slice()
        for name, value in change.items():
            setattr(dataset, name, value)
        with pytest.raises(DicomError) as caught:
            deidentify(dataset, KEY)
        assert caught.value.code == code


def test_object_without_uid_is_refused():
    dataset = one_slice()
    del dataset.SOPInstanceUID
    with pytest.raises(DicomError, match="P04"):
        deidentify(dataset, KEY)


def test_source_is_not_changed_and_the_answer_is_the_same_every_time():
    dataset = one_slice()
    before = saved(dataset)
    assert saved(deidentify(dataset, KEY)[0]) == saved(deidentify(dataset, KEY)[0])
    assert saved(dataset) == before


def test_damaged_headers_never_leak_or_crash():
    """Bytes of a header changed at random: refused, or the mark is gone."""
    dataset = one_slice()
    dataset.PatientComments, dataset.InstitutionName = "QZMARKED patient", "QZMARKED hospital"
    data = bytearray(saved(dataset))
    end = len(data) - len(dataset.PixelData)
    start = data.index(b"QZMARKED")
    rng = random.Random(5)
    outcomes = set()
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.choice([rng.randrange(140, end), rng.randrange(start - 12, start)])] = rng.randrange(256)
        try:
            result, _ = deidentify(read_dataset(bytes(broken), pixels=True), KEY)
        except DicomError as error:
            outcomes |= {error.code, str(error)}
            continue
        try:
            written = saved(result)
        except (ValueError, TypeError, AttributeError):
            outcomes.add("cannot be written")
            continue
        outcomes.add("written")
        assert b"QZMARKED" not in written
    assert {"written", "F03"} <= outcomes
    assert not [text for text in outcomes if "QZMARKED" in text]


def test_helper_marks_every_attribute():
    assert {dictionary_VR(tag_for_keyword(name)) for name in KEYWORDS} >= set(SECRET_VRS)
    assert keyword_for_tag(0x00100010) == "PatientName"
    assert UID(uid("x")).is_valid
