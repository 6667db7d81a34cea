"""Plain files and members of archives, within limits; hostile archives."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import pickle
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from synthetic_dicom import series

from lvmmed_monai.dicom.archive import ArchiveLimits, Source, SourceReader, archive_members, is_archive, walk_files
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.sources import read_sources, write_sources
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.inventory import take_inventory

RANDOM = np.random.default_rng(0).bytes(300_000)  # nothing packs it
TAR_KINDS = {"tar": "", "tar.gz": "gz", "tar.bz2": "bz2", "tar.xz": "xz"}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("one/1.dcm", b"first")
        target.writestr("one/2.dcm", b"\0" * 200_000)
    return path


def info_of(name, size=0, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def write_tar(path, members, mode="", **options):
    """``members``: (name, bytes) or TarInfo."""
    with tarfile.open(path, f"w:{mode}", **options) as target:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                target.addfile(member)
            else:
                target.addfile(info_of(member[0], len(member[1])), io.BytesIO(member[1]))
    return path


def read_all(sources, limits=None):
    with SourceReader(limits) if limits else SourceReader() as reader:
        return [reader.read(source) for source in sources]


def read_in_another_process(source):
    with SourceReader() as reader:
        return reader.read(source)


class TestZip:
    def test_members_are_read_without_being_extracted(self, archive, tmp_path):
        sources, errors = archive_members(archive)
        assert [source.member for source in sources] == ["one/1.dcm", "one/2.dcm"]
        assert errors == []
        with SourceReader() as reader:
            assert reader.read(sources[0]) == b"first"
            assert len(reader.read(sources[1])) == 200_000
            assert reader.head(sources[1], 10) == bytes(10)
            assert reader.head(sources[0], 10) == b"first"
        assert list(tmp_path.iterdir()) == [archive]

    @pytest.mark.parametrize(
        "limits", [ArchiveLimits(members=1), ArchiveLimits(total_bytes=1000)], ids=["members", "total"]
    )
    def test_archive_over_a_limit(self, archive, limits):
        with pytest.raises(DicomError, match="F06"):
            archive_members(archive, limits)

    @pytest.mark.parametrize(
        "limits", [ArchiveLimits(member_bytes=1000), ArchiveLimits(ratio=10, ratio_from_bytes=1000)],
        ids=["size", "ratio"],
    )  # fmt: skip
    def test_member_over_a_limit_costs_only_itself(self, archive, limits):
        sources, errors = archive_members(archive, limits)
        assert [source.member for source in sources] == ["one/1.dcm"]
        assert [error.code for error in errors] == ["F06"]
        for way in (SourceReader.read, lambda reader, source: reader.head(source, 4)):
            with SourceReader(limits) as reader, pytest.raises(DicomError, match="F06"):
                way(reader, Source(str(archive), "one/2.dcm"))

    def test_broken_and_encrypted_archives(self, archive, tmp_path):
        broken = tmp_path / "broken.zip"
        broken.write_bytes(archive.read_bytes()[:60])
        with pytest.raises(DicomError, match="F03"):
            archive_members(broken)
        data = bytearray(archive.read_bytes())
        data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the central directory
        locked = tmp_path / "locked.zip"
        locked.write_bytes(bytes(data))
        sources, errors = archive_members(locked)
        assert [source.member for source in sources] == ["one/2.dcm"]
        assert [(error.code, "encrypted" in error.measured) for error in errors] == [("F03", True)]
        with SourceReader() as reader, pytest.raises(DicomError, match="F03"):
            reader.read(Source(str(locked), "one/1.dcm"))

    @pytest.mark.parametrize(("claimed", "code"), [(2**31 - 1, "F06"), (250_000, "F03"), (100_000, "F03")])
    def test_size_that_lies(self, archive, tmp_path, claimed, code):
        """2 GB in a tiny header, a bit more than there is, and less than there is."""
        data = bytearray(archive.read_bytes())
        entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
        data[entry + 24 : entry + 28] = struct.pack("<I", claimed)
        liar = tmp_path / "liar.zip"
        liar.write_bytes(bytes(data))
        tracemalloc.start()
        try:
            _, errors = archive_members(liar)
            assert [error.code for error in errors] == (["F06"] if code == "F06" else [])
            with pytest.raises(DicomError, match=code):
                read_all([Source(str(liar), "one/2.dcm")])
            assert tracemalloc.get_traced_memory()[1] < 4e6
        finally:
            tracemalloc.stop()

    def test_members_that_overlap(self, tmp_path):
        """Two entries of the table of contents that point to the same bytes, as zip bombs do."""
        path = tmp_path / "bomb.zip"
        with zipfile.ZipFile(path, "w") as target:
            target.writestr("a", b"x" * 100)
            target.writestr("b", b"y" * 100)
        data = bytearray(path.read_bytes())
        second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
        data[second + 42 : second + 46] = struct.pack("<I", 0)
        path.write_bytes(bytes(data))
        with pytest.raises(DicomError, match="F06: 1 members that overlap"):
            archive_members(path)

    def test_two_members_of_one_name_are_both_read(self, tmp_path):
        path = tmp_path / "twice.zip"
        with zipfile.ZipFile(path, "w") as target:
            target.writestr("1.dcm", b"first")
            with pytest.warns(UserWarning, match="Duplicate name"):
                target.writestr("1.dcm", b"second")
        sources, errors = archive_members(path)
        assert (len(set(sources)), errors) == (2, [])
        assert read_all(sources) == [b"first", b"second"]
        assert read_all(reversed(sources)) == [b"second", b"first"]

    def test_methods_without_a_limit_are_refused(self, tmp_path):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as target:
            target.writestr("1", bytes(1000))
        sources, errors = archive_members(path)
        assert sources == []
        assert [(error.code, error.measured) for error in errors] == [("F03", "a member packed by method 12")]


class TestTar:
    CONTENT = (("d/1", b"first"), ("d/2", b"\0" * 51_200), ("d/3", RANDOM[:70_001]))

    @pytest.mark.parametrize(("ending", "mode"), TAR_KINDS.items())
    @pytest.mark.parametrize("unpack", [True, False], ids=["scratch", "packed"])
    def test_members_are_read(self, tmp_path, ending, mode, unpack):
        path = write_tar(tmp_path / f"a.{ending}", self.CONTENT, mode)
        scratch = tmp_path / "scratch"
        scratch.mkdir(mode=0o700)
        assert is_archive(path)
        sources, errors = archive_members(path, scratch=scratch if unpack else None)
        assert ([source.member for source in sources], errors) == (["d/1", "d/2", "d/3"], [])
        assert read_all(sources) == [content for _, content in self.CONTENT]
        assert read_all(reversed(sources)) == [content for _, content in reversed(self.CONTENT)]
        with SourceReader() as reader:
            assert [reader.head(source, 6) for source in sources] == [data[:6] for _, data in self.CONTENT]
        # By name alone, as the table of sources keeps it.
        assert read_all([Source(source.path, source.member) for source in sources[::-1]])[0] == RANDOM[:70_001]
        written = [file for file in scratch.rglob("*") if file.is_file()]
        assert sorted(file.name for file in written) == (["0000000", "0000001", "0000002"] if unpack and mode else [])
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in written)
        assert all(stat.S_IMODE(file.parent.stat().st_mode) == 0o700 for file in written)

    def test_a_compressed_archive_unpacked_or_not_gives_the_same_sources(self, tmp_path):
        path = write_tar(tmp_path / "a.tgz", self.CONTENT, "gz")
        unpacked, packed = archive_members(path, scratch=tmp_path)[0], archive_members(path)[0]
        assert unpacked == packed
        assert hash(unpacked[0]) == hash(packed[0])
        assert all(source.scratch for source in unpacked)

    def test_sources_are_read_in_another_process(self, tmp_path):
        sources, _ = archive_members(write_tar(tmp_path / "a.tgz", self.CONTENT, "gz"), scratch=tmp_path)
        sources += archive_members(write_tar(tmp_path / "a.tar", self.CONTENT))[0]
        assert pickle.loads(pickle.dumps(sources)) == sorted(sources, key=lambda source: source.path, reverse=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert list(pool.map(read_in_another_process, sources)) == [data for _, data in self.CONTENT] * 2

    @pytest.mark.parametrize("mode", ["", "gz"])
    def test_names_links_and_devices_are_harmless(self, tmp_path, mode):
        outside = tmp_path / "outside"
        inside = tmp_path / "scratch"
        inside.mkdir()
        members = [
            ("../outside", b"one"),
            (str(outside), b"two"),
            info_of("link", kind=tarfile.SYMTYPE, link=str(tmp_path)),
            ("link/outside", b"three"),
            info_of("hard", kind=tarfile.LNKTYPE, link="../outside"),
            info_of("device", kind=tarfile.CHRTYPE),
            info_of("pipe", kind=tarfile.FIFOTYPE),
            info_of("folder", kind=tarfile.DIRTYPE),
            ("same", b"four"),
            ("same", b"five"),
            ("", b"six"),
            ("n\udcff", b"seven"),
        ]
        path = write_tar(tmp_path / "a.tar", members, mode, format=tarfile.GNU_FORMAT, errors="surrogateescape")
        sources, errors = archive_members(path, scratch=inside)
        assert read_all(sources) == [b"one", b"two", b"three", b"four", b"five", b"six", b"seven"]
        assert len({source.member for source in sources} - {""}) == 7
        assert "".join(source.member for source in sources).encode()
        assert [error.code for error in errors] == ["F02"] * 4
        assert sorted(tmp_path.iterdir()) == [path, inside]
        assert read_all([Source(source.path, source.member) for source in sources])[3:5] == [b"four", b"five"]

    @pytest.mark.parametrize("mode", ["", "gz", "xz"])
    @pytest.mark.parametrize(
        "limits", [ArchiveLimits(members=2), ArchiveLimits(total_bytes=60_000)], ids=["members", "total"]
    )
    def test_archive_over_a_limit_leaves_nothing(self, tmp_path, limits, mode):
        path = write_tar(tmp_path / "a.tar", self.CONTENT, mode)
        with pytest.raises(DicomError, match="F06"):
            archive_members(path, limits, tmp_path)
        assert list(tmp_path.iterdir()) == [path]

    def test_member_over_the_limit_costs_only_itself(self, tmp_path):
        limits = ArchiveLimits(member_bytes=60_000)
        for mode in ("", "gz"):
            path = write_tar(tmp_path / f"a{mode}.tar", self.CONTENT, mode)
            sources, errors = archive_members(path, limits)
            assert [len(data) for data in read_all(sources, limits)] == [5, 51_200]
            assert [error.code for error in errors] == ["F06"]

    @pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
    def test_bomb(self, tmp_path, mode):
        path = write_tar(tmp_path / "a.tar", [("zeros", bytes(20_000_000))], mode)
        limits = ArchiveLimits(ratio=100, ratio_from_bytes=1_000_000)
        with pytest.raises(DicomError, match="F06: an archive that unpacks"):
            archive_members(path, limits, tmp_path)
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("mode", ["", "gz"])
    @pytest.mark.parametrize(("claimed", "code"), [(8 * 1024**3, "F03"), (1024**3, "F03")])
    def test_header_that_claims_more_than_there_is(self, tmp_path, mode, claimed, code):
        plain = info_of("big", claimed).tobuf(tarfile.GNU_FORMAT) + b"few bytes" + bytes(2000)
        path = tmp_path / "a.tar"
        path.write_bytes(plain)
        if mode:
            path.write_bytes(gzip.compress(plain))
        tracemalloc.start()
        try:
            with pytest.raises(DicomError, match=code):
                archive_members(path, scratch=tmp_path)
            with pytest.raises(DicomError, match=r"F0[36]"):
                read_all([Source(str(path), "big", 512, claimed)])
            assert tracemalloc.get_traced_memory()[1] < 8e6
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE], ids=["long name", "pax", "global"]
    )
    def test_header_that_asks_for_memory(self, tmp_path, kind):
        path = tmp_path / "a.tar"
        path.write_bytes(info_of("x", 1024**3, kind).tobuf() + bytes(10_000))
        with pytest.raises(DicomError, match="F06: a tar header larger"):
            archive_members(path)

    def test_chain_of_headers(self, tmp_path):
        path = tmp_path / "a.tar"
        path.write_bytes((info_of("x", 1, tarfile.GNUTYPE_LONGNAME).tobuf() + b"n" + bytes(511)) * 5000)
        with pytest.raises(DicomError, match="F03"):
            archive_members(path)

    def test_negative_size_does_not_loop(self, tmp_path):
        info = bytearray(info_of("x", 0).tobuf(tarfile.GNU_FORMAT))
        info[124:136] = b"\xff" * 11 + b"\x00"  # -256 in base 256
        info[148:156] = b" " * 8
        info[148:156] = f"{sum(info):06o}\0 ".encode()
        path = tmp_path / "a.tar"
        path.write_bytes(bytes(info) * 4 + bytes(1024))
        with pytest.raises(DicomError, match=r"F0[36]"):
            read_all(archive_members(path)[0])

    @pytest.mark.parametrize("mode", ["", "gz", "bz2", "xz"])
    @pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
    def test_cut_archive_is_refused_whole(self, tmp_path, mode, share):
        path = write_tar(tmp_path / "a.tar", [(f"{k}", RANDOM[k * 9000 : k * 9000 + 9000]) for k in range(10)], mode)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DicomError, match="F03"):
            archive_members(path, scratch=tmp_path)
        assert list(tmp_path.iterdir()) == [path]

    def test_cut_between_two_members_is_noticed(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("1", b"x" * 512), ("2", b"y" * 512)])
        path.write_bytes(path.read_bytes()[:1024])
        with pytest.raises(DicomError, match="F03"):
            archive_members(path)

    def test_damaged_header_in_the_middle_is_noticed(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", [("1", b"x" * 512), ("2", b"y" * 512), ("3", b"z" * 512)])
        data = bytearray(path.read_bytes())
        data[1024 + 100] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(DicomError, match="F03"):
            archive_members(path)

    def test_scratch_that_cannot_be_written_is_the_users_matter(self, tmp_path, monkeypatch):
        path = write_tar(tmp_path / "a.tgz", self.CONTENT, "gz")

        def full(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("lvmmed_monai.dicom._tar.os.open", full)
        with pytest.raises(UserError, match="No space left"):
            archive_members(path, scratch=tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_300_000_members(tmp_path, kind):
    """Refused without an object being made of each."""
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *[20] * 2, *[0] * 4, 0, 0, 0, 1, *[0] * 4, 0, 0) + b"n"
        table = entry * 300_000
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(table), 4, 0)
        path.write_bytes(b"PK\x03\x04" + table + end)
    else:
        header = info_of("n").tobuf()
        with tarfile.open(path, f"w:{kind[4:]}", compresslevel=1) if kind[4:] else tarfile.open(path, "w") as target:
            target.fileobj.write(header * 300_000 + bytes(1024))
    tracemalloc.start()
    try:
        with pytest.raises(DicomError, match="F06: more than 2000 members"):
            archive_members(path, ArchiveLimits(members=2_000))
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["zip", "tar", "gz"])
def test_archives_within_archives_are_counted_and_not_opened(archive, tmp_path, kind):
    inner = archive.read_bytes()
    path = tmp_path / "outer"
    members = [("inner.zip", inner), ("no.zip", b"not an archive"), ("1.dcm", b"x")]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as target:
            for name, content in members:
                target.writestr(name, content)
    else:
        write_tar(path, members, kind.replace("tar", ""))
    sources, errors = archive_members(path, scratch=tmp_path)
    assert read_all(sources) == [b"not an archive", b"x"]
    assert [(error.code, "within an archive" in error.measured) for error in errors] == [("F02", True)]


def test_missing_file_says_nothing_of_its_path(tmp_path):
    for source in (Source(str(tmp_path / "smith.dcm")), Source(str(tmp_path / "smith.zip"), "1")):
        with SourceReader() as reader, pytest.raises(DicomError, match="F03") as caught:
            reader.read(source)
        assert "smith" not in str(caught.value)


def test_plain_files_within_limits(tmp_path):
    path = tmp_path / "1"
    path.write_bytes(b"0123456789")
    with SourceReader(ArchiveLimits(member_bytes=10)) as reader:
        assert (reader.read(Source(str(path))), reader.head(Source(str(path)), 4)) == (b"0123456789", b"0123")
    with SourceReader(ArchiveLimits(member_bytes=9)) as reader:
        for way in (reader.read, lambda source: reader.head(source, 4)):
            with pytest.raises(DicomError, match="F06: a file of 10 bytes"):
                way(Source(str(path)))


def test_archives_are_known_by_their_bytes(archive, tmp_path):
    def file(name, content) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    old_tar = bytearray(write_tar(tmp_path / "old.tar", [("1", b"x")], format=tarfile.USTAR_FORMAT).read_bytes())
    old_tar[257:265] = bytes(8)
    old_tar[148:156] = b" " * 8
    old_tar[148:156] = f"{sum(old_tar[:512]):06o}\0 ".encode()
    assert is_archive(archive)
    assert is_archive(file("noending", archive.read_bytes()))
    assert is_archive(file("zip.tar", archive.read_bytes()))
    assert is_archive(file("before_posix.tar", bytes(old_tar)))
    assert archive_members(tmp_path / "before_posix.tar")[0][0].size == 1
    assert not is_archive(file("arrays.npz", archive.read_bytes()))
    assert not is_archive(file("volume.nii.gz", gzip.compress(bytes(1000))))
    assert not is_archive(file("cut.tgz", gzip.compress(bytes(1000))[:15]))
    assert not is_archive(file("text.zip", b"words"))
    assert not is_archive(file("dicom.tar", bytes(128) + b"DICM" + bytes(125) + b"ustar" + bytes(500)))


def test_walk_is_sorted_and_skips(tmp_path):
    for name in ("b/2", "b/1", "a/x", "out/y", ".hidden/z", "a/.z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    names = [path.relative_to(tmp_path).as_posix() for path in walk_files(tmp_path, [tmp_path / "out"])]
    assert names == ["a/x", "b/1", "b/2"]
    assert list(walk_files(tmp_path / "b" / "1")) == [tmp_path / "b" / "1"]


def test_sources_of_a_volume_in_a_compressed_tar_are_found_again(tmp_path):
    """The table of sources keeps path and member alone; the scratch folder is gone by then."""
    datasets = series(4)
    buffers = [io.BytesIO() for _ in datasets]
    for dataset, buffer in zip(datasets, buffers, strict=True):
        dataset.save_as(buffer, enforce_file_format=True)
    path = write_tar(tmp_path / "a.tgz", [("same", buffer.getvalue()) for buffer in buffers], "gz")
    sources = archive_members(path)[0][::-1]
    write_sources(tmp_path / "journal", "v", [(source.path, source.member) for source in sources])
    found = [header.SOPInstanceUID for header in read_sources(tmp_path / "journal", "v")]
    assert found == [dataset.SOPInstanceUID for dataset in datasets[::-1]]


def test_inventory_unpacks_to_the_scratch_folder(tmp_path):
    source, scratch = tmp_path / "in", tmp_path / "scratch"
    source.mkdir()
    scratch.mkdir(mode=0o700)
    write_tar(source / "a.txz", [("../1", b"x"), ("inner.zip", b"PK\x03\x04")], "xz")
    (source / "cut.tar").write_bytes(write_tar(tmp_path / "b.tar", [("1", RANDOM)]).read_bytes()[:100_000])
    inventory = take_inventory(source, [], scratch=scratch)
    assert (inventory.files, inventory.archives) == (2, 2)
    assert [bad.finding.code for bad in inventory.bad] == ["F02", "F03"]
    assert [Path(found.scratch).read_bytes() for found in inventory.sources] == [b"x"]
    assert Path(inventory.sources[0].scratch).is_relative_to(scratch)
