"""What the report says about the runs: pre-training, training, evaluation, inference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from lvmmed_monai.report.collect import Source
from lvmmed_monai.report.examples import example_groups
from lvmmed_monai.report.figures import Curve, curve_figure, picture, strip_figure
from lvmmed_monai.report.words import amount, duration, interval, memory, number, readable

__all__ = ["case_score", "key_metric", "measures", "run_view"]

# Values of one class are named "dice/<class>"; their mean stands beside them.
CLASS_DICE, MEAN_DICE = "dice/", "dice/mean"
_HASH_DIGITS = 12
# What a measure is held against -> name of that measure, made from its own. In reading order.
COMPARED = {"chance": "{}_chance", "untrained": "{}_untrained", "grey histogram": "histogram_{}"}
# Measures that sum up a run, the first that it has; VoCo's on augmented crops, where grey values alone do not suffice.
_KEY_METRICS = (MEAN_DICE, "matching_accuracy", "argmax_accuracy_aug")


def run_view(source: Source) -> dict[str, Any]:
    """The values that the template shows for one ``results.json``."""
    record = source.record
    return {
        "label": source.label,
        "name": record["name"],
        "title": readable(record["name"]),
        "kind": record["kind"],
        "facts": ", ".join(_facts(record)),
        "seed": record.get("seed"),
        "created": record["created"].replace("T", " ").replace("+00:00", " UTC"),
        "command": record["command"],
        "environment": _environment(record["environment"]),
        "versions": {name: version for name, version in record["environment"].get("packages", {}).items() if version},
        "timings": {readable(name): duration(seconds) for name, seconds in record["timings"].items()},
        "total": duration(total_seconds(record)),
        "memory": memory(record.get("peak_memory_mb")),
        "data": _provenance(record["data"]),
        "measures": _ranked(measures(record)),
        "compared": [kind for kind in COMPARED if any(kind in row["beside"] for row in measures(record))],
        "curves": _curves(record),
        "classes": _classes(record),
        "gallery": _gallery(source),
        "alarms": [_alarm(alarm) for alarm in record.get("alarms", [])],
        "examples": example_groups(source),
        "cases": _case_table(record["cases"]),
    }


def _facts(record: Mapping[str, Any]) -> list[str]:
    """The line under the heading of a run."""
    facts = [duration(total_seconds(record)), f"{memory(record.get('peak_memory_mb'))} of memory"]
    if record.get("seed") is not None:
        facts.append(f"seed {record['seed']}")
    if record["cases"]:
        facts.append(amount(len(record["cases"]), "case"))
    return [*facts, _environment(record["environment"])]


def total_seconds(record: Mapping[str, Any]) -> float | None:
    """Duration of a run: the timing called ``total`` where there is one, else the sum of all."""
    timings = record["timings"]
    if not timings:
        return None
    return timings.get("total", sum(seconds for seconds in timings.values() if seconds is not None))


def _environment(environment: Mapping[str, Any]) -> str:
    keys = ("platform", "device", "python", "commit")
    words = {"python": "Python ", "commit": "commit "}
    return ", ".join(f"{words.get(key, '')}{environment[key]}" for key in keys if environment.get(key))


# --- measures -------------------------------------------------------------------------------------------------


def _beside(record: Mapping[str, Any], name: str) -> dict[str, float]:
    """What to read a measure against: the same of chance, of the untrained network, of grey values alone."""
    found = {kind: record["metrics"].get(form.format(name), {}).get("value") for kind, form in COMPARED.items()}
    return {kind: value for kind, value in found.items() if value is not None}


def _comparisons(record: Mapping[str, Any]) -> set[str]:
    """Names of the measures that stand beside another one."""
    measured = {*record["metrics"], *record["curves"]}
    return {form.format(name) for name in measured for form in COMPARED.values()} & set(record["metrics"])


def measures(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of measures: value and interval, and ``beside`` it what it is to be held against."""
    comparisons = _comparisons(record)
    return [
        {
            "name": name,
            "title": readable(name),
            "value": metric["value"],
            "text": number(metric["value"]),
            "n": metric["n"],
            "interval": interval(metric["interval"]),
            "beside": {kind: number(value) for kind, value in _beside(record, name).items()},
            "better": {True: "higher", False: "lower"}.get(metric["higher_is_better"], ""),
        }
        for name, metric in record["metrics"].items()
        if name not in comparisons
    ]


def _ranked(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows ``first``: those that chance is known for, or all where it is known for none; and the ``others``."""
    known = [row for row in rows if "chance" in row["beside"]]
    return {"first": known or list(rows), "others": [row for row in rows if known and row not in known]}


def key_metric(record: Mapping[str, Any]) -> str | None:
    """The measure that stands for a run, or None where it has none."""
    known = [name for name in _KEY_METRICS if name in record["metrics"]]
    measured = [name for name in record["metrics"] if name not in _comparisons(record)]
    return next(iter([*known, *measured]), None)


# --- curves ---------------------------------------------------------------------------------------------------


def _curves(record: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Diagrams ``first`` (the losses in one, then each measure that chance is known for) and the ``others``."""
    comparisons = _comparisons(record)
    curves = {name: points for name, points in record["curves"].items() if len(points) > 1 and name not in comparisons}
    # A loss that is measured on held-out data stands with the measures.
    losses = {name: points for name, points in curves.items() if "loss" in name and name not in record["metrics"]}
    drawn: dict[str, list[dict[str, str]]] = {"first": [], "others": []}
    axis = "epoch" if record["kind"] == "training" else "step"
    if losses:
        figure = curve_figure(Curve({readable(name): points for name, points in losses.items()}, axis=axis))
        drawn["first"].append({"title": "Loss", "address": figure})
    for name, points in curves.items():
        if name not in losses:
            levels = _beside(record, name)
            place = "first" if "chance" in levels or name.startswith("validation/") else "others"
            figure = curve_figure(Curve({readable(name): points}, levels, axis, unit_range="chance" in levels))
            drawn[place].append({"title": readable(name), "address": figure})
    return drawn


# --- classes and cases ----------------------------------------------------------------------------------------


def _class_names(cases: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Metric name -> class, for the Dice that cases have per class."""
    names = dict.fromkeys(name for case in cases for name in case["metrics"])
    return {name: name.removeprefix(CLASS_DICE) for name in names if name.startswith(CLASS_DICE) and name != MEAN_DICE}


def _classes(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Dice of every case and class: the diagram and its table; None where cases have no Dice."""
    names = _class_names(record["cases"])
    if not names:
        return None
    values = {label: _values(record["cases"], name) for name, label in names.items()}
    rows = []
    means: dict[str, tuple[float | None, Sequence[float] | None]] = {}
    for name, label in names.items():
        metric = record["metrics"].get(name, {})
        mean = metric.get("value", fmean(values[label]) if values[label] else None)
        rows.append(
            {
                "label": readable(label),
                "mean": number(mean),
                "interval": interval(metric.get("interval")),
                "n": len(values[label]),
                "lowest": number(min(values[label], default=None)),
                "highest": number(max(values[label], default=None)),
                "absent": len(record["cases"]) - len(values[label]),
            }
        )
        means[readable(label)] = (mean, metric.get("interval"))
    figure = strip_figure({readable(label): cases for label, cases in values.items()}, means, "Dice")
    return {"address": figure, "rows": rows}


def _values(cases: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [case["metrics"][name] for case in cases if case["metrics"].get(name) is not None]


def case_score(case: Mapping[str, Any]) -> float | None:
    """What cases are ordered by: mean Dice; None where there is none."""
    return case["metrics"].get(MEAN_DICE)


def _gallery(source: Source) -> list[dict[str, Any]]:
    """Pictures of the best, the median and the worst case; for runs without scores, the first three."""
    pictured = [case for case in source.record["cases"] if case.get("preview")]
    scored = sorted(
        (case for case in pictured if case_score(case) is not None), key=lambda case: -(case_score(case) or 0.0)
    )
    if scored:
        last = len(scored) - 1
        wanted = {last // 2: "median", last: "worst", 0: "best"} if last else {0: "the only case"}
        chosen = [(wanted[index], scored[index]) for index in sorted(wanted)]
    else:
        chosen = [("", case) for case in pictured[:3]]
    shown = [
        {
            "rank": rank,
            "case": case["case"],
            "score": number(case_score(case)),
            "address": picture(source.folder / case["preview"]),
        }
        for rank, case in chosen
    ]
    return [item for item in shown if item["address"]]


def _case_table(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not cases:
        return None
    names = list(dict.fromkeys(name for case in cases for name in case["metrics"]))
    rows = [{"case": case["case"], "values": [number(case["metrics"].get(name)) for name in names]} for case in cases]
    return {"columns": [readable(name) for name in names], "rows": rows} if names else None


# --- pre-training ---------------------------------------------------------------------------------------------


def _alarm(alarm: Mapping[str, Any]) -> dict[str, str]:
    first, last = number(alarm["first_step"]), number(alarm["last_step"])
    return {"steps": f"Step {first}" if first == last else f"Steps {first} to {last}", "text": alarm["text"]}


# --- provenance -----------------------------------------------------------------------------------------------


def _provenance(data: Mapping[str, Any]) -> dict[str, Any]:
    encoder = data.get("encoder")
    lists = [_datalist(item) for item in data.get("datalists") or []]
    return {"datalists": lists, "encoder": None if encoder is None else _encoder_facts(encoder)}


def _datalist(summary: Mapping[str, Any]) -> dict[str, str]:
    counts = ", ".join(f"{count} {section}" for section, count in (summary.get("counts") or {}).items() if count)
    return {
        "name": summary.get("name", "unnamed"),
        "hash": str(summary.get("sha256", ""))[:_HASH_DIGITS],
        "counts": counts,
    }


def _encoder_facts(encoder: Mapping[str, Any]) -> dict[str, str]:
    """What an encoder file says about itself, in words; what it does not say is left out."""
    about: Mapping[str, Any] = encoder.get("provenance") or {}
    options = ", ".join(f"{name} {value}" for name, value in (encoder.get("options") or {}).items())
    lists = [_datalist(item) for item in about.get("datalists") or []]
    facts = {
        "Encoder": f"{encoder.get('name', '')} ({options})" if options else encoder.get("name"),
        "File": str(encoder.get("sha256", ""))[:_HASH_DIGITS],
        "Learnt by": about.get("method"),
        "Steps": about.get("steps"),
        "Seed": about.get("seed"),
        "From": "; ".join(f"{item['name']} {item['hash']}" for item in lists),
        "Subjects": len(about["subjects"]) if about.get("subjects") else None,
        "Licence": about.get("licence"),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}
