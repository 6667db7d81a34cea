"""Speed of 2D pre-training: images per second and the share of each stage of a step.

A step draws two views of each image, encodes both, matches them (forward, and backward to the features) and goes
backward through the encoder. Pictures are random and lie in memory, so reading and decoding are left out; the views are
made in the measuring process, without workers.

Example:
    python benchmarks/pretrain_2d.py --encoders resnet18 resnet50 --sizes 64 224 --batch-size 64 --steps 10
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.methods._pictures import ViewPairs
from lvmmed_monai.methods.lvm_med import LVMMed
from lvmmed_monai.results import new_results, peak_memory_mb, write_results
from lvmmed_monai.transforms.views_2d import ViewSettings, location_grids

STAGES = ("views", "encoder", "matching", "backward")


class RandomPictures:
    """Stands in for a slice cache: coloured pictures of random pixels."""

    def __init__(self, count: int, side: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pictures = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        return self.pictures[index]

    def item(self, index: int) -> dict[str, Any]:
        return {"subject": str(index), "flip_safe": True}


def stages_of_step(
    method: LVMMed, batches: Iterator[dict[str, Tensor]], optimizer: torch.optim.Optimizer, device: torch.device
) -> list[float]:
    """One step; seconds of each of `STAGES`."""
    network = method.network()
    marks = [time.perf_counter()]

    def mark() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    batch = {key: value.to(device) for key, value in next(batches).items()}
    mark()
    levels = network.encoder(torch.cat([batch["view1"], batch["view2"]]))
    found = [network.projector(levels[-1].mean(dim=(2, 3))), network.chosen_map(levels)]
    mark()
    optimizer.zero_grad(set_to_none=True)
    z, maps = (one.detach().requires_grad_() for one in found)
    (z1, z2), (map1, map2) = z.chunk(2), maps.chunk(2)
    grids = [location_grids(batch[f"location{number}"], *maps.shape[2:]) for number in (1, 2)]
    network.loss(z1, z2, (map1, map2), (grids[0], grids[1]))["loss"].backward()
    mark()
    used = [(one, leaf.grad) for one, leaf in zip(found, (z, maps), strict=True) if leaf.grad is not None]
    torch.autograd.backward(*zip(*used, strict=True))
    optimizer.step()
    mark()
    return [after - before for before, after in pairwise(marks)]


def measure(encoder: str, size: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Images per second and the stages' shares of one setting, medians over the steps after the first two."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    method = LVMMed(
        encoder_name=encoder,
        encoder_options={"width": arguments.width},
        preset=arguments.preset,
        views={"size": size},
    )
    network = method.network().to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    pictures: Any = RandomPictures(2 * arguments.batch_size, arguments.picture_side)
    dataset = ViewPairs(pictures, ViewSettings(size=size), in_channels=3, seed=0)
    sampler = StepBatchSampler(len(dataset), arguments.batch_size, arguments.steps + 2, seed=0)
    batches = iter(DataLoader(dataset, batch_sampler=sampler))
    steps = torch.tensor([stages_of_step(method, batches, optimizer, device) for _ in range(arguments.steps + 2)])[2:]
    seconds = steps.median(dim=0).values
    total = float(seconds.sum())
    shares = {f"{stage}_share": float(value) / total for stage, value in zip(STAGES, seconds, strict=True)}
    return {"images_per_second": arguments.batch_size / total, **shares}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as aligned text."""
    lines = [f"{'encoder, size':<18}{'images/s':>10}" + "".join(f"{stage:>11}" for stage in STAGES)]
    for name, row in rows.items():
        shares = "".join(f"{row[f'{stage}_share']:>11.1%}" for stage in STAGES)
        lines.append(f"{name:<18}{row['images_per_second']:>10.1f}{shares}")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    formatter: Callable[..., Any] = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--encoders", nargs="+", default=["resnet18", "resnet50"], help="2D encoders")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 224], help="sides of the views in pixels")
    parser.add_argument("--width", type=int, default=64, help="width of the ResNets")
    parser.add_argument(
        "--preset", choices=["recommended", "paper", "draft"], default="recommended", help="preset of the loss"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images a step; whole graphs of the preset")
    parser.add_argument("--picture-side", type=int, default=256, help="side of the source pictures in pixels")
    parser.add_argument("--steps", type=int, default=3, help="measured steps, after two for warming up")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every setting, print the table, write the results file if asked to."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING)
    results = new_results("benchmark", "pretrain_2d", seed=0, device=arguments.device)
    results["environment"]["threads"] = torch.get_num_threads()
    rows: dict[str, dict[str, float]] = {}
    for encoder in arguments.encoders:
        for size in arguments.sizes:
            start = time.perf_counter()
            row = rows[f"{encoder}, {size}"] = measure(encoder, size, arguments)
            results["timings"][f"{encoder}_{size}"] = time.perf_counter() - start
            for name, value in row.items():
                metric = {"value": value, "n": arguments.steps, "interval": None}
                higher = name == "images_per_second"
                results["metrics"][f"{encoder}_{size}_{name}"] = {**metric, "higher_is_better": higher}
    results["peak_memory_mb"] = peak_memory_mb()
    print(table(rows))
    print(f"{torch.get_num_threads()} threads, batch {arguments.batch_size}")
    if arguments.out:
        write_results(arguments.out, results)


if __name__ == "__main__":
    main()
