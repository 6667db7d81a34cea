"""Media directories: what they name, what is missing, and that nothing leads out of their folder."""

from __future__ import annotations

import shutil

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian
from synthetic_dicom import uid

from lvmmed_monai.dicom.dicomdir import MEDIA_DIRECTORY, has_directory_name, is_media_directory, read_media_directory
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.inventory import take_inventory

pytestmark = pytest.mark.filterwarnings("ignore:.*VR CS:UserWarning")


def write_directory(folder, *names, in_use=0xFFFF):
    """A DICOMDIR with a patient record and one image record for each name (a list of parts, or a text)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = MEDIA_DIRECTORY
    dataset.file_meta.MediaStorageSOPInstanceUID = uid("directory")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    records = [Dataset()]
    records[0].DirectoryRecordType, records[0].PatientName = "PATIENT", "Planted^Name"
    for name in names:
        record = Dataset()
        record.DirectoryRecordType, record.RecordInUseFlag, record.ReferencedFileID = "IMAGE", in_use, name
        records.append(record)
    dataset.DirectoryRecordSequence = Sequence(records)
    dataset.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


def file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_named_files_in_order_each_once(tmp_path):
    files = [file(tmp_path / "B" / "2"), file(tmp_path / "A" / "1")]
    file(tmp_path / "A" / "NOTNAMED")
    directory = read_media_directory(write_directory(tmp_path, ["B", "2"], ["A", "1"], ["B", "2"], ["A", "9"], ["A"]))
    assert (list(directory.files), len(directory.missing)) == (files, 2)


@pytest.mark.parametrize("written", ["img0001", "IMG0001", "img0001;1", "IMG0001.;1", "Img0001."])
def test_names_as_on_a_disc(tmp_path, written):
    there = file(tmp_path / "Dir" / written)
    assert read_media_directory(write_directory(tmp_path, ["DIR", "IMG0001"])).files == (there,)


def test_own_name_wins_over_a_similar_one(tmp_path):
    for name in ("A", "a", "A;1"):
        file(tmp_path / name)
    assert read_media_directory(write_directory(tmp_path, ["A"])).files == (tmp_path / "A",)


def test_one_text_with_slashes(tmp_path):
    there = file(tmp_path / "A" / "B" / "1")
    assert read_media_directory(write_directory(tmp_path, "A/B/1")).files == (there,)


def test_nothing_leads_out_of_the_folder(tmp_path):
    disc = tmp_path / "disc"
    disc.mkdir()
    outside = file(tmp_path / "outside")
    (disc / "LINK").symlink_to(tmp_path)
    (disc / "FILE").symlink_to(outside)
    names = (
        ["..", "outside"],
        "../outside",
        str(outside),
        ["LINK", "OUTSIDE"],
        ["FILE"],
        [".", "X"],
        ["LINK"],
    )  # the first two are one
    # The first two names are one.
    directory = read_media_directory(write_directory(disc, *names))
    assert (directory.files, len(directory.missing)) == ((), len(names) - 1)


def test_records_out_of_use_are_passed_over(tmp_path):
    file(tmp_path / "1")
    directory = read_media_directory(write_directory(tmp_path, ["1"], ["2"], in_use=0))
    assert (directory.files, directory.missing) == ((), ())


def test_what_is_none(tmp_path):
    path = file(tmp_path / "dicomdir.;1")
    assert has_directory_name(path)
    assert not is_media_directory(path)
    with pytest.raises(DicomError, match="F02"):
        read_media_directory(path)
    whole = write_directory(tmp_path, ["1"])
    assert is_media_directory(whole)


@pytest.mark.parametrize("undefined", [False, True], ids=["length", "delimiter"])
def test_cut_directory_is_not_taken_for_a_short_one(tmp_path, undefined):
    path = write_directory(tmp_path, *[[str(number)] for number in range(20)])
    dataset = pydicom.dcmread(path)
    dataset["DirectoryRecordSequence"].is_undefined_length = undefined
    dataset.save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    assert len(read_media_directory(path).missing) == 20
    for cut in (8, 20, 60, len(data) // 2):
        path.write_bytes(data[:-cut])
        with pytest.raises(DicomError, match="F03"):
            read_media_directory(path)


class TestInventory:
    """SRC as a media directory, and as a folder that holds one."""

    def test_media_directory_as_source(self, tmp_path):
        there = file(tmp_path / "A" / "1")
        file(tmp_path / "A" / "2")
        inventory = take_inventory(write_directory(tmp_path, ["A", "1"], ["A", "3"]), [])
        assert [source.path for source in inventory.sources] == [str(there)]
        assert inventory.files == 2
        assert [(bad.finding.code, bad.finding.severity) for bad in inventory.bad] == [("F07", "error")]
        assert "medium" in inventory.bad[0].finding.remedy

    def test_by_any_name_as_source(self, tmp_path):
        there = file(tmp_path / "1")
        path = write_directory(tmp_path, ["1"]).rename(tmp_path / "index.dcm")
        assert [source.path for source in take_inventory(path, []).sources] == [str(there)]

    def test_folder_takes_all_files_and_says_what_is_missing(self, tmp_path):
        files = [file(tmp_path / "A" / "1"), file(tmp_path / "A" / "2")]
        write_directory(tmp_path, ["A", "1"], ["A", "3"], ["A", "4"])
        inventory = take_inventory(tmp_path, [])
        assert [source.path for source in inventory.sources] == [str(path) for path in files]
        assert (inventory.files, [bad.finding.code for bad in inventory.bad]) == (3, ["F07", "F07"])


@pytest.mark.real_data
def test_real_disc(real_data, tmp_path):
    disc = real_data("dicomdir_multi_patient")
    records = pydicom.dcmread(disc / "DICOMDIR").DirectoryRecordSequence
    named = {disc.joinpath(*record.ReferencedFileID) for record in records if "ReferencedFileID" in record}
    directory = read_media_directory(disc / "DICOMDIR")
    assert (len(directory.files), directory.missing) == (31, ())
    assert set(directory.files) == named
    copy = tmp_path / "disc"
    shutil.copytree(disc, copy)
    for index, path in enumerate(sorted(path for path in copy.rglob("*") if path.is_file() and path.name.isdigit())):
        if index % 10 == 0:
            path.unlink()
        else:
            path.rename(path.with_name(path.name + ";1"))
    damaged = read_media_directory(copy / "DICOMDIR")
    assert (len(damaged.files), len(damaged.missing)) == (27, 4)
