"""2D pre-training: time and memory of a step, shares of its stages, and whether the loader keeps up.

    python benchmarks/pretrain.py [--quick] [--encoders NAME ...] [--sizes PIXELS ...] [--device cuda --amp]

A step draws two views of each picture (data), encodes both (encoder), matches them (matching), goes backward through
both and updates the weights. Pictures of smooth noise are written as files and read from a warm slice cache, in the
measuring process and without workers, so that the stages add up; the solver's time is part of matching and, for second
solves, of backward. Medians over steps. Each setting runs in a process of its own, whose peak memory is reported: on a
CPU all that the process ever held, libraries included, on a GPU what tensors held there.

The loader is then measured alone with ``--workers`` processes (0: in this one) against the need: the pairs a second
that the network would take if data cost nothing.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import DataLoader

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.graph_matching import imle, solver
from lvmmed_monai.methods.lvm_med import LVMMed
from lvmmed_monai.results import new_results, peak_memory_mb, write_results

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("resnet50", {}),
    "sam_vit_b": ("sam_vit_b", {"use_checkpoint": True}),
    "resnet18_w16": ("resnet18", {"width": 16}),
    "sam_small": ("sam_vit_b", {"width": 192, "depth": 4, "heads": 3, "global_blocks": [0, 1, 2, 3]}),
}
QUICK = {"encoders": ["resnet18_w16", "sam_small"], "sizes": [32, 64, 96], "batch_size": 16, "steps": 3}
FULL = {"encoders": ["resnet50", "sam_vit_b"], "sizes": [96, 160, 224], "batch_size": 32, "steps": 5}
STAGES = ("data", "encoder", "matching", "backward", "optimiser")


def write_pictures(folder: Path, count: int, side: int) -> Path:
    """``count`` coloured pictures of smooth noise, and their datalist."""
    items = []
    for number in range(count):
        noise = gaussian_filter(np.random.default_rng(number).standard_normal((side, side, 3)), (4, 4, 0))
        name = f"{number:04d}.png"
        Image.fromarray((128 + 40 * noise / noise.std()).clip(0, 255).astype(np.uint8)).save(folder / name)
        items.append({"image": name, "subject": f"s{number:04d}"})
    content = {"format": "lvmmed-datalist/1", "name": "benchmark", "task": "unlabelled", "modality": "COLOR"}
    sections = {"labels": {}, "flip_safe": True, "training": items, "validation": [], "test": []}
    write_datalist(folder / "datalist.json", {**content, **sections})
    return folder / "datalist.json"


class Clock:
    """Seconds since the last look, the device's queue emptied."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.last = self.last, self._now()
        return self.last - before


@contextmanager
def solver_seconds(device: torch.device) -> Iterator[list[float]]:
    """Seconds of each call of the solver within."""
    found: list[float] = []
    plain = solver.solve_tables

    def timed(*args: Any, **kwargs: Any) -> Tensor:
        clock = Clock(device)
        result = plain(*args, **kwargs)
        found.append(clock.lap())
        return result

    solver.solve_tables = imle.solve_tables = timed
    try:
        yield found
    finally:
        solver.solve_tables = imle.solve_tables = plain


def timed_step(
    network: Any, batches: Iterator[dict[str, Tensor]], optimizer: torch.optim.Optimizer, options: argparse.Namespace
) -> list[float]:
    """One step; seconds of each of `STAGES`, and of the solver."""
    device = torch.device(options.device)
    clock, found = Clock(device), []
    batch = {key: value.to(device) for key, value in next(batches).items()}
    found.append(clock.lap())
    encoder_seconds = [0.0]

    def encoded(*_: Any) -> None:
        encoder_seconds.append(clock.lap())

    hook = network.encoder.register_forward_hook(encoded)
    with solver_seconds(device) as solving:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.amp):
            places = batch["location1"], batch["location2"]
            loss = network(batch["view1"], batch["view2"], *places)["loss"]
        hook.remove()
        found += [sum(encoder_seconds), clock.lap()]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        found.append(clock.lap())
    optimizer.step()
    return [*found, clock.lap(), sum(solving)]


def loader_rate(loader: DataLoader, batch_size: int) -> float:
    """View pairs a second, after a first batch that starts the workers."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * batch_size / (time.perf_counter() - start)


def measure(encoder: str, size: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """All figures of one setting."""
    torch.manual_seed(0)
    name, encoder_options = ENCODERS[encoder]
    method = LVMMed(encoder_name=name, encoder_options=encoder_options, preset=options.preset, views={"size": size})
    network = method.network().to(options.device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    dataset = method.dataset([folder / "datalist.json"], "training", folder / "cache", 0)
    steps = options.steps + options.warm_up

    def loader(workers: int) -> DataLoader:
        sampler = StepBatchSampler(len(dataset), options.batch_size, steps, seed=0)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=workers)

    batches = iter(loader(0))
    laps = torch.tensor([timed_step(network, batches, optimizer, options) for _ in range(steps)])[options.warm_up :]
    *stages, solving = laps.double().median(dim=0).values.tolist()
    cuda = options.device != "cpu"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_memory_mb()
    total = sum(stages)
    need, rate = options.batch_size / (total - stages[0]), loader_rate(loader(options.workers), options.batch_size)
    return {
        "step_seconds": total,
        "pairs_per_second": options.batch_size / total,
        **{f"{stage}_share": seconds / total for stage, seconds in zip(STAGES, stages, strict=True)},
        "solver_share": solving / total,
        "peak_memory_mb": peak,
        "loader_pairs_per_second": rate,
        "needed_pairs_per_second": need,
    }


def table(rows: dict[tuple[str, int], dict[str, float]], workers: int) -> str:
    """The rows as aligned text."""
    shares = (*STAGES, "solver")
    header = f"{'encoder, pixels':<20}{'step ms':>9}{'pairs/s':>9}" + "".join(f"{one:>11}" for one in shares)
    lines = [header + f"{'peak MB':>10}{'loader/s':>10}{'need/s':>9}{'workers':>9}"]
    for (encoder, size), row in rows.items():
        parts = "".join(f"{row[f'{one}_share']:>11.1%}" for one in shares)
        rate, need = row["loader_pairs_per_second"], row["needed_pairs_per_second"]
        lines.append(
            f"{f'{encoder}, {size}':<20}{1e3 * row['step_seconds']:>9.0f}{row['pairs_per_second']:>9.1f}{parts}"
            f"{row['peak_memory_mb']:>10.0f}{rate:>10.0f}{need:>9.1f}{math.ceil(need * max(1, workers) / rate):>9}"
        )
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    formatter: Callable[..., Any] = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--quick", action="store_true", help="small encoders and views: a minute on a CPU")
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), help="default: resnet50 sam_vit_b")
    parser.add_argument("--sizes", nargs="+", type=int, help="sides of the views in pixels; default: 96 160 224")
    parser.add_argument("--batch-size", type=int, help="pictures a step; default: 32")
    parser.add_argument("--steps", type=int, help="measured steps; default: 5")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--workers", type=int, default=0, help="of the loader when it is measured alone")
    parser.add_argument(
        "--preset", choices=["recommended", "paper", "draft"], default="recommended", help="of the loss"
    )
    parser.add_argument("--picture-side", type=int, default=256, help="of the source pictures in pixels")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(argv)
    for key, value in (QUICK if options.quick else FULL).items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    return options


def main(argv: list[str] | None = None) -> None:
    """Measure every setting, print the table, write the results file if asked to."""
    options = parse(argv)
    results = new_results("benchmark", "pretrain", seed=0, device=options.device)
    results["environment"]["threads"] = torch.get_num_threads()
    rows: dict[tuple[str, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        write_pictures(Path(name), 2 * options.batch_size, options.picture_side)
        for encoder in options.encoders:
            for size in options.sizes:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
                    rows[encoder, size] = alone.submit(measure, encoder, size, options, Path(name)).result()
    for (encoder, size), row in rows.items():
        results["timings"][f"{encoder}_{size}_step"] = row["step_seconds"]
        for figure, value in row.items():
            higher = figure.endswith("pairs_per_second")
            metric = {"value": value, "n": options.steps, "interval": None, "higher_is_better": higher}
            results["metrics"][f"{encoder}_{size}_{figure}"] = metric
    results["peak_memory_mb"] = max(row["peak_memory_mb"] for row in rows.values())
    print(table(rows, options.workers))
    print(f"{options.device}, {torch.get_num_threads()} threads, batch {options.batch_size}, preset {options.preset}")
    if options.out:
        write_results(options.out, results)


if __name__ == "__main__":
    main()
