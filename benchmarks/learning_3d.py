"""What 3D encoders learn of position by volume contrast, in many settings, on volumes that are held out.

Each run is a `Pretrainer` as in the bundle `voco_pretrain`: AdamW with warm-up and cosine, on one thread. Held out are
the validation sections of the datalists and the images named by --held-out-images; --leave-out takes images out of the
study altogether. Reported are, on the same 128 blocks x 8 random crops,

    loss         intra loss in the form "v2" (the best constant answer scores about .50)
    corr         correlation of similarity and overlap
    acc          how often the most similar base is the one that the crop lies in most (always the middle: .25)

for crops as they are (clean) and for crops each augmented on its own (aug). Overlapping clean crops share voxels, so a
histogram of grey values solves much of the task; judge by the augmented ones, beside the histogram, the untrained
encoder and the best constant answer. In training and in the last columns bases of air are left out and labels shared
out among the others; the first columns count all bases, as the published code does: where a block is wider than the
body the two differ much. Settings are chosen on held-out images of their own (--held-out-images A B
--leave-out C D) before C and D are looked at. CPU is the process's time in training alone.

Several processes with the same command and folder share the work; a run that is done is not repeated.

Example, the runs of docs/voco.md (CT: 7 volumes to learn from; the chest crop and STS_002, a thigh, held out):
    lvmmed ingest --manifest data_manifests/ct/ct_volumes_nifti.json --root DATA/ct_volumes_nifti --out ct
    lvmmed ingest --manifest data_manifests/ct/totalsegmentator_example.json \\
        --root DATA/totalsegmentator_example --out example
    lvmmed ingest --manifest data_manifests/ct/sts_ct_mr_nifti.json --root DATA/sts_ct_mr_nifti --out sts2
    lvmmed ingest DATA/sts_dicom_rtstruct/STS_001.zip --modality CT --out sts1
    lvmmed ingest DATA/crlm_ct_dicom/CRLM-CT-1004.zip --modality CT --out crlm
    lvmmed ingest --manifest data_manifests/mri/msd_hippocampus.json --root DATA/msd_hippocampus --out hippocampus
    python benchmarks/learning_3d.py --lists ct/datalist_ct.json ct/datalist_other.json example/datalist_ct.json \\
        crlm/datalist.json sts1/datalist.json sts2/datalist_ct.json --held-out-images ibsi_pat1_chest_crop \\
        --leave-out phantom_head_philips --settings "no dropout, rate 15e-4" --batch 2 --steps 800 --folder learning_ct
    python benchmarks/learning_3d.py --lists hippocampus/datalist.json --settings "no dropout, rate 15e-4" \\
        --crop 12 --spacing 1 --batch 3 --steps 1000 --folder learning_hippocampus
with the defaults, --settings fixed, CT has --batch 4 --steps 800 and hippocampus --batch 6 --steps 1100 there.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _runs import commits, keep
from learning_3d_settings import SETTINGS, Setting
from matplotlib.figure import Figure
from monai.data import DataLoader

from lvmmed_monai.cli.run import parse_overrides
from lvmmed_monai.data.datalist import read_datalist, write_datalist
from lvmmed_monai.data.images import image_stem
from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.engines import Pretrainer, warmup_cosine
from lvmmed_monai.files import read_json
from lvmmed_monai.losses import position_loss
from lvmmed_monai.results import new_results, peak_memory_mb, write_results

SCORES = {"loss": "loss", "corr": "correlation", "acc": "argmax_accuracy"}
VIEWS = ("clean", "aug")
BLOCKS = 128


def divided(options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Datalists to learn from and datalists held out, written into the folder of the study."""
    parts: tuple[list[Path], list[Path]] = [], []
    for number, path in enumerate(options.lists):
        content = read_datalist(path)
        items = {section: content.get(section, []) for section in ("training", "validation")}
        named = [item for item in items["training"] if image_stem(item["image"]) in options.held_out_images]
        learnt = [item for item in items["training"] if item not in named][: options.volumes]
        held = [*items["validation"], *named] if not options.only_named else named
        for name, chosen, found in (("learnt", learnt, parts[0]), ("held", held, parts[1])):
            kept = [item for item in chosen if image_stem(item["image"]) not in options.leave_out]
            where = Path(path).parent.resolve()
            kept = [{**item, "image": str(where / item["image"])} for item in kept]
            if kept:
                list_path = options.folder / f"{name}-{number}.json"
                empty = {section: [] for section in ("training", "validation", "test")}
                about = {**content, "task": "unlabelled", "labels": {}}
                write_datalist(list_path, {**about, **empty, "training": [_unlabelled(item) for item in kept]})
                found.append(list_path)
    return parts


def _unlabelled(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "label"}


def learn(setting: Setting, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Curves, monitors and CPU seconds of one run."""
    torch.manual_seed(seed)
    encoder = {"encoder_name": options.encoder, "encoder_options": parse_overrides(options.encoder_options)}
    form = {"crop_size": options.crop, "spacing_mm": options.spacing, **encoder}
    method = setting.method(**form, monitor_blocks=BLOCKS)
    learnt, held = divided(options)
    cache = options.folder / "cache"
    dataset = method.dataset(learnt, "training", cache, seed)
    masked = method.dataset(held, "training", cache, seed)
    sampler = StepBatchSampler(len(dataset), options.batch, options.steps, seed)
    weights = [weight for weight in method.network().parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=setting.rate, weight_decay=0.01)
    monitoring = [0.0]
    method.monitors = partial(_timed, method.monitors, monitoring)  # type: ignore[method-assign]
    trainer = Pretrainer(
        method,
        DataLoader(dataset, batch_sampler=sampler),
        1,
        optimizer,
        epoch_length=options.steps,
        lr_scheduler=warmup_cosine(optimizer, 20, options.steps),
        clip_norm=5.0,
        seed=seed,
        held_out=EveryBase(masked),
        monitor_interval=max(1, options.steps // options.points),
    )
    start = time.process_time()
    trainer.run()
    seconds = time.process_time() - start - monitoring[0]
    return {
        "curves": trainer.history["curves"],
        "monitors": trainer.history["monitors"],
        "masked": method.monitors(masked),
        "cpu_seconds": seconds,
        "constant": constant_scores(masked),
    }


class EveryBase:
    """Samples of a `VolumeCropDataset` in which bases of air count, too."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, random: np.random.Generator, index: int, **options: Any) -> dict[str, torch.Tensor]:
        sample = self.dataset.sample(random, index, **options)
        return {**sample, "base_mask": torch.ones_like(sample["base_mask"])}


def _timed(monitors: Callable[[Any], dict[str, float]], seconds: list[float], dataset: Any) -> dict[str, float]:
    start = time.process_time()
    values = monitors(dataset)
    seconds[0] += time.process_time() - start
    return values


def constant_scores(dataset: Any) -> dict[str, float]:
    """Scores of the best answer that does not look at the crop, fitted on the very labels that it is scored on."""
    drawn = [dataset.sample(np.random.default_rng([7, block]), block % len(dataset)) for block in range(BLOCKS)]
    target = torch.cat([sample["overlap"] for sample in drawn]).unsqueeze(1)
    answer = torch.full((target.shape[-1],), -1.5, requires_grad=True)
    optimizer = torch.optim.LBFGS([answer], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = position_loss(target, answer.sigmoid().expand_as(target))
        value.backward()
        return value

    optimizer.step(closure)
    given = answer.detach().sigmoid().expand_as(target)
    correlation = torch.corrcoef(torch.stack((target.flatten(), given.flatten())))[0, 1]
    right = target.amax(-1) - target[..., int(answer.argmax())] < 1e-6
    return {
        "loss": float(position_loss(target, given)),
        "corr": float(correlation),
        "acc": float(right.float().mean()),
    }


# -- what is printed --------------------------------------------------------------------------------------------------


def cells(rows: list[dict[str, float]], prefix: str = "", suffix: str = "") -> list[str]:
    """Three scores a view, each the mean over seeds and its range."""
    found = []
    for view in VIEWS:
        texts = []
        for name in SCORES.values():
            values = [row[f"{prefix}{name}_{view}{suffix}"] for row in rows]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
            texts.append(f"{np.mean(values):.3f}{spread}")
        found.append(" / ".join(texts))
    return found


def table(options: argparse.Namespace, results: dict[str, Any]) -> str:
    """The settings beside what needs no learning."""
    views = [f"{view}{kind}: loss / corr / acc" for kind in ("", ", air left out") for view in VIEWS]
    head = ["", *views, "train intra", "CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    everything = {name: runs_of(options, name) for name in options.settings}
    first = next((runs for runs in everything.values() if runs), [])
    if first:
        untrained = [run["monitors"][0][1] for run in first]
        constant = " / ".join(f"{first[0]['constant'][name]:.3f}" for name in SCORES)
        histogram = [*cells(untrained[:1], "histogram_"), *cells([first[0]["masked"]], "histogram_")]
        lines.append(f"| best constant | {constant} | {constant} | | | | |")
        lines.append("| " + " | ".join(["grey histogram", *histogram, "", ""]) + " |")
        features = cells(untrained, suffix="_features")
        lines.append("| " + " | ".join(["untrained encoder", *features, "", "", "", ""]) + " |")
    for name, runs in everything.items():
        if not runs:
            continue
        last = [run["monitors"][-1][1] for run in runs]
        train = np.mean([_last_mean(run["curves"]["intra"]) for run in runs])
        seconds = np.mean([run["cpu_seconds"] for run in runs])
        both = [*cells(last), *cells([run["masked"] for run in runs])]
        lines.append("| " + " | ".join([name, *both, f"{train:.3f}", f"{seconds:.0f}"]) + " |")
        for key in (f"{score}_{view}" for score in SCORES.values() for view in VIEWS):
            values = [row[key] for row in last]
            results["metrics"][f"{name}/{key}"] = {
                "value": float(np.mean(values)),
                "n": len(values),
                "interval": [min(values), max(values)] if len(values) > 1 else None,
                "higher_is_better": "loss" not in key,
            }
    every = [result_path(options, name, seed) for name in options.settings for seed in options.seeds]
    return "\n".join([*lines, commits(every)])


def _last_mean(points: list[list[float]]) -> float:
    return float(np.mean([value for _, value in points[-max(1, len(points) // 20) :]]))


def draw_curves(options: argparse.Namespace) -> None:
    """Held-out loss of every run over its steps, with the histogram's, into curves.png."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, view in zip(axes, VIEWS, strict=True):
        for color, name in enumerate(options.settings):
            for number, run in enumerate(runs_of(options, name)):
                steps = [step for step, _ in run["monitors"]][1:]
                losses = [values[f"loss_{view}"] for _, values in run["monitors"]][1:]
                axis.plot(steps, losses, color=f"C{color}", label=name if number == 0 else None)
                if color == number == 0:
                    level = run["monitors"][0][1][f"histogram_loss_{view}"]
                    axis.axhline(level, color="black", linestyle="--", linewidth=1, label="grey histogram")
        axis.set(title=f"held-out crops, {view}", xlabel="step", ylabel="intra loss" if view == "clean" else None)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    figure.savefig(options.folder / "curves.png", dpi=110)


# -- command line -----------------------------------------------------------------------------------------------------


def result_path(options: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a run's figures are kept."""
    words = [name, " ".join([options.encoder, *options.encoder_options]), str(options.steps), str(seed)]
    stems = ["".join(letter if letter.isalnum() else "_" for letter in word) for word in words]
    return Path(options.folder / f"{'-'.join(stems)}.json")


def runs_of(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """The finished runs of a setting."""
    paths = [result_path(options, name, seed) for seed in options.seeds]
    return [read_json(path, "result") for path in paths if path.exists()]


def run_all(options: argparse.Namespace) -> None:
    """Run what no other process has begun."""
    for seed in options.seeds:
        for name in options.settings:
            path = result_path(options, name, seed)
            try:
                os.close(os.open(path.with_suffix(".begun"), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            found = learn(SETTINGS[name], seed, options)
            keep(path, found)
            last = found["monitors"][-1][1]
            print(f"{name}, seed {seed}: {', '.join(cells([last]))}, {found['cpu_seconds']:.0f} s", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", nargs="+", required=True, help="datalists of volumes")
    parser.add_argument("--held-out-images", nargs="*", default=[], metavar="NAME", help="images not to learn from")
    parser.add_argument("--only-named", action="store_true", help="hold out the named images alone, no sections")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="images not to use at all")
    parser.add_argument("--volumes", type=int, default=None, help="volumes of a list to learn from at most")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["fixed"], metavar="SETTING")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--points", type=int, default=5, help="points of the held-out curves")
    parser.add_argument("--encoder", default="segresnet_tiny")
    parser.add_argument("--encoder-options", nargs="*", default=[], metavar="KEY=VALUE", help="init_filters=8 ...")
    parser.add_argument("--crop", type=int, default=24, help="edge of a crop in voxels")
    parser.add_argument("--spacing", type=float, default=2.0, help="voxel size in mm")
    parser.add_argument("--batch", type=int, default=4, help="volumes a step")
    parser.add_argument("--folder", type=Path, default=Path("learning_3d"), help="prepared volumes and results")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the study on one thread, print the table, draw the curves, write the results file if asked to."""
    options = parse(argv)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    results = new_results("benchmark", "learning_3d", seed=options.seeds[0])
    run_all(options)
    print(table(options, results))
    draw_curves(options)
    results["peak_memory_mb"] = peak_memory_mb()
    if options.out:
        write_results(options.out, results)


if __name__ == "__main__":
    main()
