"""Plain files and zip members, within limits."""

from __future__ import annotations

import zipfile

import pytest

from lvmmed_monai.dicom.archive import ArchiveLimits, Source, SourceReader, archive_members, is_archive, walk_files
from lvmmed_monai.dicom.problems import DicomError


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("one/1.dcm", b"first")
        target.writestr("one/2.dcm", b"\0" * 200_000)
    return path


def test_members_are_read_without_being_extracted(archive, tmp_path):
    sources, errors = archive_members(archive)
    assert [source.member for source in sources] == ["one/1.dcm", "one/2.dcm"]
    assert errors == []
    with SourceReader() as reader:
        assert reader.read(sources[0]) == b"first"
        assert len(reader.read(sources[1])) == 200_000
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize(
    "limits", [ArchiveLimits(members=1), ArchiveLimits(total_bytes=1000)], ids=["members", "total"]
)
def test_archive_over_a_limit(archive, limits):
    with pytest.raises(DicomError, match="F06"):
        archive_members(archive, limits)


@pytest.mark.parametrize(
    "limits", [ArchiveLimits(member_bytes=1000), ArchiveLimits(ratio=10, ratio_from_bytes=1000)], ids=["size", "ratio"]
)
def test_member_over_a_limit_costs_only_itself(archive, limits):
    sources, errors = archive_members(archive, limits)
    assert [source.member for source in sources] == ["one/1.dcm"]
    assert [error.code for error in errors] == ["F06"]
    with SourceReader(limits) as reader, pytest.raises(DicomError, match="F06"):
        reader.read(Source(str(archive), "one/2.dcm"))


def test_broken_and_encrypted_archives(archive, tmp_path):
    broken = tmp_path / "broken.zip"
    broken.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(DicomError, match="F03"):
        archive_members(broken)
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the central directory
    locked = tmp_path / "locked.zip"
    locked.write_bytes(bytes(data))
    with SourceReader() as reader, pytest.raises(DicomError, match="F03"):
        reader.read(Source(str(locked), "one/1.dcm"))


def test_missing_file_says_nothing_of_its_path(tmp_path):
    with SourceReader() as reader, pytest.raises(DicomError, match="F03") as caught:
        reader.read(Source(str(tmp_path / "smith.dcm")))
    assert "smith" not in str(caught.value)


def test_only_zip_archives_are_opened(archive, tmp_path):
    arrays = tmp_path / "arrays.npz"
    arrays.write_bytes(archive.read_bytes())
    bare = tmp_path / "noending"
    bare.write_bytes(archive.read_bytes())
    assert is_archive(archive)
    assert is_archive(bare)
    assert not is_archive(arrays)


def test_walk_is_sorted_and_skips(tmp_path):
    for name in ("b/2", "b/1", "a/x", "out/y", ".hidden/z", "a/.z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    names = [path.relative_to(tmp_path).as_posix() for path in walk_files(tmp_path, [tmp_path / "out"])]
    assert names == ["a/x", "b/1", "b/2"]
    assert list(walk_files(tmp_path / "b" / "1")) == [tmp_path / "b" / "1"]
