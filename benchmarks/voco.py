"""Cost of volume contrast: its loss beside the formulas in loops and beside the encoder, and crops from the loader.

    python benchmarks/voco.py [--encoder segresnet_tiny] [--crop 24] [--batch 4] [--crops 2] [--device cpu] [--out FILE]

Three figures, each a ratio within this run, on one thread unless --threads says otherwise:

    loops / batched     forward and backward of the whole loss (B volumes, S random crops, 9 bases): written out crop by
                        crop and pair by pair, as the published code does, over ours; both give the same value
    loss / step         ours over the forward and backward of encoder, projectors and loss together
    loader / network    crops a second that one process draws from prepared volumes of smooth noise, over those that
                        the step takes; above 1 one worker keeps the network busy

Each time is the median of --repeats runs, taken in turn. Written as JSON in the results format ``lvmmed-results/1``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretrain_3d import metric, write_volumes
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from lvmmed_monai.losses.volume_contrast import VoCoLoss
from lvmmed_monai.methods.voco import VoCo
from lvmmed_monai.results import new_results, peak_memory_mb, write_results

_EPS = 1e-6


def looped_loss(crops: Tensor, bases: Tensor, crops_teacher: Tensor, bases_teacher: Tensor, overlap: Tensor) -> Tensor:
    """The loss of mode "fixed", crop by crop and pair by pair."""

    def similarities(crop: Tensor, of: Tensor) -> Tensor:
        return torch.stack([F.relu(F.cosine_similarity(crop, base, dim=0)) for base in of])

    def position(labels: list[Tensor], found: list[Tensor]) -> Tensor:
        label, logit = torch.stack(labels).detach(), torch.stack(found)
        above = (label * -torch.log(1 - (label - logit).abs() + _EPS)).sum() / (label.sum() + _EPS)
        zero = (label == 0).float()
        return above + (zero * -torch.log(1 - logit + _EPS)).sum() / (zero.sum() + _EPS)

    total = crops.new_zeros(())
    for b in range(len(crops)):
        j = (b + 1) % len(crops)
        total = total + position(list(overlap[b]), [similarities(crop, bases_teacher[b].detach()) for crop in crops[b]])
        taught = [similarities(crop, bases_teacher[j]) for crop in crops_teacher[b]]
        total = total + position(taught, [similarities(crop, bases[j]) for crop in crops[b]])
        pairs = [
            F.relu(F.cosine_similarity(bases[b, i], bases[b, k], dim=0)) ** 2
            for i in range(bases.shape[1])
            for k in range(i + 1, bases.shape[1])
        ]
        total = total + torch.stack(pairs).mean()
    return total / len(crops)


def median_seconds(works: list[Callable[[], Any]], repeats: int, device: torch.device) -> list[np.ndarray]:
    """Seconds of each piece of work, run in turn."""
    found = np.zeros((repeats + 1, len(works)))
    for repeat in range(repeats + 1):
        for number, work in enumerate(works):
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found[repeat, number] = time.perf_counter() - start
    return list(found[1:].T)


def ratio(above: np.ndarray, below: np.ndarray) -> dict[str, Any]:
    """A metric: the ratio of medians, its interval the quartiles of the ratios within repeats."""
    found = metric(float(np.median(above) / np.median(below)), None, True)
    low, high = np.percentile(above / below, (25, 75))
    return {**found, "n": len(above), "interval": [float(low), float(high)]}


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """One run's results record."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    form = {"encoder_name": options.encoder, "crop_size": options.crop, "crops_per_volume": options.crops}
    method = VoCo(**form, spacing_mm=2.0)
    network = method.network().to(device).train()
    with tempfile.TemporaryDirectory() as name:
        datalist = write_volumes(Path(name), max(options.batch, 4), 3 * options.crop + 16, 2.0)
        dataset = method.dataset([datalist], "training", Path(name) / "cache", 0)
        draws = iter(range(10**9))

        def load() -> dict[str, Tensor]:
            return default_collate([dataset[(next(draws), k % len(dataset))] for k in range(options.batch)])

        batch = {key: value.to(device) for key, value in load().items()}
        with torch.no_grad():
            student, teacher = network(
                batch["crops"], torch.ones_like(batch["crops"][..., 0, 0, 0, 0], dtype=torch.bool)
            )
        n = batch["base_mask"].shape[1]
        parts = [student[:, n:], student[:, :n], teacher[:, n:], teacher[:, :n]]
        batched = VoCoLoss()

        def once(loss: Callable[..., Any]) -> float:
            leaves = [part.detach().clone().requires_grad_() for part in parts]
            value = loss(*leaves, batch["overlap"])
            value = value["loss"] if isinstance(value, dict) else value
            value.backward()
            return float(value.detach())

        def step() -> None:
            network.zero_grad(set_to_none=True)
            method.step(batch, network)["loss"].backward()

        if abs(once(looped_loss) - once(batched)) > 1e-4:
            raise SystemExit("the loops and the batched loss differ")
        works: list[Callable[[], Any]] = [lambda: once(looped_loss), lambda: once(batched), step, load]
        loops, ours, whole, loader = median_seconds(works, options.repeats, device)
    record = new_results("benchmark", "voco", seed=0, device=options.device)
    record["settings"] = (
        f"{options.encoder}, crops of {options.crop}, {options.batch} volumes, {options.crops} random crops, "
        f"{torch.get_num_threads()} threads"
    )
    record["metrics"]["loops_over_batched"] = ratio(loops, ours)
    record["metrics"]["loss_over_step"] = {**ratio(ours, whole), "higher_is_better": False}
    record["metrics"]["loader_over_network"] = ratio(whole, loader)
    names = ("loops", "batched loss", "step", "drawing a batch")
    times = (loops, ours, whole, loader)
    record["timings"] = {name: float(np.median(values)) for name, values in zip(names, times, strict=True)}
    cuda = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    record["peak_memory_mb"] = cuda if cuda is not None else peak_memory_mb()
    return record


def table(record: dict[str, Any], crops: int) -> str:
    """What is printed."""
    lines = [record["settings"]]
    lines += [f"{name:<22}{1e3 * seconds:>10.2f} ms" for name, seconds in record["timings"].items()]
    for name, found in record["metrics"].items():
        low, high = found["interval"]
        lines.append(f"{name:<22}{found['value']:>10.3f}    quartiles {low:.3f} to {high:.3f}")
    lines.append(f"crops a second: loader {crops / record['timings']['drawing a batch']:.0f}, network ")
    lines[-1] += f"{crops / record['timings']['step']:.0f}; peak memory {record['peak_memory_mb']:.0f} MB"
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="segresnet_tiny", help="3D encoder")
    parser.add_argument("--crop", type=int, default=24, help="edge of a crop in voxels")
    parser.add_argument("--batch", type=int, default=4, help="volumes a step")
    parser.add_argument("--crops", type=int, default=2, help="random crops a volume")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = benchmark(options)
    print(table(record, options.batch * (9 + options.crops)))
    if options.out:
        write_results(options.out, record)


if __name__ == "__main__":
    main()
