"""What 2D encoders learn: settings of the graph matching loss beside InfoNCE, on equal images, views and steps.

A small ResNet-18 (width 16) learns from random weights: 64 pairs of 64-pixel views a step, Adam 0.003 with cosine.
Every setting of a seed gets the same views and starts from the same weights. Each set of images is given as one or
more datalists joined by commas; at most 1000 images a set are learnt from. Settings are chosen on the images of the
validation and test sections (--screen); reported are figures of images of other subjects, a quarter of the training
section that is set apart (at most 80 images a set). Each is the mean of six draws of the views, on pooled, centred
features:

    r@1         how often an image's second view is the nearest of those of 407 held-out images
    mixed, set  second-order matching without noise in groups of 16, of all sets and of one set (chance .06)
    rank        effective rank of the features
    probe       area under the ROC curve of a logistic regression on the features of unchanged images (--probe)

Several processes with the same command and folder share the work; a run that is done is not repeated.

Example:
    lvmmed ingest --manifest data_manifests/color/isic_dermoscopy.json --root DATA/isic_dermoscopy --out isic
    lvmmed ingest --manifest data_manifests/xray/pneumoniamnist.json --root DATA/pneumoniamnist --out pneumonia
    python benchmarks/learning_2d.py --sets isic/datalist.json pneumonia/datalist.json --probe pneumonia/datalist.json
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measures_2d import PAIR_MEASURES, Picture, drawn_views, pair_measures
from _runs import claimed, commits, keep
from learning_settings import SETTINGS, Setting
from torch import nn

from lvmmed_monai.data.datalist import load_pool
from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.engines import warmup_cosine
from lvmmed_monai.files import read_json
from lvmmed_monai.methods._picture_features import batch_features
from lvmmed_monai.methods._picture_probes import labelled_pictures
from lvmmed_monai.methods._pictures import ViewPairs, view_pairs
from lvmmed_monai.methods.lvm_med import LVMMedNetwork, make_projector
from lvmmed_monai.metrics import area_under_curve, logistic_regression, standardised
from lvmmed_monai.networks import build_encoder
from lvmmed_monai.results import new_results, peak_memory_mb, write_results
from lvmmed_monai.transforms.views_2d import ViewSettings

SIZE, BATCH, RATE = 64, 64, 3e-3
LEARNT, REPORTED, SCREENED, GALLERY, DRAWS = 1000, 80, 160, 407, 6
MEASURES = PAIR_MEASURES

# -- images -----------------------------------------------------------------------------------------------------------


class Pictures:
    """Images of all sets: to learn from, and held out with the number of their set.

    Attributes:
        learnt: the images to learn from.
        queries: numbers of the held-out images that are measured; the others are only there to be mistaken for them.
        set_of_held: the set of each held-out image.
        views_of_held: (DRAWS, 2, M, 3, SIZE, SIZE) uint8 views of the held-out images.
    """

    def __init__(self, sets: list[str], folder: Path, screening: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.learnt: list[Picture] = []
        held: list[tuple[int, bool, Picture]] = []
        for number, text in enumerate(sets):
            training = [*pictures_of(text.split(","), ("training",), folder)]
            apart = self._apart(training, rng)
            rest = [picture for picture in training if subject(picture) not in apart]
            self.learnt += drawn(rest, LEARNT, rng)
            reported = drawn([picture for picture in training if subject(picture) in apart], REPORTED, rng)
            screened = drawn([*pictures_of(text.split(","), ("validation", "test"), folder)], SCREENED, rng)
            held += [(number, not screening, picture) for picture in reported]
            held += [(number, screening, picture) for picture in screened]
        measured = [row for row in held if row[1]]
        others = drawn([row for row in held if not row[1]], max(0, GALLERY - len(measured)), rng)
        self.set_of_held = np.array([number for number, _, _ in measured + others])
        self.queries = np.arange(len(measured))
        pictures = [picture for _, _, picture in measured + others]
        self.views_of_held = torch.stack([drawn_views(pictures, [99, draw]) for draw in range(DRAWS)])

    @staticmethod
    def _apart(training: list[Picture], rng: np.random.Generator) -> set[str]:
        """Subjects with a quarter of a set's training images, drawn at random."""
        counts: dict[str, int] = {}
        for picture in training:
            counts[subject(picture)] = counts.get(subject(picture), 0) + 1
        names = sorted(counts)
        order = [names[i] for i in rng.permutation(len(names))]
        images = np.cumsum([counts[name] for name in order])
        return set(order[: int(np.searchsorted(images, len(training) / 4)) + 1])

    def batches(self, seed: int, steps: int, run: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """(steps, 2, BATCH, 3, SIZE, SIZE) uint8 views and (steps, 2, BATCH, 5) places, drawn once and kept.

        A batch holds runs of ``run`` images that follow one another in their set.
        """
        name = f"views-{seed}-{steps}-{run}"
        views_path, places_path = folder / f"{name}.npy", folder / f"{name}-places.npy"
        if not places_path.exists():
            partial = folder / f"{name}-{os.getpid()}.partial"
            shape = (steps, 2, BATCH, 3, SIZE, SIZE)
            views = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            places = np.zeros((steps, 2, BATCH, 5), np.float32)
            for step, keys in enumerate(StepBatchSampler(len(self.learnt), BATCH, steps, seed)):
                for row, (draw, _) in enumerate(keys):
                    index = (keys[row - row % run][1] + row % run) % len(self.learnt)
                    pool, i = self.learnt[index]
                    sample = pool.draw(i, np.random.default_rng([seed, draw, index]))
                    for side in (0, 1):
                        views[step, side, row] = (255 * sample[f"view{side + 1}"]).round().to(torch.uint8).numpy()
                        places[step, side, row] = sample[f"location{side + 1}"].numpy()
            views.flush()
            os.replace(partial, views_path)
            np.save(places_path, places)
        return np.load(views_path, mmap_mode="r"), np.load(places_path)


def subject(picture: Picture) -> str:
    """Whom a picture shows."""
    pool, i = picture
    return str(pool.data[i]["subject"])


def drawn(rows: list[Any], most: int, rng: np.random.Generator) -> list[Any]:
    """At most so many of the rows, in their order."""
    return [rows[i] for i in np.sort(rng.permutation(len(rows))[:most])]


def pictures_of(datalists: list[str], sections: tuple[str, ...], folder: Path) -> Iterator[Picture]:
    """All pictures of a set's sections."""
    for pool in pools(datalists, sections, folder):
        yield from ((pool, i) for i in range(len(pool)))


def pools(datalists: list[str], sections: tuple[str, ...], folder: Path) -> Iterator[ViewPairs]:
    """The non-empty sections of a set."""
    for section in sections:
        filled = [path for path in datalists if load_pool([path], section)]
        if filled:
            form: dict[str, Any] = {"planes": ("axial",), "cache_size": 256, "in_channels": 3}
            yield view_pairs(filled, section, folder / "cache", views=ViewSettings(size=SIZE), seed=0, **form)


# -- learning and measuring -------------------------------------------------------------------------------------------


def learn(
    setting: Setting | None, pictures: Pictures, seed: int, options: argparse.Namespace
) -> tuple[nn.Module, float]:
    """A trained encoder and the seconds of its training."""
    torch.manual_seed(1000 + seed)
    encoder = build_encoder("resnet18", 3, width=16)
    if setting is None:
        return encoder, 0.0
    steps = options.steps
    views, places = pictures.batches(seed, steps, options.run, options.folder)
    projector, loss = make_projector(setting.projector, encoder.channels[-1], 128), setting.loss()
    network: Any = LVMMedNetwork(encoder, projector, loss, setting.map_level)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    scheduler = warmup_cosine(optimizer, warmup_steps=20, total_steps=steps)
    start = time.perf_counter()
    for step in range(steps):
        view1, view2 = torch.from_numpy(views[step].astype(np.float32) / 255)
        value = network(view1, view2, *torch.from_numpy(places[step]))["loss"]
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        scheduler.step()
    return encoder, time.perf_counter() - start


def measured(encoder: nn.Module, pictures: Pictures) -> dict[str, float]:
    """`MEASURES` of the held-out images that are queries."""
    features = partial(batch_features, encoder)
    return pair_measures(features, pictures.views_of_held, pictures.set_of_held, pictures.queries)


def probed(encoder: nn.Module, datalist: str, folder: Path) -> float:
    """Area under the ROC curve on the test section; the strength of the penalty is chosen on the validation section."""
    parts = {}
    for section in ("training", "validation", "test"):
        part = labelled_pictures(datalist, section, folder / "cache", size=SIZE, in_channels=3)
        parts[section] = batch_features(encoder, part.images).double().numpy(), part.labels
    training, validation, test = standardised(*(features for features, _ in parts.values()))
    models = [logistic_regression(training, parts["training"][1], penalty) for penalty in (1e-4, 1e-3, 1e-2, 1e-1)]

    def area(features: np.ndarray, section: str, model: np.ndarray) -> float:
        return area_under_curve(features @ (model[:-1, 1] - model[:-1, 0]), parts[section][1])

    best = max(models, key=lambda model: area(validation, "validation", model))
    return area(test, "test", best)


# -- command line -----------------------------------------------------------------------------------------------------


def run_all(options: argparse.Namespace) -> None:
    """Run what no other process has begun."""
    pictures = Pictures(options.sets, options.folder, options.screen)
    logging.info("%d images to learn from, %d held out", len(pictures.learnt), len(pictures.set_of_held))
    for seed in options.seeds:
        for name in options.settings:
            path = result_path(options, name, seed)
            with claimed(path) as mine:
                if not mine:
                    continue
                encoder, seconds = learn(SETTINGS[name], pictures, seed, options)
                values = {**measured(encoder, pictures), "seconds": seconds}
                if options.probe:
                    values["probe"] = probed(encoder, options.probe, options.folder)
                keep(path, values)
                print(f"{name}, seed {seed}:", *(f"{key} {value:.3f}" for key, value in values.items()), flush=True)


def result_path(options: argparse.Namespace, name: str, seed: int) -> Path:
    """Where the figures of a run are kept."""
    stem = "".join(letter if letter.isalnum() else "_" for letter in name)
    kind = "screen" if options.screen else "report"
    return Path(options.folder / f"{stem}-{seed}-{options.steps}-{options.run}-{kind}.json")


def table(options: argparse.Namespace, results: dict[str, Any]) -> str:
    """Mean and range over seeds of every setting that has run."""
    measures = [*MEASURES, *(["probe"] if options.probe else []), "seconds"]
    lines = ["| setting | " + " | ".join(measures) + " |", "|" + "---|" * (len(measures) + 1)]
    for name in options.settings:
        paths = [result_path(options, name, seed) for seed in options.seeds]
        rows = [read_json(path, "result") for path in paths if path.exists()]
        if not rows:
            continue
        cells = []
        for measure in measures:
            values = [row[measure] for row in rows]
            digits = 0 if measure == "seconds" else 1 if measure == "rank" else 3
            spread = f" ({min(values):.3f}-{max(values):.3f})" if digits == 3 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}")
            interval = [min(values), max(values)] if len(values) > 1 else None
            higher = measure != "seconds"
            results["metrics"][f"{name}/{measure}"] = {
                "value": float(np.mean(values)), "n": len(values), "interval": interval, "higher_is_better": higher
            }  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    every = [result_path(options, name, seed) for name in options.settings for seed in options.seeds]
    return "\n".join([*lines, commits(every)])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    formatter: Callable[..., Any] = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--sets", nargs="+", required=True, help="a set of images each: datalists joined by commas")
    parser.add_argument("--probe", default=None, help="datalist of a classification with two classes")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="SETTING")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--run", type=int, default=1, help="images of a batch that follow one another, as slices do")
    parser.add_argument("--screen", action="store_true", help="measure the images that settings are chosen on")
    parser.add_argument("--folder", type=Path, default=Path("learning_2d"), help="views (1.6 MB a step) and results")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the study on one thread, print the table, write the results file if asked to."""
    options = parse(argv)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    results = new_results("benchmark", "learning_2d", seed=options.seeds[0])
    run_all(options)
    print(table(options, results))
    results["peak_memory_mb"] = peak_memory_mb()
    if options.out:
        write_results(options.out, results)


if __name__ == "__main__":
    main()
