"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import (
    atomic_path,
    output_folder,
    read_json,
    sha256_file,
    sha256_json,
    storage_error,
    write_json,
    write_text,
)


class TestAtomic:
    def test_new_file_in_a_new_folder(self, tmp_path: Path) -> None:
        target = tmp_path / "new" / "volume.nii.gz"
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent
            assert temporary.name.endswith(".nii.gz")
            assert not target.exists()
            temporary.write_bytes(b"abc")
        assert target.read_bytes() == b"abc"
        assert [path.name for path in target.parent.iterdir()] == ["volume.nii.gz"]

    def test_an_error_leaves_what_was_there(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        write_text(target, "before")

        def fail() -> None:
            with atomic_path(target) as temporary:
                temporary.write_text("half")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            fail()
        assert target.read_text() == "before"
        assert len(list(tmp_path.iterdir())) == 1

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            write_text(tmp_path / "a.txt", "x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


class TestJson:
    def test_round_trip(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"ä": [1, None]})
        assert read_json(tmp_path / "a.json", "thing") == {"ä": [1, None]}

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_numbers_that_json_has_not(self, tmp_path: Path, number: float) -> None:
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(tmp_path / "a.json", {"value": number})
        assert list(tmp_path.iterdir()) == []

    def test_messages_name_what_and_where(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"^thing not found; .*none.json; "):
            read_json(tmp_path / "none.json", "thing")
        with pytest.raises(UserError, match="thing cannot be read"):
            read_json(tmp_path, "thing")
        (tmp_path / "a.json").write_text("{")
        with pytest.raises(UserError, match="thing is not valid JSON"):
            read_json(tmp_path / "a.json", "thing")
        (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match="thing is not valid JSON"):
            read_json(tmp_path / "a.json", "thing")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_json({"b": 1, "a": [2]}) == hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()


class TestOutputFolder:
    def test_is_made(self, tmp_path: Path) -> None:
        assert output_folder(tmp_path / "a" / "b").is_dir()
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("x")
        with pytest.raises(UserError, match="cannot be written to"):
            output_folder(tmp_path / "a")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_no_permission(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="cannot be written to"):
            output_folder(tmp_path / "a")

    def test_too_little_space(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="too little disk space"):
            output_folder(tmp_path, need_bytes=10**18)


class TestStorageError:
    def test_full_disk_behind_another_error(self) -> None:
        outer = RuntimeError("worker failed")
        outer.__cause__ = OSError(errno.ENOSPC, "No space left on device", "file")
        found = storage_error(outer)
        assert isinstance(found, UserError)
        assert "No space left" in str(found)

    @pytest.mark.parametrize("write", [lambda path, array: torch.save(torch.as_tensor(array), path), np.save])
    def test_writers_that_name_no_number(self, write: Callable[..., None], tmp_path: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            with pytest.raises((OSError, RuntimeError)) as failure:
                write(tmp_path / "a.npy", np.zeros(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert isinstance(storage_error(failure.value), UserError)

    @pytest.mark.parametrize("error", [None, ValueError("x"), OSError(errno.ENOENT, "no such file")])
    def test_other_errors(self, error: BaseException | None) -> None:
        assert storage_error(error) is None
