"""The journal of source instances."""

from __future__ import annotations

import os
import sqlite3
import stat
import zipfile
from contextlib import closing
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from lvmmed_monai.dicom.sources import _rows, read_sources, write_sources
from lvmmed_monai.errors import UserError


def save_instance(path: Path, number: int) -> None:
    instance = pydicom.Dataset()
    instance.file_meta = pydicom.dataset.FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.SOPClassUID = CTImageStorage
    instance.SOPInstanceUID = f"1.2.3.{number}"
    instance.InstanceNumber = number
    instance.PixelData = b"\0\0"
    instance["PixelData"].VR = "OW"
    instance.save_as(path, enforce_file_format=True)


@pytest.fixture
def instances(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "DOE^JANE"
    folder.mkdir()
    paths = [folder / f"{number}.dcm" for number in range(4)]
    for number, path in enumerate(paths):
        save_instance(path, number)
    return paths


def test_headers_come_back_in_order_without_pixels(tmp_path: Path, instances: list[Path]) -> None:
    journal = tmp_path / "journal.sqlite"
    order = [3, 0, 2, 1]
    write_sources(journal, "a1", [(str(instances[i]), "") for i in order])
    headers = read_sources(journal, "a1")
    assert [header.InstanceNumber for header in headers] == order
    assert not any("PixelData" in header for header in headers)


def test_journal_is_readable_by_its_owner_only(tmp_path: Path, instances: list[Path]) -> None:
    journal = tmp_path / "journal.sqlite"
    journal.touch(mode=0o644)
    write_sources(journal, "a1", [(str(instances[0]), "")])
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600


def test_zip_members_and_plain_files_mix(tmp_path: Path, instances: list[Path]) -> None:
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for path in instances[:2]:
            stream.write(path, f"deep/{path.name}")
    journal = tmp_path / "journal.sqlite"
    rows = [(str(archive), "deep/1.dcm"), (str(instances[2]), ""), (str(archive), "deep/0.dcm")]
    write_sources(journal, "a1", rows)
    assert [header.InstanceNumber for header in read_sources(journal, "a1")] == [1, 2, 0]


def test_writing_again_replaces_one_volume_only(tmp_path: Path, instances: list[Path]) -> None:
    journal = tmp_path / "journal.sqlite"
    write_sources(journal, "a1", [(str(path), "") for path in instances])
    write_sources(journal, "b2", [(str(instances[3]), "")])
    write_sources(journal, "a1", [(str(instances[1]), "")])
    assert [header.InstanceNumber for header in read_sources(journal, "a1")] == [1]
    assert [header.InstanceNumber for header in read_sources(journal, "b2")] == [3]


@pytest.mark.parametrize("damage", ["gone", "text", "archive", "member"])
def test_missing_source_names_the_volume_not_the_path(tmp_path: Path, instances: list[Path], damage: str) -> None:
    source, member = str(instances[0]), ""
    if damage == "gone":
        instances[0].unlink()
    elif damage == "text":
        instances[0].write_text("no DICOM here, just some words of a note")
    elif damage == "archive":
        member = "0.dcm"
    else:
        source, member = str(tmp_path / "DOE.zip"), "absent.dcm"
        zipfile.ZipFile(source, "w").close()
    journal = tmp_path / "journal.sqlite"
    write_sources(journal, "a1", [(source, member)])
    with pytest.raises(UserError, match="volume a1") as caught:
        read_sources(journal, "a1")
    assert "DOE" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_unknown_volume_and_missing_journal(tmp_path: Path, instances: list[Path]) -> None:
    journal = tmp_path / "journal.sqlite"
    with pytest.raises(UserError, match=r"journal was not found"):
        read_sources(journal, "a1")
    assert not journal.exists()
    write_sources(journal, "a1", [(str(instances[0]), "")])
    with pytest.raises(UserError, match="zz has no source instances"):
        read_sources(journal, "zz")
    other = tmp_path / "text.sqlite"
    other.write_text("this is no database, whatever its name says")
    with pytest.raises(UserError, match="cannot be read"):
        read_sources(other, "a1")


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    named = [("/in/M\udcfcller/1", ""), ("/in/東京/x.zip", "\udcff.dcm")]
    write_sources(journal, "a1", named)
    assert _rows(journal, "a1") == named


def test_many_long_paths_take_little_room(tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    folder = "/mnt/export/" + "DOE^JANE/" * 20
    write_sources(journal, "a1", [(f"{folder}{number:06d}.dcm", "") for number in range(5000)])
    assert len(_rows(journal, "a1")) == 5000
    assert journal.stat().st_size < 100_000


def test_a_journal_that_is_being_written_can_be_read(tmp_path: Path, instances: list[Path]) -> None:
    journal = tmp_path / "journal.sqlite"
    write_sources(journal, "a1", [(str(instances[2]), "")])
    with closing(sqlite3.connect(journal)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("DELETE FROM volume_sources")  # not committed
        assert [header.InstanceNumber for header in read_sources(journal, "a1")] == [2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_journal_in_a_folder_that_is_read_only_is_read(tmp_path: Path, instances: list[Path]) -> None:
    folder = tmp_path / "finished"
    folder.mkdir()
    write_sources(folder / "journal.sqlite", "a1", [(str(instances[2]), "")])
    with closing(sqlite3.connect(folder / "journal.sqlite")) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
    folder.chmod(0o500)
    try:
        assert [header.InstanceNumber for header in read_sources(folder / "journal.sqlite", "a1")] == [2]
    finally:
        folder.chmod(0o700)


def test_damaged_rows_and_older_journals_are_one_sentence(tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    write_sources(journal, "a1", [("/in/DOE", "")])
    with closing(sqlite3.connect(journal)) as writer, writer:
        writer.execute("UPDATE volume_sources SET instances = x'00'")
    older = tmp_path / "older.sqlite"
    with closing(sqlite3.connect(older)) as writer, writer:
        writer.execute("CREATE TABLE sources (volume_id TEXT, position INTEGER, path TEXT, member TEXT)")
    for path in (journal, older):
        with pytest.raises(UserError, match="ingest the studies again"):
            read_sources(path, "a1")
