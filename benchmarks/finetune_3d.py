"""What pre-training is worth: `voco_segmentation_3d` fine-tuned on a few labelled subjects, from scratch and otherwise.

For each seed 20 labelled subjects are drawn from the training section (5 of them for the smaller set); each method
pre-trains an encoder on all other training volumes, without labels, through the bundle `voco_pretrain`. Then the bundle
`voco_segmentation_3d` is trained with equal settings from each encoder and from random weights, for a fixed number of
steps, and its last weights are evaluated on the test section. Reported: mean Dice over subjects and classes, mean over
seeds, and the paired difference to scratch with its 95 % interval (Student's t over seeds).

Several processes with the same command and folder share the work; a run that is done is not repeated.

Example:
    lvmmed ingest --manifest data_manifests/mri/msd_hippocampus.json --root DATA/msd_hippocampus --out hippocampus
    python benchmarks/finetune_3d.py hippocampus/datalist.json --folder finetune_3d
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _runs import absolute, claimed, commits, interval, keep, metric, run_bundle

from lvmmed_monai.cli.run import parse_overrides
from lvmmed_monai.data.datalist import read_datalist, write_datalist
from lvmmed_monai.files import read_json, sha256_file, sha256_json
from lvmmed_monai.results import new_results, peak_memory_mb, write_results

SCRATCH = "scratch"
LABELLED = 20
# Options that a pre-training, and beside it a fine-tuning, hang on.
PRETRAINED_BY = ("encoder", "spacing", "crop", "grid", "pretrain_steps", "pretrain_batch", "pretrain_settings")
FINETUNED_BY = ("encoder", "spacing", "roi", "steps", "epochs", "finetune_settings", "frozen", "warm_up", "decoder")
# All weights but the encoder's; its norms keep no statistics, so that it stays as it is.
DECODER = "[weight for name, weight in @network.named_parameters() if not name.startswith('encoder.')]"


def divide(options: argparse.Namespace, seed: int) -> dict[str, Path]:
    """Datalists of a seed: ``unlabelled`` and one for each number of labelled subjects."""
    content = read_datalist(options.datalist)
    where = options.datalist.parent.resolve()
    items = [absolute(item, where) for item in content["training"]]
    order = np.random.default_rng([3, seed]).permutation(len(items))
    # The last weights are taken, so that validation has nothing to choose.
    shown = {"validation": content["validation"][:1], "test": content["test"]}
    held = {section: [absolute(item, where) for item in chosen] for section, chosen in shown.items()}
    parts = {str(count): [items[i] for i in order[:count]] for count in options.subjects}
    found = {}
    for name, chosen in parts.items():
        found[name] = options.folder / f"labelled-{name}-{seed}.json"
        write_datalist(found[name], {**content, **held, "training": chosen})
    rest = [{key: value for key, value in items[i].items() if key != "label"} for i in order[LABELLED:]]
    plain = {**content, "task": "unlabelled", "labels": {}, "validation": [], "test": []}
    found["unlabelled"] = options.folder / f"unlabelled-{seed}.json"
    write_datalist(found["unlabelled"], {**plain, "training": rest})
    return found


def pretrain(options: argparse.Namespace, method: str, seed: int, datalist: Path) -> None:
    """An encoder of a method and seed."""
    path = pretrained_path(options, method, seed)
    folder = path.with_suffix("")
    seconds = run_bundle(
        "voco_pretrain",
        "train",
        method=method,
        datalist=str(datalist),
        held_out=None,
        encoder_name=options.encoder,
        spacing=[options.spacing] * 3,
        crop_size=options.crop,
        grid=options.grid,
        batch_size=options.pretrain_batch,
        max_epochs=1,
        epoch_length=options.pretrain_steps,
        seed=seed,
        output_dir=str(folder),
        cache_dir=str(options.folder / "cache"),
        encoder_path=str(folder / "encoder.pt"),
        model_path=str(folder / "model.pt"),
        **parse_overrides(options.pretrain_settings),
    )
    keep(path, {"cpu_seconds": seconds})
    print(f"pre-trained {method}, seed {seed}: {seconds:.0f} s", flush=True)


def finetune(options: argparse.Namespace, start: str, subjects: int, seed: int, datalist: Path) -> None:
    """Train, evaluate on the test section and keep the mean Dice."""
    path = result_path(options, start, subjects, seed)
    folder = path.with_suffix("")
    encoder = None if start == SCRATCH else str(pretrained_path(options, start, seed).with_suffix("") / "encoder.pt")
    content = read_datalist(datalist)
    form = {
        "datalist": str(datalist),
        "labels": content["labels"],
        "modality": content["modality"],
        "encoder_name": options.encoder,
        "spacing": [options.spacing] * 3,
        "roi_size": options.roi,
        "decoder_channels": options.decoder,
        "model_path": str(folder / "model.pt"),
    }
    own = parse_overrides(options.finetune_settings)
    if options.frozen:
        own["optimizer#params"] = f"${DECODER}"
    if options.warm_up:
        own.update(decoder_first(options))
    schedule = {"max_epochs": options.epochs, "epoch_length": options.steps // options.epochs}
    # With as many crops a volume as batches ask for, the loader never runs dry within an epoch.
    training = {"batch_size": 2, "num_samples": 1, "val_interval": options.epochs, "seed": seed}
    seconds = run_bundle(
        "voco_segmentation_3d",
        "train",
        pretrained_encoder=encoder,
        output_dir=str(folder / "train"),
        **{**form, **schedule, **training, **own},
    )
    run_bundle("voco_segmentation_3d", "evaluate", output_dir=str(folder / "evaluate"), **form)
    record = read_json(folder / "evaluate" / "results.json", "results")
    dice = record["metrics"]["dice/mean"]["value"]
    keep(path, {"dice": dice, "cpu_seconds": seconds})
    print(f"{start}, {subjects} subjects, seed {seed}: Dice {dice:.3f}, {seconds:.0f} s", flush=True)


def decoder_first(options: argparse.Namespace) -> dict[str, Any]:
    """Settings under which the encoder rests for the first epochs; the decoder's rate is as without."""
    cosine = f"(1 + math.cos(math.pi * epoch / {options.epochs})) / 2"
    rates = f"[lambda epoch: (epoch >= {options.warm_up}) * {cosine}, lambda epoch: {cosine}]"
    schedule = {"_target_": "torch.optim.lr_scheduler.LambdaLR", "optimizer": "@optimizer", "lr_lambda": f"${rates}"}
    return {
        "imports": ["$import os", "$import math"],
        "optimizer#params": f"$[{{'params': @network.encoder.parameters()}}, {{'params': {DECODER}}}]",
        "lr_scheduler": schedule,
    }


def pretrained_path(options: argparse.Namespace, method: str, seed: int) -> Path:
    """Where a pre-training is recorded, its encoder in the folder of that name; other settings, other path."""
    return Path(options.folder / f"{method}-{seed}-{key(options, PRETRAINED_BY)}.json")


def result_path(options: argparse.Namespace, start: str, subjects: int, seed: int) -> Path:
    """Where the figures of a fine-tuning are kept; other settings, other path."""
    settings = FINETUNED_BY if start == SCRATCH else (*PRETRAINED_BY, *FINETUNED_BY)
    return Path(options.folder / f"tuned-{start}-{subjects}-{seed}-{key(options, settings)}.json")


def key(options: argparse.Namespace, settings: Sequence[str]) -> str:
    """Short hash of the datalist and these options."""
    return sha256_json([sha256_file(options.datalist), [getattr(options, name) for name in settings]])[:8]


# -- what is printed --------------------------------------------------------------------------------------------------


def table(options: argparse.Namespace, results: dict[str, Any]) -> str:
    """Starts by numbers of labelled subjects."""
    lines = [
        "| labelled | start | Dice by seed | mean | minus scratch (95 %) | seeds above |",
        "|---|---|---|---|---|---|",
    ]
    for subjects in options.subjects:
        scratch = dice_of(options, SCRATCH, subjects)
        for start in (SCRATCH, *options.methods):
            found = dice_of(options, start, subjects)
            if not found:
                continue
            both = sorted(scratch.keys() & found.keys())
            difference = np.array([found[seed] - scratch[seed] for seed in both])
            mean, half = interval(difference) if start != SCRATCH and len(both) else (0.0, 0.0)
            gain = f"{mean:+.3f} ± {half:.3f}" if start != SCRATCH else ""
            above = f"{int((difference > 0).sum())} of {len(both)}" if start != SCRATCH else ""
            values = np.array([found[seed] for seed in sorted(found)])
            cells = [str(subjects), start, " ".join(f"{value:.3f}" for value in values), f"{values.mean():.3f}"]
            lines.append("| " + " | ".join([*cells, gain, above]) + " |")
            key = f"dice/{start}/{subjects}"
            results["metrics"][key] = metric(values)
            if start != SCRATCH:
                results["metrics"][f"{key}/minus_scratch"] = metric(difference)
    done = {method: [pretrained_path(options, method, seed) for seed in options.seeds] for method in options.methods}
    seconds = {
        method: [read_json(path, "result")["cpu_seconds"] for path in paths if path.exists()]
        for method, paths in done.items()
    }
    lines += [f"{method}: {np.mean(one):.0f} s of pre-training" for method, one in seconds.items() if one]
    tuned = itertools.product((SCRATCH, *options.methods), options.subjects, options.seeds)
    lines.append(commits([*itertools.chain(*done.values()), *(result_path(options, *run) for run in tuned)]))
    return "\n".join(lines)


def dice_of(options: argparse.Namespace, start: str, subjects: int) -> dict[int, float]:
    """Dice of each seed that is done."""
    paths = {seed: result_path(options, start, subjects, seed) for seed in options.seeds}
    return {seed: read_json(path, "result")["dice"] for seed, path in paths.items() if path.exists()}


# -- command line -----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datalist", type=Path, help="datalist of a segmentation of volumes, with all three sections")
    parser.add_argument("--methods", nargs="+", default=["voco", "mae3d", "simclr3d"])
    parser.add_argument("--subjects", nargs="+", type=int, default=[5, LABELLED], help=f"labelled, {LABELLED} at most")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--encoder", default="segresnet_tiny")
    parser.add_argument("--spacing", type=float, default=1.0, help="voxel size in mm")
    parser.add_argument("--crop", type=int, default=12, help="edge of a crop of pre-training in voxels")
    parser.add_argument("--grid", nargs="+", type=int, default=[3, 3], help="base crops along x and y")
    parser.add_argument("--pretrain-steps", type=int, default=2000)
    parser.add_argument("--pretrain-batch", type=int, default=6)
    parser.add_argument("--pretrain-settings", nargs="*", default=[], metavar="KEY=VALUE", help="of the bundle")
    parser.add_argument("--roi", nargs=3, type=int, default=[32, 48, 32], help="patch of fine-tuning in voxels")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning")
    parser.add_argument("--epochs", type=int, default=20, help="of these steps; the rate falls with each")
    parser.add_argument("--finetune-settings", nargs="*", default=[], metavar="KEY=VALUE", help="of the bundle")
    parser.add_argument("--frozen", action="store_true", help="train the decoder alone")
    parser.add_argument("--warm-up", type=int, default=0, help="epochs in which the decoder learns alone")
    parser.add_argument("--decoder", nargs="+", type=int, default=None, help="channels of the decoder, coarse to fine")
    parser.add_argument("--folder", type=Path, default=Path("finetune_3d"), help="encoders, models and results")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run what is not done on one thread, print the table, write the results file if asked to."""
    options = parse(argv)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("monai").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    results = new_results("benchmark", "finetune_3d", seed=options.seeds[0])
    lists = {seed: divide(options, seed) for seed in options.seeds}
    for seed in options.seeds:
        for method in options.methods:
            with claimed(pretrained_path(options, method, seed)) as mine:
                if mine:
                    pretrain(options, method, seed, lists[seed]["unlabelled"])
    for seed in options.seeds:
        for subjects in options.subjects:
            for start in (SCRATCH, *options.methods):
                with claimed(result_path(options, start, subjects, seed)) as mine:
                    if mine:
                        finetune(options, start, subjects, seed, lists[seed][str(subjects)])
    print(table(options, results))
    results["peak_memory_mb"] = peak_memory_mb()
    if options.out:
        write_results(options.out, results)


if __name__ == "__main__":
    main()
