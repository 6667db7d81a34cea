"""Speed of 3D pre-training: volumes a second, and the share of each stage, on generated volumes.

    python benchmarks/pretrain_3d.py [--encoder segresnet_tiny] [--crop 24] [--batch 4] [--device cpu] [--out FILE]

Volumes of smooth noise are written to a temporary folder, prepared once by the cache (timed apart) and read in this
process without workers, so that the shares add up: with workers the reading overlaps the rest. After a few steps to
warm up each stage of each step is timed by the wall clock, with the device's queue emptied in between; the table shows
means and the standard deviation over steps. Written as JSON in the results format ``lvmmed-results/1``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.methods.voco import VoCo
from lvmmed_monai.results import new_results, peak_memory_mb, write_results

STAGES = ("read and augment", "to device", "forward", "backward", "optimiser", "teacher")
_WARM_UP = 3


def write_volumes(folder: Path, count: int, side: int, spacing_mm: float) -> Path:
    """``count`` cubes of smooth noise in HU, and their datalist."""
    items = []
    for number in range(count):
        noise = gaussian_filter(np.random.default_rng(number).standard_normal((side, side, side)), 2)
        values = (200 * noise / noise.std()).clip(-400, 390).astype(np.int16)
        name = f"{number:03d}.nii.gz"
        nib.save(nib.Nifti1Image(values, np.diag([spacing_mm] * 3 + [1.0])), folder / name)
        items.append({"image": name, "subject": f"s{number:03d}"})
    content = {"format": "lvmmed-datalist/1", "name": "benchmark", "task": "unlabelled", "modality": "CT"}
    sections = {"labels": {}, "flip_safe": True, "training": items, "validation": [], "test": []}
    write_datalist(folder / "datalist.json", {**content, **sections})
    return folder / "datalist.json"


def _read(dataset: Any, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([dataset[key] for key in keys])


def _move(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {key: value.to(device) for key, value in batch.items()}


def time_steps(method: VoCo, dataset: Any, batch: int, steps: int, device: torch.device) -> np.ndarray:
    """Seconds of each stage of each step, (steps, stages)."""
    network = method.network().to(device).train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    found = np.zeros((steps + _WARM_UP, len(STAGES)))

    def timed(step: int, stage: int, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found[step, stage] = time.perf_counter() - start
        return result

    for step in range(len(found)):
        keys = [(step * batch + k, (step * batch + k) % len(dataset)) for k in range(batch)]
        loaded = timed(step, 0, partial(_read, dataset, keys))
        data = timed(step, 1, partial(_move, loaded, device))
        terms = timed(step, 2, partial(method.step, data, network))
        optimizer.zero_grad(set_to_none=True)
        timed(step, 3, terms["loss"].backward)
        timed(step, 4, optimizer.step)
        timed(step, 5, partial(method.after_step, network))
    return found[_WARM_UP:]


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """One run's results record."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    method = VoCo(encoder_name=options.encoder, crop_size=options.crop, spacing_mm=2.0)
    with tempfile.TemporaryDirectory() as name:
        datalist = write_volumes(Path(name), max(options.batch, 4), 3 * options.crop + 16, 2.0)
        start = time.perf_counter()
        dataset = method.dataset([datalist], "training", Path(name) / "cache", 0)
        prepare = (time.perf_counter() - start) / len(dataset)
        seconds = time_steps(method, dataset, options.batch, options.steps, device)
    rate = options.batch / seconds.sum(1)
    record = new_results("benchmark", "pretrain_3d", seed=0, device=options.device)
    settings = f"{options.encoder}, crops of {options.crop}, batch {options.batch}, {torch.get_num_threads()} threads"
    record["settings"] = settings
    record["metrics"]["volumes_per_second"] = metric(float(rate.mean()), rate, True)
    record["metrics"]["prepare_seconds_per_volume"] = metric(prepare, None, False)
    record["timings"] = {stage: float(seconds[:, index].mean()) for index, stage in enumerate(STAGES)}
    record["timings_std"] = {stage: float(seconds[:, index].std()) for index, stage in enumerate(STAGES)}
    cuda = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    record["peak_memory_mb"] = cuda if cuda is not None else peak_memory_mb()
    return record


def metric(value: float, samples: np.ndarray | None, higher: bool) -> dict[str, Any]:
    """A metric of the results format; the interval is the mean's, two standard errors either way."""
    if samples is None:
        return {"value": value, "n": 1, "interval": None, "higher_is_better": higher}
    error = 2 * float(samples.std()) / max(1, len(samples)) ** 0.5
    return {"value": value, "n": len(samples), "interval": [value - error, value + error], "higher_is_better": higher}


def table(record: dict[str, Any]) -> str:
    """What is printed."""
    total = sum(record["timings"].values())
    lines = [record["settings"], f"{'stage':<20}{'ms':>9}{'std':>9}{'share':>9}"]
    for stage, seconds in record["timings"].items():
        spread = record["timings_std"][stage]
        lines.append(f"{stage:<20}{1e3 * seconds:>9.1f}{1e3 * spread:>9.1f}{seconds / total:>9.1%}")
    lines.append(f"{'step':<20}{1e3 * total:>9.1f}")
    rate = record["metrics"]["volumes_per_second"]["value"]
    prepare = record["metrics"]["prepare_seconds_per_volume"]["value"]
    lines.append(f"{rate:.1f} volumes a second; preparing a volume once: {prepare:.2f} s")
    lines.append(f"peak memory {record['peak_memory_mb']:.0f} MB")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="segresnet_tiny", help="3D encoder")
    parser.add_argument("--crop", type=int, default=24, help="edge of a crop in voxels")
    parser.add_argument("--batch", type=int, default=4, help="volumes a step")
    parser.add_argument("--steps", type=int, default=30, help="measured steps, after a few for warming up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    record = benchmark(options)
    print(table(record))
    if options.out:
        write_results(options.out, record)


if __name__ == "__main__":
    main()
