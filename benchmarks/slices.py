"""Speed of 2D data: slices from a warm cache against `LoadImaged` on .nii.gz, and view pairs a second and core.

Generated volumes (smooth, with noise, so that they compress as CT does) and coloured pictures are written to a
temporary folder and cached. Then are measured, on one thread and in seconds of processor time, so that other programs
on the machine do not count (all files are in memory by then):

    reading   slices from the cache, in random order, against three ways with `LoadImaged`: a random slice of a volume,
              which reads the volume; all slices of a volume, per slice; and slices that are files of their own
    views     pairs of views, with their locations, of grey slices and of coloured pictures

Example:
    python benchmarks/slices.py --out slices.json
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import LoadImaged
from PIL import Image
from scipy.ndimage import gaussian_filter

from lvmmed_monai.files import write_json
from lvmmed_monai.methods._pictures import ViewPairs, view_pairs
from lvmmed_monai.results import new_results, peak_memory_mb, write_results
from lvmmed_monai.transforms.views_2d import ViewSettings

TARGETS = {"view pairs/s": 100.0, "times LoadImaged": 5.0}


def write_data(folder: Path, side: int, slices: int, volumes: int) -> dict[str, Path]:
    """Volumes of CT and coloured pictures; gives their datalists."""
    rng = np.random.default_rng(0)
    items: dict[str, list[dict[str, str]]] = {"CT": [], "COLOR": []}
    for number in range(volumes):
        body = gaussian_filter(rng.normal(size=(side, side, slices)), (side / 16, side / 16, 2))
        volume = 300 * body / body.std() + rng.normal(0, 15, body.shape) - 100
        image = nib.Nifti1Image(np.clip(volume, -1024, 2000).astype(np.int16), np.diag([0.8, 0.8, 2.0, 1.0]))
        nib.save(image, folder / f"{number}.nii.gz")
        items["CT"].append({"image": f"{number}.nii.gz", "subject": str(number)})
    for number in range(slices):
        picture = gaussian_filter(rng.normal(size=(side, side, 3)), (4, 4, 0))
        Image.fromarray(np.clip(128 + 60 * picture / picture.std(), 0, 255).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
        items["COLOR"].append({"image": f"{number}.png", "subject": str(number)})
    lists = {}
    for modality, members in items.items():
        content = {"format": "lvmmed-datalist/1", "name": modality, "task": "unlabelled", "modality": modality}
        lists[modality] = folder / f"{modality}.json"
        write_json(lists[modality], {**content, "flip_safe": True, "training": members, "validation": [], "test": []})
    return lists


def rate(act: Callable[[int], Any], seconds: float) -> float:
    """Calls of ``act`` with 0, 1, ... a second of processor time, after two that are not counted."""
    for number in range(2):
        act(number)
    start, number = time.process_time(), 0
    while (passed := time.process_time() - start) < seconds or number < 3:
        act(number + 2)
        number += 1
    return number / passed


def reading(dataset: ViewPairs, folder: Path, seconds: float) -> dict[str, float]:
    """Slices a second: from the cache, and in three ways with `LoadImaged`."""
    volumes = [item["image"] for item in {item["image"]: item for item in dataset.data}.values()]
    slices = nib.load(volumes[0]).shape[2]
    for number in range(slices):
        nib.save(nib.load(volumes[0]).slicer[:, :, number : number + 1], folder / f"slice{number}.nii.gz")
    order = np.random.default_rng(1).integers(0, len(dataset), 1 << 20).tolist()
    load = LoadImaged("image")
    of_volume = rate(lambda n: load({"image": volumes[n % len(volumes)]})["image"][:, :, n % slices], seconds)
    of_file = rate(lambda n: load({"image": folder / f"slice{n % slices}.nii.gz"})["image"], seconds)
    return {
        "cache": rate(lambda n: dataset.cache[order[n % len(order)]], seconds),
        "LoadImaged, random slice of a volume": of_volume,
        "LoadImaged, all slices of a volume": of_volume * slices,
        "LoadImaged, a file for each slice": of_file,
    }


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """All rates, by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lists = write_data(folder, arguments.side, arguments.slices, arguments.volumes)
        data = {}
        for modality, path in lists.items():
            options: dict[str, Any] = {"planes": ["axial"], "cache_size": arguments.cache_size, "in_channels": 3}
            views = ViewSettings(size=arguments.size)
            data[modality] = view_pairs([path], "training", folder / "cache", views=views, seed=0, **options)
        found = {f"slices/s: {how}": value for how, value in reading(data["CT"], folder, arguments.seconds).items()}
        fastest = max(value for how, value in found.items() if "LoadImaged" in how)
        found["times LoadImaged, its fastest way"] = found["slices/s: cache"] / fastest
        for modality, kind in (("CT", "grey slices"), ("COLOR", "coloured pictures")):
            pairs = data[modality]
            found[f"view pairs/s: {kind}"] = rate(lambda n, p=pairs: p[(n, n % len(p))], arguments.seconds)  # type: ignore[misc]
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    formatter: Callable[..., Any] = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--side", type=int, default=512, help="rows and columns of a slice in pixels")
    parser.add_argument("--slices", type=int, default=40, help="slices of a volume, and number of coloured pictures")
    parser.add_argument("--volumes", type=int, default=3, help="number of volumes")
    parser.add_argument("--cache-size", type=int, default=256, help="side of the cached pictures in pixels")
    parser.add_argument("--size", type=int, default=224, help="side of the views in pixels")
    parser.add_argument("--seconds", type=float, default=5.0, help="time of each measurement")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the results file if asked to."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    results = new_results("benchmark", "slices", seed=0)
    start = time.perf_counter()
    found = measure(arguments)
    results["timings"]["all"] = time.perf_counter() - start
    for name, value in found.items():
        target = next((least for key, least in TARGETS.items() if name.startswith(key)), None)
        met = "" if target is None else f"   at least {target:.0f}: {'yes' if value >= target else 'NO'}"
        print(f"{name:<48}{value:>10.1f}{met}")
        results["metrics"][name] = {"value": value, "n": 1, "interval": None, "higher_is_better": True}
    results["peak_memory_mb"] = peak_memory_mb()
    print(
        f"one thread; slices of {arguments.side} px, cached at {arguments.cache_size} px, views of {arguments.size} px"
    )
    if arguments.out:
        write_results(arguments.out, results)


if __name__ == "__main__":
    main()
