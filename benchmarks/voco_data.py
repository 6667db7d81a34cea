"""Volumes on disk for 3D pre-training: size, and time to draw a window, beside MONAI's PersistentDataset.

    python benchmarks/voco_data.py [--volumes 4] [--size 320 320 160] [--draws 40] [--out FILE]
    python benchmarks/voco_data.py --datalist DATALIST [DATALIST ...] --spacing 2 --window 48 48 48

Volumes are generated (smooth noise in an elliptic body in air, at their working spacing) or those of datalists. Each
is prepared in the same way for three stores: the cache of this package (8 bit, chunks), the same 8-bit values as plain
arrays (`numpy.load` with ``mmap_mode``), and `monai.data.PersistentDataset` (float32, the whole volume is loaded and
then cropped, as published code does). A draw is one random window of one volume, as float32 in memory. "Warm" files
lie in the page cache; before each "cold" draw the volume's file is dropped from it, where the system does so. The
last lines say how fast `VolumeCropDataset` makes crops in one process. Written as JSON in the results format
``lvmmed-results/1``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose, RandSpatialCropd, Transform
from scipy.ndimage import zoom

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.methods._preparation import VolumePreparation, prepared_volumes
from lvmmed_monai.methods._voco_data import VolumeCropDataset
from lvmmed_monai.results import new_results, write_results

STORES = ("cache of chunks", "plain arrays", "PersistentDataset")
Draw = Callable[[int, np.random.Generator], Any]


def write_volumes(folder: Path, count: int, size: Sequence[int], spacing_mm: float) -> Path:
    """``count`` CT-like volumes and their datalist."""
    axes = np.meshgrid(*(np.linspace(-1, 1, length, dtype=np.float32) for length in size), indexing="ij")
    body = axes[0] ** 2 + axes[1] ** 2 < 1
    items = []
    for number in range(count):
        coarse = np.random.default_rng(number).standard_normal([max(2, length // 8) for length in size])
        noise = zoom(coarse, np.divide(size, coarse.shape), order=1)
        values = np.where(body, (150 * noise).clip(-400, 390), -1000).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([spacing_mm] * 3 + [1.0])), folder / f"{number:03d}.nii")
        items.append({"image": f"{number:03d}.nii", "subject": f"s{number:03d}"})
    content = {"format": "lvmmed-datalist/1", "name": "benchmark", "task": "unlabelled", "modality": "CT"}
    sections = {"labels": {}, "flip_safe": True, "training": items, "validation": [], "test": []}
    write_datalist(folder / "datalist.json", {**content, **sections})
    return folder / "datalist.json"


class Prepared(Transform):
    """The package's preparation as a deterministic MONAI transform, float32."""

    def __init__(self, preparation: VolumePreparation) -> None:
        self.preparation = preparation

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """The prepared volume."""
        return {"image": torch.from_numpy(self.preparation(item).astype(np.float32))}


def _start(random: np.random.Generator, extents: Sequence[int], size: Sequence[int]) -> list[int]:
    return [int(random.integers(0, max(0, extent - length) + 1)) for extent, length in zip(extents, size, strict=True)]


def chunk_store(cache: VolumeCache) -> tuple[list[Path], Callable[[Sequence[int]], Draw]]:
    """Files of the cache, and how a window of a size is drawn."""

    def drawer(size: Sequence[int]) -> Draw:
        return lambda index, random: cache.read_window(index, _start(random, cache.shape(index), size), size)

    return [Path(cache._file(index).path) for index in range(len(cache))], drawer


def plain_store(cache: VolumeCache, folder: Path) -> tuple[list[Path], Callable[[Sequence[int]], Draw]]:
    """The same for plain 8-bit arrays."""
    paths = []
    for index in range(len(cache)):
        paths.append(folder / f"{index:05d}.npy")
        whole = cache.read_window(index, (0, 0, 0), cache.shape(index))
        np.save(paths[-1], np.rint(whole * 255).astype(np.uint8))

    def drawer(size: Sequence[int]) -> Draw:
        def draw(index: int, random: np.random.Generator) -> np.ndarray:
            volume = np.load(paths[index], mmap_mode="r")
            part = volume[(slice(None), *_slices(_start(random, volume.shape[1:], size), size))]
            window = np.zeros((len(volume), *size), np.float32)
            window[tuple(slice(0, length) for length in part.shape)] = part
            window /= 255
            return window

        return draw

    return paths, drawer


def _slices(start: Sequence[int], size: Sequence[int]) -> list[slice]:
    return [slice(first, first + length) for first, length in zip(start, size, strict=True)]


def persistent_store(
    items: Sequence[Mapping[str, Any]], preparation: VolumePreparation, folder: Path
) -> tuple[list[Path], Callable[[Sequence[int]], Draw]]:
    """The same for MONAI's data set, whose files hold the whole volume in float32."""
    prepared = Prepared(preparation)
    paths = []
    whole = PersistentDataset(list(items), Compose([prepared]), cache_dir=folder)
    for index in range(len(items)):
        before = set(folder.glob("*.pt"))
        _ = whole[index]
        paths += set(folder.glob("*.pt")) - before

    def drawer(size: Sequence[int]) -> Draw:
        crop = RandSpatialCropd("image", roi_size=list(size), random_size=False)
        dataset = PersistentDataset(list(items), Compose([prepared, crop]), cache_dir=folder)
        return lambda index, random: dataset[index]["image"].contiguous()

    return paths, drawer


def forget(path: Path) -> bool:
    """Drop a file from the page cache; False where the system keeps it, or does not tell."""
    # Pages that were read just now may be kept at the first time of asking.
    return any(_forgotten(path) for _ in range(20))


def _forgotten(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(handle, [bytearray(1)], path.stat().st_size // 2, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def time_draws(
    stores: Mapping[str, tuple[list[Path], Draw]], draws: int, *, cold: bool
) -> dict[str, np.ndarray] | None:
    """Seconds of each draw of each store, in turn; None where files cannot be dropped from the page cache."""
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in stores}
    volumes = len(stores[STORES[0]][0])
    for number in range(-volumes, draws):
        for name, (paths, draw) in stores.items():
            index = number % volumes
            if cold and not forget(paths[index]):
                return None
            start = time.perf_counter()
            draw(index, random)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def crops_per_second(items: Sequence[Mapping[str, Any]], cache: VolumeCache, edge: int, samples: int) -> np.ndarray:
    """Crops a second of samples as VoCo takes them: 9 base crops and 4 random ones."""
    dataset = VolumeCropDataset(items, cache, grid=(3, 3), edge=edge, crops_per_volume=4, seed=0)
    rates = []
    for number in range(-2, samples):
        start = time.perf_counter()
        sample = dataset[(number + 2, number % len(dataset))]
        if number >= 0:
            rates.append(len(sample["crops"]) / (time.perf_counter() - start))
    return np.array(rates)


def metric(samples: np.ndarray | Sequence[float], higher: bool) -> dict[str, Any]:
    """A metric of the results format; the interval is the mean's, two standard errors either way."""
    samples = np.asarray(samples)
    value, error = float(samples.mean()), 2 * float(samples.std()) / len(samples) ** 0.5
    interval = [value - error, value + error] if len(samples) > 1 else None
    return {"value": value, "n": len(samples), "interval": interval, "higher_is_better": higher}


def measure_stores(
    record: dict[str, Any], stores: Mapping[str, tuple[list[Path], Any]], windows: Sequence[Sequence[int]], draws: int
) -> None:
    """Add size and time of each store to the record."""
    megabytes = {name: sum(path.stat().st_size for path in paths) / 1e6 for name, (paths, _) in stores.items()}
    for name, value in megabytes.items():
        record["metrics"][f"{name}, MB"] = metric([value], False)
    record["metrics"]["times smaller"] = metric([megabytes[STORES[2]] / megabytes[STORES[0]]], True)
    for size in windows:
        label = "x".join(map(str, size))
        for state in ("warm", "cold"):
            drawn = {name: (paths, drawer(size)) for name, (paths, drawer) in stores.items()}
            found = time_draws(drawn, draws, cold=state == "cold")
            if found is None:
                continue
            for name, seconds in found.items():
                record["metrics"][f"{name}, {label}, {state}, ms"] = metric(1e3 * seconds, False)
            ratio = np.median(found[STORES[2]]) / np.median(found[STORES[0]])
            record["metrics"][f"times faster (medians), {label}, {state}"] = metric([float(ratio)], True)


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """One run's results record."""
    record = new_results("benchmark", "voco_data", seed=0)
    windows = [options.window] if options.window else [(64, 64, 64), (192, 192, 64)]
    preparation = VolumePreparation((options.spacing,) * 3, 1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        datalists = options.datalist or [write_volumes(folder, options.volumes, options.size, options.spacing)]
        start = time.perf_counter()
        items, cache = prepared_volumes(datalists, "training", folder / "cache", preparation)
        prepare = (time.perf_counter() - start) / len(items)
        kept = [index for index in range(len(items)) if index not in cache.rejected and index not in cache.empty]
        if len(kept) < len(items):
            raise SystemExit("the datalists hold volumes that cannot be used; take them out, so that stores are equal")
        for part in ("plain", "monai"):
            (folder / part).mkdir()
        stores = {
            STORES[0]: chunk_store(cache),
            STORES[1]: plain_store(cache, folder / "plain"),
            STORES[2]: persistent_store(items, preparation, folder / "monai"),
        }
        measure_stores(record, stores, windows, options.draws)
        for edge in options.crop:
            rates = crops_per_second(items, cache, edge, options.draws)
            record["metrics"][f"crops a second, edge {edge}, one process"] = metric(rates, True)
    record["metrics"]["preparing a volume, s"] = metric([prepare], False)
    record["settings"] = f"{len(items)} volumes, {options.draws} draws, {torch.get_num_threads()} threads"
    return record


def table(record: dict[str, Any]) -> str:
    """What is printed."""
    lines = [record["settings"]]
    for name, found in record["metrics"].items():
        low, high = found["interval"] or (found["value"],) * 2
        spread = f" +- {(high - low) / 2:.2f}" if found["interval"] else ""
        lines.append(f"{name:<48}{found['value']:>10.2f}{spread}")
    if not any("cold" in name for name in record["metrics"]):
        lines.append("cold: not measured; this system does not drop files from its page cache when asked")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=4, help="volumes that are generated")
    parser.add_argument("--size", type=int, nargs=3, default=(320, 320, 160), help="their voxels")
    parser.add_argument("--datalist", type=Path, nargs="+", default=None, help="volumes to use instead")
    parser.add_argument("--spacing", type=float, default=1.5, help="working voxel size in mm")
    parser.add_argument("--window", type=int, nargs=3, default=None, help="64 64 64 and 192 192 64 unless given")
    parser.add_argument("--crop", type=int, nargs="+", default=(24, 64), help="edges of VoCo's crops")
    parser.add_argument("--draws", type=int, default=40, help="measured draws of each kind")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary files go")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    record = benchmark(options)
    print(table(record))
    if options.out:
        write_results(options.out, record)


if __name__ == "__main__":
    main()
