"""The cache of prepared volumes: what it stores, when it prepares again, and how it is read."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmmed_monai.data._chunks import open_chunks, write_chunks
from lvmmed_monai.data.volume_cache import VolumeCache, foreground_box
from lvmmed_monai.errors import DataError, UserError


class Preparation:
    """Reads a ``.npy`` file and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, item: Mapping[str, Any]) -> np.ndarray:
        self.calls += 1
        return np.load(item["image"])


@pytest.fixture
def volumes(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    def make(count: int = 3, shape: tuple[int, ...] = (6, 5, 4)) -> list[dict[str, Any]]:
        items = []
        for number in range(count):
            path = tmp_path / f"volume{number}.npy"
            np.save(path, np.random.default_rng(number).random(shape, dtype=np.float32))
            items.append({"image": str(path), "modality": "CT"})
        return items

    return make


def build(items: list[dict[str, Any]], folder: Path, **options: Any) -> tuple[VolumeCache, Preparation]:
    prepare = Preparation()
    return VolumeCache(items, prepare, folder, **{"settings": {"spacing": 1}, **options}), prepare


class TestStoring:
    @pytest.mark.parametrize(("dtype", "tolerance", "size"), [("uint8", 0.5 / 255 + 1e-6, 1), ("float16", 5e-4, 2)])
    def test_values_and_size(self, volumes: Any, tmp_path: Path, dtype: str, tolerance: float, size: int) -> None:
        items = volumes()
        cache, prepare = build(items, tmp_path / "cache", dtype=dtype)
        assert prepare.calls == cache.built == len(cache) == 3
        assert cache.nbytes == 3 * 120 * size
        for index, item in enumerate(items):
            read = cache.read_window(index, (0, 0, 0), (6, 5, 4))
            assert read.dtype == np.float32
            assert cache.shape(index) == (6, 5, 4)
            np.testing.assert_allclose(read[0], np.load(item["image"]), rtol=0, atol=tolerance)

    def test_no_path_or_partial_file_is_left(self, volumes: Any, tmp_path: Path) -> None:
        build(volumes(), tmp_path / "cache")
        names = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert len(names) == 4
        assert "build.lock" in names
        assert not any("volume" in name or name.startswith(".partial") for name in names)

    def test_channels(self, volumes: Any, tmp_path: Path) -> None:
        cache, _ = build(volumes(1, (2, 6, 5, 4)), tmp_path / "cache")
        assert cache.channels(0) == 2
        assert cache.read_window(0, (1, 1, 1), (2, 2, 2)).shape == (2, 2, 2, 2)

    def test_a_volume_of_air_is_marked(self, volumes: Any, tmp_path: Path) -> None:
        items = volumes(2)
        np.save(items[1]["image"], np.zeros((6, 5, 4), np.float32))
        assert build(items, tmp_path / "cache")[0].empty == [1]
        again, prepare = build(items, tmp_path / "cache")
        assert again.empty == [1]
        assert prepare.calls == 0

    @pytest.mark.parametrize("bad", [np.full((3, 3, 3), 2.0), np.full((3, 3, 3), np.nan), np.zeros((3, 3))])
    def test_refuses_what_is_not_prepared(self, volumes: Any, tmp_path: Path, bad: np.ndarray) -> None:
        items = volumes(1)
        np.save(items[0]["image"], bad)
        with pytest.raises(UserError, match="prepared volume"):
            build(items, tmp_path / "cache")
        assert not list((tmp_path / "cache").rglob("*.vol"))

    def test_refuses_an_unknown_type(self, volumes: Any, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="storage type"):
            build(volumes(1), tmp_path / "cache", dtype="int4")

    def test_files_are_no_larger_than_plain_arrays(self, volumes: Any, tmp_path: Path) -> None:
        build(volumes(1, (1, 33, 65, 31)), tmp_path / "cache")
        (path,) = (tmp_path / "cache").rglob("*.vol")
        assert path.stat().st_size == 33 * 65 * 31 + 128

    def test_pickles_hold_no_voxels(self, volumes: Any, tmp_path: Path) -> None:
        cache, _ = build(volumes(3, (40, 40, 40)), tmp_path / "cache")
        cache.read_window(0, (0, 0, 0), (40, 40, 40))
        stored = pickle.dumps(cache)
        assert len(stored) < 2000
        np.testing.assert_array_equal(
            pickle.loads(stored).read_window(1, (1, 2, 3), (5, 5, 5)), cache.read_window(1, (1, 2, 3), (5, 5, 5))
        )


class TestChunks:
    @pytest.mark.parametrize("shape", [(2, 7, 9, 5), (1, 8, 4, 12), (1, 3, 3, 3)])
    @pytest.mark.parametrize("chunk", [4, 5])
    def test_any_box_equals_a_slice(self, tmp_path: Path, shape: tuple[int, ...], chunk: int) -> None:
        array = np.arange(np.prod(shape), dtype=np.float16).reshape(shape)
        write_chunks(tmp_path / "one.vol", array, chunk)
        found = open_chunks(tmp_path / "one.vol")
        assert found is not None
        assert found.shape == shape
        random = np.random.default_rng(0)
        for _ in range(60):
            first = [int(random.integers(0, extent)) for extent in shape[1:]]
            end = [int(random.integers(low + 1, extent + 1)) for low, extent in zip(first, shape[1:], strict=True)]
            expected = array[(slice(None), *map(slice, first, end))]
            out = np.zeros(expected.shape, np.float32)
            found.read(list(zip(first, end, strict=True)), out)
            np.testing.assert_array_equal(out, expected)

    def test_a_window_lies_on_few_pages(self, tmp_path: Path) -> None:
        """Only the chunks that a window meets are read: all others may be anything."""
        array = np.ones((1, 64, 64, 64), np.uint8)
        write_chunks(tmp_path / "one.vol", array, 16)
        found = open_chunks(tmp_path / "one.vol")
        assert found is not None
        damaged = bytearray((tmp_path / "one.vol").read_bytes())
        damaged[128 + 16**3 :] = bytes(len(damaged) - 128 - 16**3)
        (tmp_path / "one.vol").write_bytes(damaged)
        out = np.zeros((1, 16, 16, 16), np.uint8)
        found.read([(0, 16)] * 3, out)
        assert out.all()

    def test_what_is_not_whole_is_not_opened(self, tmp_path: Path) -> None:
        path = tmp_path / "one.vol"
        assert open_chunks(path) is None
        write_chunks(path, np.ones((1, 5, 5, 5), np.uint8))
        content = path.read_bytes()
        for damaged in (content[:-1], content[:50], b"", b"{}".ljust(200), bytes(200)):
            path.write_bytes(damaged)
            assert open_chunks(path) is None


class TestLeavingOut:
    def prepare(self, item: Mapping[str, Any]) -> np.ndarray:
        if item.get("bad"):
            raise DataError(f"values are no HU; {Path(item['image']).name}; repair it")
        return np.load(item["image"])

    def test_a_bad_volume_is_left_out_and_named(
        self, volumes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        items = volumes(4)
        items[1]["bad"] = True
        Path(items[2]["image"]).unlink()
        with caplog.at_level("INFO"):
            cache = VolumeCache(items, self.prepare, tmp_path / "cache", settings={})
        assert cache.rejected == {1: "values are no HU", 2: "cannot be read (No such file or directory)"}
        assert (cache.built, len(cache), cache.empty) == (2, 4, [])
        assert "2 left out" in caplog.text
        assert "2 of 4 volumes cannot be used (volume2.npy: cannot be read" in caplog.text
        assert "volume1.npy: values are no HU)" in caplog.text
        assert str(tmp_path / "volume") not in caplog.text
        assert cache.shape(3) == (6, 5, 4)
        with pytest.raises(ValueError, match="was left out"):
            cache.read_window(1, (0, 0, 0), (2, 2, 2))

    def test_it_is_tried_again(self, volumes: Any, tmp_path: Path) -> None:
        items = volumes(2)
        items[0]["bad"] = True
        VolumeCache(items, self.prepare, tmp_path / "cache", settings={})
        items[0]["bad"] = False
        cache = VolumeCache(items, self.prepare, tmp_path / "cache", settings={})
        assert (cache.rejected, cache.built, cache.reused) == ({}, 1, 1)

    def test_nothing_left_is_an_error(self, volumes: Any, tmp_path: Path) -> None:
        items = [{**item, "bad": True} for item in volumes(7)]
        with pytest.raises(DataError, match=r"7 of 7 volumes cannot be used \(volume0.* and 2 more\)"):
            VolumeCache(items, self.prepare, tmp_path / "cache", settings={})


class TestForetelling:
    def test_size_is_announced_before_the_first_volume(
        self, volumes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        items = volumes(3)
        with caplog.at_level("INFO"):
            build(items, tmp_path / "cache", voxels=lambda item: 2e6, dtype="float16")
        assert "preparing 3 volumes, at most about 12.0 MB" in caplog.messages[0]
        caplog.clear()
        with caplog.at_level("INFO"):
            build(items, tmp_path / "cache", voxels=lambda item: 2e6, dtype="float16")
        assert "preparing" not in caplog.text

    def test_a_disk_that_is_too_small_is_found_before_the_first_volume(self, volumes: Any, tmp_path: Path) -> None:
        prepare = Preparation()
        with pytest.raises(UserError, match="too little disk space"):
            VolumeCache(volumes(), prepare, tmp_path / "cache", settings={}, voxels=lambda item: 1e18)
        assert prepare.calls == 0

    def test_large_lists_are_sampled(self, volumes: Any, tmp_path: Path) -> None:
        (item,) = volumes(1)
        asked: list[Any] = []

        def voxels(item: Mapping[str, Any]) -> float:
            asked.append(item)
            if len(asked) == 1:
                raise DataError("a broken header; volume0.npy; repair it")
            return 100.0

        build([item] * 1000, tmp_path / "cache", voxels=voxels)
        assert len(asked) == 100


def build_in_process(items: list[dict[str, Any]], folder: Path, log: Path) -> None:
    def prepare(item: Mapping[str, Any]) -> np.ndarray:
        with log.open("a") as stream:
            stream.write(Path(item["image"]).name + "\n")
        time.sleep(0.05)
        return np.load(item["image"])

    VolumeCache(items, prepare, folder, settings={})


def test_processes_do_not_prepare_the_same_volume(volumes: Any, tmp_path: Path) -> None:
    items = volumes(4)
    start = multiprocessing.get_context("fork")
    workers = [
        start.Process(target=build_in_process, args=(items, tmp_path / "cache", tmp_path / "log")) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == [f"volume{number}.npy" for number in range(4)]


class TestReuse:
    def test_second_run_prepares_nothing(self, volumes: Any, tmp_path: Path) -> None:
        items = volumes()
        build(items, tmp_path / "cache")
        cache, prepare = build(items, tmp_path / "cache")
        assert prepare.calls == 0
        assert cache.reused == 3

    def test_an_interrupted_build_goes_on(self, volumes: Any, tmp_path: Path) -> None:
        items = volumes()

        def fails_at_the_third(item: Mapping[str, Any]) -> np.ndarray:
            if item is items[2]:
                raise KeyboardInterrupt
            return np.load(item["image"])

        with pytest.raises(KeyboardInterrupt):
            VolumeCache(items, fails_at_the_third, tmp_path / "cache", settings={"spacing": 1})
        cache, prepare = build(items, tmp_path / "cache")
        assert (prepare.calls, cache.reused) == (1, 2)

    def test_a_changed_file_is_prepared_again_and_its_old_array_goes(self, volumes: Any, tmp_path: Path) -> None:
        items = volumes()
        build(items, tmp_path / "cache")
        path = Path(items[1]["image"])
        np.save(path, np.full((6, 5, 4), 0.5, np.float32))
        os.utime(path, ns=(1, 1))
        cache, prepare = build(items, tmp_path / "cache")
        assert (prepare.calls, cache.reused, cache.stale) == (1, 2, 1)
        assert len(list((tmp_path / "cache").rglob("*.vol"))) == 3
        np.testing.assert_allclose(cache.read_window(1, (0, 0, 0), (1, 1, 1)), 0.5, atol=2e-3)

    def test_other_settings_and_modalities_never_share_arrays(self, volumes: Any, tmp_path: Path) -> None:
        items = volumes(1)
        for settings, modality in (({"spacing": 1}, "CT"), ({"spacing": 2}, "CT"), ({"spacing": 2}, "MR")):
            _, prepare = build([{**items[0], "modality": modality}], tmp_path / "cache", settings=settings)
            assert prepare.calls == 1
        _, prepare = build(items, tmp_path / "cache", settings={"spacing": 1})
        assert prepare.calls == 0


class TestReading:
    def test_windows_equal_a_padded_volume(self, volumes: Any, tmp_path: Path) -> None:
        cache, _ = build(volumes(1), tmp_path / "cache")
        whole = cache.read_window(0, (0, 0, 0), (6, 5, 4))
        padded = np.pad(whole, ((0, 0), (8, 8), (8, 8), (8, 8)))
        random = np.random.default_rng(0)
        for _ in range(100):
            start = random.integers(-8, 6, 3)
            x, y, z = start + 8
            window = cache.read_window(0, start.tolist(), (5, 4, 7))
            np.testing.assert_array_equal(window, padded[:, x : x + 5, y : y + 4, z : z + 7])


def test_foreground_box() -> None:
    volume = np.zeros((1, 6, 5, 4))
    assert foreground_box(volume) is None
    volume[0, 2:5, 1, 3] = 1
    assert foreground_box(volume) == (slice(2, 5), slice(1, 2), slice(3, 4))


def test_what_a_killed_process_left_is_removed(volumes: Any, tmp_path: Path) -> None:
    items = volumes(2)
    cache, _ = build(items[:1], tmp_path / "cache")
    left = cache.folder / ".partial-abc.vol"
    left.write_bytes(b"half a volume")
    build(items[:1], tmp_path / "cache")
    assert left.exists()
    build(items, tmp_path / "cache")
    assert not left.exists()


def test_a_damaged_file_is_made_again(volumes: Any, tmp_path: Path) -> None:
    items = volumes(1)
    build(items, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("*.vol")
    path.write_bytes(path.read_bytes()[:-3])
    cache, prepare = build(items, tmp_path / "cache")
    assert (prepare.calls, cache.stale) == (1, 0)
    np.testing.assert_allclose(cache.read_window(0, (0, 0, 0), (6, 5, 4))[0], np.load(items[0]["image"]), atol=2e-3)
