"""The cache of prepared volumes: what it stores, when it prepares again, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvmmed_monai.data.volume_cache import VolumeCache, foreground_box
from lvmmed_monai.errors import UserError


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
        assert len(names) == 3
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
        assert not list((tmp_path / "cache").rglob("*.npy"))

    def test_refuses_an_unknown_type_and_a_missing_file(self, volumes: Any, tmp_path: Path) -> None:
        items = volumes(1)
        with pytest.raises(UserError, match="storage type"):
            build(items, tmp_path / "cache", dtype="int4")
        with pytest.raises(UserError, match="cannot be read"):
            build([{"image": str(tmp_path / "absent.npy")}], tmp_path / "cache")


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
        assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3
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

    def test_reading_maps_the_file_instead_of_loading_it(
        self, volumes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache, _ = build(volumes(1), tmp_path / "cache")
        modes = []
        load = np.load
        monkeypatch.setattr(np, "load", lambda path, mmap_mode=None: modes.append(mmap_mode) or load(path, mmap_mode))
        cache.read_window(0, (0, 0, 0), (2, 2, 2))
        assert modes == ["r"]


def test_foreground_box() -> None:
    volume = np.zeros((1, 6, 5, 4))
    assert foreground_box(volume) is None
    volume[0, 2:5, 1, 3] = 1
    assert foreground_box(volume) == (slice(2, 5), slice(1, 2), slice(3, 4))
