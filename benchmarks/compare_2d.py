"""What 2D pre-training is worth: every method of `lvmmed_pretrain` on your datalists, in one budget, in one table.

Each method pre-trains an encoder for each seed on the pooled training sections (at most 1000 images a datalist, no
labels), with equal steps, batches, views, encoder and optimiser, from the same random weights. Then are measured,
beside random weights and the images at 8 x 8 pixels:

    probe       for each datalist with classes (those of --probe too): area under the ROC curve of a logistic
                regression on frozen features, with some of the training labels (drawn several times where they are
                few), on the test section
    fine-tuned  the same of encoder and linear head trained together for a few steps, several times
    r@1         how often a held-out image's second view is the nearest of all held-out images; also for the images of
                each datalist that has 16
    mixed, set  second-order matching without noise in groups of 16, of all datalists and of one (chance .06)

A cell is the mean over seeds ± half its 95 % interval (Student's t over seeds), and [the 95 % bootstrap interval over
test images]. Differences are paired by seed and image; the best baseline is the best of the methods other than lvm_med.
Choose settings with --section validation, and report the test section once.

Several processes with the same command and folder share the work; a run that is done is not repeated.

Example:
    lvmmed ingest --manifest data_manifests/color/isic_dermoscopy.json --root DATA/isic_dermoscopy --out isic
    lvmmed ingest --manifest data_manifests/xray/pneumoniamnist.json --root DATA/pneumoniamnist --out pneumonia
    python benchmarks/compare_2d.py isic/datalist.json pneumonia/datalist.json --variant lvm_paper method=lvm_med \\
        preset=paper
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _compare_table import Found, table
from _measures_2d import (
    GROUP,
    Features,
    Labelled,
    drawn_views,
    fine_tuned_scores,
    pair_measures,
    pixels,
    probe_scores,
    retrieval_of_sets,
)
from _runs import absolute, claimed, commits, keep, run_bundle
from torch import Tensor, nn

from lvmmed_monai.cli.run import parse_overrides
from lvmmed_monai.data.datalist import read_datalist, summarise, write_datalist
from lvmmed_monai.errors import UserError, user_error_in
from lvmmed_monai.files import atomic_path, read_json, sha256_file, sha256_json
from lvmmed_monai.methods._picture_features import batch_features
from lvmmed_monai.methods._pictures import view_pairs
from lvmmed_monai.metrics import area_under_curve
from lvmmed_monai.networks import build_encoder, load_encoder, read_encoder_file
from lvmmed_monai.results import new_results, peak_memory_mb, write_results
from lvmmed_monai.transforms.views_2d import ViewSettings

METHODS = ("lvm_med", "simclr", "barlow_twins", "vicreg", "vicregl", "moco", "byol", "dino", "swav", "mae")
OURS = "lvm_med"
RANDOM, PIXELS = "random weights", "8 x 8 pixels"
HELD, VIEW_DRAWS = 160, 4


# -- data -------------------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """All images of a comparison, read once.

    Attributes:
        unlabelled: datalists to pre-train on: training sections only, without labels.
        labelled: those of the datalists that have classes.
        probed: further ones with classes, which are neither pre-trained on nor fine-tuned on.
        views: (VIEW_DRAWS, 2, M, 3, s, s) uint8 views of held-out images.
        set_of: (M,) number of each held-out image's datalist.
        names: of the datalists by number.
    """

    unlabelled: list[Path]
    labelled: list[Labelled]
    probed: list[Labelled]
    views: Tensor
    set_of: np.ndarray
    names: list[str]

    @classmethod
    def read(cls, options: argparse.Namespace) -> Data:
        """From the datalists of the command line.

        Raises:
            UserError: there is nothing to pre-train on, or too little to measure on.
        """
        unlabelled, labelled, pictures, set_of, names = [], [], [], [], []
        cache = options.folder / "cache"
        form: dict[str, Any] = {"planes": ("axial",), "cache_size": 256, "in_channels": 3, "seed": 0}
        for number, path in enumerate(options.datalists):
            content = read_datalist(path)
            names.append(content["name"])
            if content["training"]:
                unlabelled.append(without_labels(path, content, number, options))
            if not content[options.section]:
                continue
            if content["task"] == "classification" and content["training"]:
                labelled.append(Labelled.read(path, options.section, cache, options.size))
            pairs = view_pairs([path], options.section, cache, views=ViewSettings(size=options.size), **form)
            chosen = np.sort(np.random.default_rng(number).permutation(len(pairs))[:HELD])
            pictures += [(pairs, int(i)) for i in chosen]
            set_of += [number] * len(chosen)
        probed = []
        for path in options.probe:
            refuse_shared_subjects(path, options)
            probed.append(Labelled.read(path, options.section, cache, options.size))
        if not unlabelled:
            raise UserError("no picture to pre-train on; the datalists; give one with a training section")
        if len(pictures) < GROUP:
            raise UserError(
                f"{len(pictures)} pictures in the sections {options.section}, fewer than a matching of {GROUP}; "
                "the datalists; give more of them, or another --section"
            )
        views = torch.stack([drawn_views(pictures, [99, draw]) for draw in range(VIEW_DRAWS)])
        return cls(unlabelled, labelled, probed, views, np.array(set_of), names)


def refuse_shared_subjects(path: Path, options: argparse.Namespace) -> None:
    """No subject of the measured section of a datalist may be pre-trained on.

    Raises:
        UserError: one is.
    """
    judged = {item["subject"] for item in read_datalist(path)[options.section]}
    for other in options.datalists:
        both = judged & {item["subject"] for item in read_datalist(other)["training"]}
        if both:
            raise UserError(
                f"{len(both)} of the {len(judged)} subjects in {options.section} of {path} are in training of {other}; "
                "--probe; give datalists that divide subjects alike"
            )


def without_labels(path: Path, content: dict[str, Any], number: int, options: argparse.Namespace) -> Path:
    """A datalist of at most ``--most`` training images of another one, and of nothing else."""
    rng = np.random.default_rng([17, number])
    chosen = np.sort(rng.permutation(len(content["training"]))[: options.most])
    items = [absolute(content["training"][i], path.resolve().parent) for i in chosen]
    bare = [{key: value for key, value in item.items() if key not in ("label", "box")} for item in items]
    plain = {**content, "task": "unlabelled", "labels": {}, "validation": [], "test": [], "training": bare}
    target = Path(options.folder / f"unlabelled-{number}-{options.most}.json")
    write_datalist(target, plain)
    return target


# -- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Where features come from: a pre-training by ``settings`` of the bundle, or what pre-training is held against."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        return self.settings.get("method", OURS) != OURS


def starts(options: argparse.Namespace) -> list[Start]:
    """Random weights, pixels, methods and variants, in the order of the table."""
    variants = [(name, parse_overrides(words)) for name, *words in options.variant]
    methods = [(name, {"method": name}) for name in options.methods]
    return [Start(RANDOM), Start(PIXELS), *(Start(name, settings) for name, settings in (*methods, *variants))]


def bundle_settings(start: Start, seed: int, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """What the pre-training hangs on, apart from its places."""
    common = {
        "encoder_name": options.encoder,
        "encoder_options": parse_overrides(options.encoder_options),
        "image_size": options.size,
        "batch_size": options.batch,
        "max_epochs": 1,
        "epoch_length": options.steps,
        "learning_rate": options.rate,
        "held_out": None,
        "seed": seed,
        "datalist": [str(path) for path in data.unlabelled],
    }
    return {**common, **parse_overrides(options.settings), **start.settings}


def pretrained(start: Start, seed: int, data: Data, options: argparse.Namespace) -> tuple[nn.Module, float]:
    """The encoder and the CPU seconds of its pre-training, which is done where it is not there."""
    settings = bundle_settings(start, seed, data, options)
    lists = [sha256_file(path) for path in data.unlabelled]
    folder = options.folder / f"{stem(start, seed)}-{sha256_json([settings, lists])[:8]}"
    done = folder / "done.json"
    if not done.exists():
        places = {"output_dir": folder, "encoder_path": folder / "encoder.pt", "model_path": folder / "model.pt"}
        places["cache_dir"] = options.folder / "cache"
        paths = {key: str(path) for key, path in places.items()}
        seconds = run_bundle("lvmmed_pretrain", "train", **paths, **settings)
        keep(done, {"cpu_seconds": seconds})
    content = read_encoder_file(folder / "encoder.pt")
    encoder = build_encoder(content["name"], content["input"]["in_channels"], **content["options"])
    load_encoder(folder / "encoder.pt", encoder)
    return encoder, read_json(done, "record")["cpu_seconds"]


def encoder_of(start: Start, seed: int, data: Data, options: argparse.Namespace) -> tuple[nn.Module | None, float]:
    """The encoder (none for pixels), and the CPU seconds that it cost."""
    if start.name == PIXELS:
        return None, 0.0
    if start.name == RANDOM:
        torch.manual_seed(seed)
        return build_encoder(options.encoder, 3, **parse_overrides(options.encoder_options)), 0.0
    return pretrained(start, seed, data, options)


def stem(start: Start, seed: int) -> str:
    """Of file names."""
    return "".join(letter if letter.isalnum() else "_" for letter in start.name) + f"-{seed}"


def result_path(start: Start, seed: int, data: Data, options: argparse.Namespace) -> Path:
    """Where the figures of a run are kept; other settings, other file."""
    ways = ("section", "fractions", "labels", "draws", "tune_steps", "tune_draws", "tune_batch", "tune_rate", "size")
    lists = [sha256_file(path) for path in (*options.datalists, *options.probe, *data.unlabelled)]
    key = [bundle_settings(start, seed, data, options), lists, [getattr(options, name) for name in ways]]
    return Path(options.folder / f"{stem(start, seed)}-{sha256_json(key)[:8]}.json")


def percent(part: float) -> str:
    """``1 %``."""
    return f"{100 * part:g} %"


def label_counts(data: Labelled, options: argparse.Namespace) -> dict[str, int]:
    """How many training labels are used, by name; none is larger than the section."""
    total = len(data.training.labels)
    parts = {percent(part): max(2 * data.classes, round(part * total)) for part in options.fractions}
    return {**parts, **{f"{count} labels": count for count in options.labels if count < total}}


def chosen_labels(one: Labelled, seed: int, options: argparse.Namespace) -> dict[str, list[np.ndarray]]:
    """The draws of training pictures whose labels are used, by name of their number."""
    total = len(one.training.labels)
    # All labels can be drawn in one way only.
    return {
        name: [one.some(count, [seed, count, draw]) for draw in range(options.draws if count < total else 1)]
        for name, count in label_counts(one, options).items()
    }


def probed_scores(features: Features, one: Labelled, seed: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Scores (draws, n) or (draws, n, K) of the measured images of a datalist by a probe, by measure."""
    chosen = chosen_labels(one, seed, options)
    found = iter(probe_scores(features, one, [rows for each in chosen.values() for rows in each]))
    return {f"{one.name}, probe, {name}": np.stack([next(found) for _ in each]) for name, each in chosen.items()}


def tuned_scores(encoder: nn.Module, one: Labelled, seed: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """The same, (draws, n) or (draws, n, K), by fine-tuning; with all labels the draws differ in their batches."""
    chosen = chosen_labels(one, seed, options)
    form = {"steps": options.tune_steps, "batch": options.tune_batch, "rate": options.tune_rate}
    scores = {}
    for name in (percent(part) for part in options.fractions):
        rows = [chosen[name][draw % len(chosen[name])] for draw in range(options.tune_draws)]
        scores[f"{one.name}, fine-tuned, {name}"] = np.stack(
            [fine_tuned_scores(encoder, one, each, **form, key=[seed, draw]) for draw, each in enumerate(rows)]
        )
    return scores


def measure(
    encoder: nn.Module | None, seed: int, data: Data, options: argparse.Namespace
) -> tuple[dict[str, float | None], dict[str, np.ndarray]]:
    """Values by measure, and the scores behind areas under the curve."""
    features: Features = pixels if encoder is None else partial(batch_features, encoder)
    pairs = pair_measures(features, data.views, data.set_of, np.arange(len(data.set_of)))
    values = {name: pairs[name] for name in ("r@1", "mixed", "set")}
    of_sets = retrieval_of_sets(features, data.views, data.set_of)
    values |= {f"{data.names[number]}, r@1": value for number, value in of_sets.items()}
    scores: dict[str, np.ndarray] = {}
    tuned = {one.name for one in data.labelled} if options.tune_steps else set()
    for one in (*data.labelled, *data.probed):
        found = probed_scores(features, one, seed, options)
        if encoder is not None and one.name in tuned:
            found |= tuned_scores(encoder, one, seed, options)
        areas = {name: [area_under_curve(row, one.measured.labels) for row in rows] for name, rows in found.items()}
        values |= {name: float(np.mean(each)) for name, each in areas.items()}
        scores |= found
    return {name: value if np.isfinite(value) else None for name, value in values.items()}, scores


def run_all(data: Data, options: argparse.Namespace) -> None:
    """Run what no other process has done or is doing."""
    for seed in options.seeds:
        for start in starts(options):
            path = result_path(start, seed, data, options)
            with claimed(path) as mine:
                if not mine:
                    continue
                try:
                    encoder, cost = encoder_of(start, seed, data, options)
                except Exception as error:
                    reason = user_error_in(error)
                    if reason is None:
                        raise
                    print(f"{start.name}, seed {seed}, is left out: {reason}", flush=True)
                    continue
                begin = time.process_time()
                values, scores = measure(encoder, seed, data, options)
                with atomic_path(path.with_suffix(".npz")) as temporary, temporary.open("wb") as stream:
                    np.savez_compressed(stream, **scores)
                spent = time.process_time() - begin
                keep(path, {"values": values, "pretraining_seconds": cost, "measuring_seconds": spent})
                print(f"{start.name}, seed {seed}: {cost:.0f} s + {spent:.0f} s of measuring", flush=True)


def result_paths(data: Data, options: argparse.Namespace) -> dict[str, dict[int, Path]]:
    """Of every start by seed, done or not."""
    return {
        start.name: {seed: result_path(start, seed, data, options) for seed in options.seeds}
        for start in starts(options)
    }


def found(data: Data, options: argparse.Namespace) -> Found:
    """What is done."""
    every = starts(options)
    paths = result_paths(data, options)
    labels = {one.name: one.measured.labels for one in (*data.labelled, *data.probed)}
    return Found(paths, labels, {start.name for start in every if start.is_baseline}, RANDOM)


# -- command line -----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datalists", nargs="+", type=Path, help="of pictures; those for classification are probed on")
    parser.add_argument(
        "--probe", nargs="*", type=Path, default=[], metavar="DATALIST",
        help="more datalists for classification, probed on and not pre-trained on",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="of lvmmed_pretrain")
    parser.add_argument(
        "--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"),
        help="another start: settings of the bundle, method among them; may be given again",
    )  # fmt: skip
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of the bundle, for all methods")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500, help="of pre-training")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="largest learning rate of pre-training")
    parser.add_argument("--size", type=int, default=64, help="side of views and pictures in pixels")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--encoder-options", nargs="*", default=["width=16"], metavar="KEY=VALUE")
    parser.add_argument("--most", type=int, default=1000, help="images of a datalist to pre-train on")
    parser.add_argument("--section", choices=["test", "validation"], default="test", help="what is measured on")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.01, 0.1, 1.0], help="of the training labels")
    parser.add_argument("--labels", nargs="*", type=int, default=[200], help="numbers of labels, for the probe")
    parser.add_argument("--draws", type=int, default=5, help="of few labels, for the probe")
    parser.add_argument("--tune-steps", type=int, default=120, help="of fine-tuning; 0 leaves it out")
    parser.add_argument("--tune-draws", type=int, default=3, help="fine-tunings of an encoder with as many labels")
    parser.add_argument("--tune-batch", type=int, default=32)
    parser.add_argument("--tune-rate", type=float, default=1e-3)
    parser.add_argument("--folder", type=Path, default=Path("compare_2d"), help="encoders, scores and results")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run what is not done on one thread, print the table, write the results file if asked to."""
    options = parse(argv)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("monai").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    results = new_results("benchmark", "compare_2d", seed=options.seeds[0])
    data = Data.read(options)
    run_all(data, options)
    print(table(found(data, options), results))
    print(commits(path for of_seeds in result_paths(data, options).values() for path in of_seeds.values()))
    results["data"]["datalists"] = [summarise(path) for path in (*options.datalists, *options.probe)]
    results["peak_memory_mb"] = peak_memory_mb()
    if options.out:
        write_results(options.out, results)


if __name__ == "__main__":
    main()
