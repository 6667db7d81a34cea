from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lvmmed_monai.data.slice_cache import SliceCache, missing_bytes
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import read_json


class Reader:
    """A prepare function that counts, and can be made to fail."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.fail_at = fail_at

    def __call__(self, item: Mapping[str, Any]) -> list[np.ndarray]:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(item["image"])
        if not Path(item["image"]).read_bytes().startswith(b"\x89PNG"):
            raise DataError("cannot be read (OSError); here; repair it")
        array = np.asarray(Image.open(item["image"]), dtype=np.float32) / 255
        return [array[None, None] if array.ndim == 2 else np.moveaxis(array, 2, 0)[:, None]]


def write(path: Path, seed: int, shape: tuple[int, ...] = (12, 8)) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, Any]]:
    for number in range(4):
        write(tmp_path / f"{number}.png", number)
    return [{"image": str(tmp_path / f"{number}.png"), "subject": str(number)} for number in range(4)]


def cache(items: list[dict[str, Any]], tmp_path: Path, reader: Reader | None = None, **options: Any) -> SliceCache:
    settings = options.pop("settings", {"rule": 1})
    return SliceCache(items, reader or Reader(), tmp_path / "cache", settings=settings, **options)


def test_pixels_come_back(items: list[dict[str, Any]], tmp_path: Path) -> None:
    colour = write(tmp_path / "colour.png", 9, (5, 6, 3))
    found = cache([*items, {"image": str(tmp_path / "colour.png")}], tmp_path)
    assert len(found) == 5
    for number in range(4):
        expected = np.asarray(Image.open(items[number]["image"]))
        np.testing.assert_array_equal(found[number].numpy(), expected[None])
        assert found.item(number) == items[number]
    np.testing.assert_array_equal(found[4].numpy(), np.moveaxis(colour, 2, 0))


def test_second_run_reads_nothing(items: list[dict[str, Any]], tmp_path: Path) -> None:
    assert cache(items, tmp_path).built == 4
    reader = Reader()
    again = cache(items, tmp_path, reader)
    assert reader.calls == []
    assert again.built == 0
    assert len(again) == 4


def test_changed_file_is_read_again(items: list[dict[str, Any]], tmp_path: Path) -> None:
    before = cache(items, tmp_path)
    old = before[2].numpy()
    status = os.stat(items[2]["image"])
    write(Path(items[2]["image"]), 77)
    os.utime(items[2]["image"], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = cache(items, tmp_path)
    assert after.built == 4
    assert not np.array_equal(after[2].numpy(), old)
    assert not before.path.exists()
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1


@pytest.mark.parametrize("change", [{"settings": {"rule": 2}}, {"size": 6}, {"min_foreground": 0.5}])
def test_changed_settings_do_not_meet_old_pixels(
    items: list[dict[str, Any]], tmp_path: Path, change: dict[str, Any]
) -> None:
    first = cache(items, tmp_path)
    second = cache(items, tmp_path, **change)
    assert second.built == 4
    assert second.path != first.path
    assert first.path.exists()


def test_longer_side_is_reduced_and_never_enlarged(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 0, (40, 20))
    write(tmp_path / "b.png", 1, (6, 10))
    found = cache([{"image": str(tmp_path / f"{name}.png")} for name in "ab"], tmp_path, size=16)
    assert [tuple(found[i].shape) for i in range(2)] == [(1, 16, 8), (1, 6, 10)]


def test_interrupted_build_goes_on(items: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cache(items, tmp_path, Reader(fail_at=2))
    assert not list((tmp_path / "cache").glob("*.bin"))
    # What a killed process leaves: a torn line, and pixels that no line speaks of.
    (journal,) = (tmp_path / "cache").glob("*.journal")
    journal.write_text(journal.read_text() + '{"end": 99')
    (partial,) = (tmp_path / "cache").glob("*.partial")
    partial.write_bytes(partial.read_bytes() + b"torn")
    reader = Reader()
    found = cache(items, tmp_path, reader)
    assert reader.calls == [item["image"] for item in items[2:]]
    for number in range(4):
        np.testing.assert_array_equal(found[number].numpy()[0], np.asarray(Image.open(items[number]["image"])))
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".bin", ".json", ".lock"}


def same_as_files(found: SliceCache, items: list[dict[str, Any]]) -> bool:
    pairs = zip(found, items, strict=True)
    return all(np.array_equal(pixels.numpy()[0], np.asarray(Image.open(item["image"]))) for pixels, item in pairs)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 2 * 96 + 5])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2 * 96 + 5] ^= 1
    path.write_bytes(content)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


@pytest.mark.parametrize(("damage", "rebuilt"), [(truncate, [2, 3]), (flip_a_bit, [2, 3]), (append, [])])
def test_damaged_pixels_are_rebuilt(
    items: list[dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    rebuilt: list[int],
) -> None:
    path = cache(items, tmp_path).path
    damage(path)
    reader = Reader()
    found = cache(items, tmp_path, reader)
    assert reader.calls == [items[number]["image"] for number in rebuilt]
    assert same_as_files(found, items)
    assert f"damaged after {4 - len(rebuilt)} of 4 images" in caplog.text
    caplog.clear()
    assert cache(items, tmp_path).built == 0
    assert "damaged" not in caplog.text


def test_damaged_index_is_rebuilt(items: list[dict[str, Any]], tmp_path: Path) -> None:
    path = cache(items, tmp_path).path
    path.with_suffix(".json").write_text("{")
    found = cache(items, tmp_path)
    assert found.built == 4
    assert same_as_files(found, items)


def test_copied_cache_is_read_once_and_then_trusted(items: list[dict[str, Any]], tmp_path: Path) -> None:
    path = cache(items, tmp_path).path
    os.utime(path, ns=(1, 1))
    assert cache(items, tmp_path).built == 0
    assert read_json(path.with_suffix(".json"), "index")["modified"] == 1


def test_killed_before_the_last_file_was_renamed(items: list[dict[str, Any]], tmp_path: Path) -> None:
    path = cache(items, tmp_path).path
    records = read_json(path.with_suffix(".json"), "index")["items"]
    path.rename(path.with_suffix(".partial"))
    path.with_suffix(".journal").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = cache(items, tmp_path)
    assert found.built == 0
    assert same_as_files(found, items)


def test_torn_pixels_of_an_interrupted_build_are_not_taken(items: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cache(items, tmp_path, Reader(fail_at=3))
    (partial,) = (tmp_path / "cache").glob("*.partial")
    content = partial.read_bytes()
    partial.write_bytes(content[:100] + bytes(len(content) - 100))
    found = cache(items, tmp_path)
    assert found.built == 3
    assert same_as_files(found, items)


def test_bad_image_is_left_out_and_named(
    items: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.png").write_bytes(b"no picture")
    for _ in range(2):
        caplog.clear()
        found = cache(items, tmp_path)
        assert found.rejected == {1: "cannot be read (OSError)"}
        assert [found.item(index)["subject"] for index in range(len(found))] == ["0", "2", "3"]
        assert "1 of 4 images cannot be used (1.png: cannot be read (OSError)); they are left out" in caplog.text
    assert str(tmp_path) not in caplog.records[-1].getMessage()
    write(tmp_path / "1.png", 1)
    assert cache(items, tmp_path).rejected == {}


def test_several_processes_build_once(items: list[dict[str, Any]], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        built = pool.starmap(built_by, [(items, tmp_path)] * 3, chunksize=1)
    assert sorted(built) == [0, 0, 4]


def built_by(items: list[dict[str, Any]], tmp_path: Path) -> int:
    found = cache(items, tmp_path)
    assert same_as_files(found, items)
    return found.built


def test_data_loader_workers_read_the_same(items: list[dict[str, Any]], tmp_path: Path) -> None:
    found = cache(items, tmp_path)
    assert found[0].shape == (1, 12, 8)  # mapped before the workers are forked
    for context in ("fork", "spawn"):
        loader = DataLoader(found, batch_size=2, num_workers=2, multiprocessing_context=context)
        read = torch.cat(list(loader))
        assert torch.equal(read, torch.stack([found[index] for index in range(4)]))


def test_space_is_looked_for_before_the_build(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    reader = Reader()
    with pytest.raises(UserError, match="too little disk space"):
        cache(items, tmp_path, reader)
    assert reader.calls == []


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_size_is_foretold_for_the_planes_of_a_volume(tmp_path: Path, planes: int) -> None:
    # 24 slices of 12 x 16, reduced to 6 x 8; 16 of 12 x 24, to 4 x 8; 12 of 16 x 24, to 6 x 8 (5.33 rounded up).
    nib.save(nib.Nifti1Image(np.zeros((12, 16, 24), np.int16), np.eye(4)), tmp_path / "v.nii.gz")
    items = [{"image": str(tmp_path / "v.nii.gz")}]
    cuts = [24 * 6 * 8, 12 * 6 * 8, 16 * 4 * 8]
    assert missing_bytes(items, tmp_path / "x.bin", 8, planes) == int(1.1 * sum(cuts[:planes]))


def test_empty_slices_of_volumes_are_left_out_and_pictures_never(tmp_path: Path) -> None:
    write(tmp_path / "v.png", 0)
    volume = np.zeros((1, 5, 10, 10), np.float32)
    volume[0, 1, :1, :4] = 0.5  # 4 percent of the pixels
    volume[0, 2, :1, :6] = 0.5  # 6 percent
    volume[0, 3] = 0.04  # below the level that counts
    volume[0, 4] = 1.0
    item = [{"image": str(tmp_path / "v.png")}]
    found = SliceCache(item, lambda _: [volume], tmp_path / "a", settings={})
    assert (len(found), found.skipped) == (2, 3)
    assert int(found[1].min()) == 255
    dark = SliceCache(item, lambda _: [volume[:, :1]], tmp_path / "b", settings={})
    assert len(dark) == 1
    with pytest.raises(DataError, match="no picture is left"):
        SliceCache(item, lambda _: [volume[:, [0, 3]]], tmp_path / "c", settings={})


def test_travels_to_worker_processes(items: list[dict[str, Any]], tmp_path: Path) -> None:
    found = cache(items, tmp_path)
    first = found[0]
    copy = pickle.loads(pickle.dumps(found))
    assert copy._pixels is None
    np.testing.assert_array_equal(copy[0].numpy(), first.numpy())


def test_bad_input_is_named(items: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be used \(bad\.png: cannot be read"):
        cache([{"image": str(tmp_path / "bad.png")}], tmp_path)
    with pytest.raises(UserError, match=r"outside 0..1"):
        SliceCache(items, lambda _: [np.full((1, 1, 4, 4), 2.0)], tmp_path / "x", settings={})
    with pytest.raises(UserError, match="give \\(C, S, H, W\\)"):
        SliceCache(items, lambda _: [np.zeros((4, 4))], tmp_path / "y", settings={})
