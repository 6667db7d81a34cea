"""The table of `compare_2d.py`: means over seeds, and differences that are paired by seed and by image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _runs import metric

from lvmmed_monai.files import read_json
from lvmmed_monai.metrics import bootstrap_area_under_curve


class Found:
    """What is done of a comparison.

    Args:
        paths: by start and seed the file of its values, beside an archive of scores; what is missing is not done.
        labels: of the measured images, by datalist.
        baselines: starts among which the best one is what the others are held against.
        reference: a start that all are held against.
    """

    def __init__(
        self,
        paths: Mapping[str, Mapping[int, Path]],
        labels: Mapping[str, np.ndarray],
        baselines: Collection[str],
        reference: str,
    ) -> None:
        self.labels, self.baselines, self.reference = labels, baselines, reference
        self.runs: dict[str, dict[int, dict[str, Any]]] = {}
        self.scores: dict[str, dict[int, dict[str, np.ndarray]]] = {}
        for start, of_seeds in paths.items():
            done = {seed: path for seed, path in of_seeds.items() if path.exists()}
            self.runs[start] = {seed: read_json(path, "result") for seed, path in done.items()}
            self.scores[start] = {}
            for seed, path in done.items():
                with np.load(path.with_suffix(".npz")) as stored:
                    self.scores[start][seed] = dict(stored)

    def measures(self) -> list[str]:
        """Names of all measures, those of one datalist together."""
        names = dict.fromkeys(name for runs in self.runs.values() for run in runs.values() for name in run["values"])
        return sorted(names, key=lambda name: name.split(", ")[0] if ", " in name else "~")

    def values(self, start: str, measure: str) -> dict[int, float]:
        """By seed; without those that could not be computed."""
        found = {seed: run["values"].get(measure) for seed, run in self.runs[start].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def best_baseline(self, measure: str) -> str | None:
        """The method other than ours with the highest mean."""
        found = {name: self.values(name, measure) for name in self.runs if name in self.baselines}
        means = {name: float(np.mean(list(values.values()))) for name, values in found.items() if values}
        return max(means, key=lambda name: means[name]) if means else None

    def compared(self, start: str, measure: str, other: str | None = None) -> dict[str, Any] | None:
        """A metric of the results format: the mean over seeds, or that of the paired differences to another start.

        ``interval`` is over seeds; ``interval_over_images`` is that of areas under the curve of two classes.
        """
        ours, theirs = self.values(start, measure), self.values(other, measure) if other else {}
        seeds = sorted(ours.keys() & theirs.keys()) if other else sorted(ours)
        if not seeds:
            return None
        values = [ours[seed] - theirs.get(seed, 0.0) for seed in seeds]
        return metric(values, interval_over_images=self.over_images(start, measure, seeds, other))

    def over_images(self, start: str, measure: str, seeds: list[int], other: str | None) -> list[float] | None:
        """Bootstrap interval of an area under the curve or a difference of two."""
        labels = self.labels.get(measure.split(", ")[0])
        first = self.scores[start][seeds[0]].get(measure)
        if labels is None or first is None or first.ndim != 2:
            return None
        ours = [row for seed in seeds for row in self.scores[start][seed][measure]]
        theirs = [row for seed in seeds for row in self.scores[other][seed][measure]] if other else []
        bounds = bootstrap_area_under_curve(ours, labels, minus=theirs)
        return None if bounds is None else list(bounds)


def cell(found: dict[str, Any] | None, signed: bool) -> str:
    """``0.942 ± 0.011 [0.921, 0.958]``."""
    if found is None:
        return ""
    sign = "+" if signed else ""
    text = f"{found['value']:{sign}.3f}"
    if found["interval"] is not None:
        text += f" ± {found['interval'][1] - found['value']:.3f}"
    images = found["interval_over_images"]
    return text if images is None else f"{text} [{images[0]:{sign}.3f}, {images[1]:{sign}.3f}]"


def table(found: Found, results: dict[str, Any]) -> str:
    """Measures by starts; also fills the metrics of a results record."""
    head = (
        "measure",
        "start",
        "mean ± 95 % over seeds [over images]",
        f"minus {found.reference}",
        "minus best baseline",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for measure in found.measures():
        best = found.best_baseline(measure)
        for start in found.runs:
            value = found.compared(start, measure)
            if value is None:
                continue
            gain = found.compared(start, measure, found.reference) if start != found.reference else None
            lead = found.compared(start, measure, best) if best not in (None, start) else None
            title = f"**{start}**" if start == best else start
            lines.append(f"| {measure} | {title} | {cell(value, False)} | {cell(gain, True)} | {cell(lead, True)} |")
            metrics = {"": value, "/minus_reference": gain, "/minus_best_baseline": lead}
            results["metrics"] |= {f"{measure}/{start}{end}": one for end, one in metrics.items() if one is not None}
    for start, runs in found.runs.items():
        if runs:
            mean = {
                key: np.mean([run[f"{key}_seconds"] for run in runs.values()]) for key in ("pretraining", "measuring")
            }
            results["timings"] |= {f"{start}/{key}": float(value) for key, value in mean.items()}
            words = f"{mean['pretraining']:.0f} s of pre-training, {mean['measuring']:.0f} s of measuring"
            lines.append(f"\n{start}: {len(runs)} seeds, {words}")
    return "\n".join(lines)
