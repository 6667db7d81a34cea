"""The results file beside each run: ``results.json``, format ``lvmmed-results/1``.

    format, kind, name        kind is one of KINDS; name says what ran (a bundle's name)
    created, command, seed    ISO 8601 time (UTC), the command line, the seed
    environment               versions, platform, device, threads, commit
    data                      datalists: [{name, sha256, counts}], encoder: provenance of the first weights, or null
    cases                     [{case, metrics: {name: number | null}, preview: relative path of a PNG (optional)}]
    metrics                   {name: {value, n, interval: [low, high] | null, higher_is_better}}
    curves                    {name: [[step, value], ...]}
    timings                   {name: seconds}
    alarms                    of a pre-training: [{first_step, last_step, text}] (optional)
    examples                  of a pre-training: [{kind, name, ...}] (optional), picture: relative path of a PNG
        kind position         (where none is given) {picture, grid, crops: [{center: [x, y] in base crops,
                              true: [share of each base], predicted: [...]}]}
        kind neighbours       {picture: rows of square tiles, a query and its neighbours by each encoder, encoders,
                              sources, source_of: [[number of each tile's source, -1 for none], ...]}
        kind map              {encoders, points: {encoder: [[x, y], ...]}, sources, source_of: [number, ...],
                              modalities, modality_of: [number, ...]}
    peak_memory_mb            number | null

A number that could not be computed is ``null``, never 0 and never absent.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import read_json, write_json

__all__ = [
    "FORMAT",
    "KINDS",
    "environment",
    "new_results",
    "peak_memory_mb",
    "read_results",
    "validate_results",
    "write_results",
]

FORMAT = "lvmmed-results/1"
KINDS = ("pretraining", "training", "evaluation", "inference", "benchmark")
_PACKAGES = (
    "lvmmed-monai",
    "torch",
    "monai",
    "pytorch-ignite",
    "numpy",
    "scipy",
    "numba",
    "nibabel",
    "pydicom",
    "highdicom",
)
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "name": str,
    "created": str,
    "command": str,
    "environment": dict,
    "data": dict,
    "cases": list,
    "metrics": dict,
    "curves": dict,
    "timings": dict,
}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, or None where the package was installed from a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() or None


def _command() -> str:
    """This process's command line, as one can type it again."""
    module = sys.modules["__main__"].__spec__
    words = ["python", "-m", module.name.removesuffix(".__main__")] if module else [Path(sys.argv[0]).name]
    return shlex.join([*words, *sys.argv[1:]])


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, platform, device and commit of this run."""
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "device": device,
        "commit": _commit(),
    }


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def new_results(kind: str, name: str, *, seed: int | None, device: str = "cpu") -> dict[str, Any]:
    """An empty, valid results record of this process."""
    return {
        "format": FORMAT,
        "kind": kind,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "seed": seed,
        "environment": environment(device),
        "data": {"datalists": [], "encoder": None},
        "cases": [],
        "metrics": {},
        "curves": {},
        "timings": {},
        "peak_memory_mb": None,
    }


def _is_number_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _metric_problems(name: str, metric: Any) -> list[str]:
    if not isinstance(metric, dict) or not {"value", "n", "interval", "higher_is_better"} <= metric.keys():
        return [f"metrics.{name}: expected value, n, interval and higher_is_better"]
    interval = metric["interval"]
    pair = isinstance(interval, list) and len(interval) == 2 and all(map(_is_number_or_null, interval))
    ordered = interval is None or (pair and interval[0] <= interval[1])
    problems = [] if ordered else [f"metrics.{name}.interval: expected null or [low, high], got {interval!r}"]
    if not _is_number_or_null(metric["value"]):
        problems.append(f"metrics.{name}.value: expected a finite number or null, got {metric['value']!r}")
    return problems


def _case_problems(case: Any) -> list[str]:
    described = isinstance(case, dict) and isinstance(case.get("case"), str) and isinstance(case.get("metrics"), dict)
    if not described:
        return [f"cases: expected {{case, metrics}}, got {case!r}"]
    if not all(map(_is_number_or_null, case["metrics"].values())):
        return [f"cases.{case['case']}: metrics must be finite numbers or null"]
    return []


def _curve_problems(name: str, curve: Any) -> list[str]:
    points = [isinstance(point, list | tuple) and len(point) == 2 for point in curve]
    if all(points) and all(_is_number_or_null(value) for point in curve for value in point):
        return []
    return [f"curves.{name}: expected [[step, value], ...] of finite numbers"]


def _alarm_problems(alarm: Any) -> list[str]:
    known = isinstance(alarm, dict) and {"first_step", "last_step", "text"} <= alarm.keys()
    return [] if known else [f"alarms: expected {{first_step, last_step, text}}, got {alarm!r}"]


def _position_problems(example: dict[str, Any]) -> list[str]:
    bases = math.prod(example["grid"])
    crops = example["crops"]
    fitting = all(len(crop[key]) == bases for crop in crops for key in ("true", "predicted"))
    numbers = [value for crop in crops for key in ("center", "true", "predicted") for value in crop[key]]
    if fitting and all(map(_is_number_or_null, numbers)):
        return []
    return [f"examples.{example['name']}: expected {bases} finite numbers for each crop"]


def _neighbours_problems(example: dict[str, Any]) -> list[str]:
    rows, names = example["source_of"], len(example["sources"])
    groups = len(example["encoders"])
    even = all(len(row) == len(rows[0]) and (len(row) - 1) % groups == 0 for row in rows)
    if rows and even and all(-1 <= number < names for row in rows for number in row):
        return []
    return [f"examples.{example['name']}: expected rows of a query and equally many neighbours, by number of source"]


def _map_problems(example: dict[str, Any]) -> list[str]:
    count = len(example["source_of"])
    points = [example["points"].get(name, []) for name in example["encoders"]]
    fitting = all(len(one) == count for one in (*points, example["modality_of"]))
    finite = all(len(point) == 2 and all(map(_is_number_or_null, point)) for one in points for point in one)
    kinds = (("source_of", "sources"), ("modality_of", "modalities"))
    named = all(0 <= number < len(example[names]) for numbers, names in kinds for number in example[numbers])
    if fitting and finite and named:
        return []
    return [f"examples.{example['name']}: expected for each picture a finite point, a source and a modality"]


_EXAMPLE_KEYS = {
    "position": ({"name", "picture", "grid", "crops"}, _position_problems),
    "neighbours": ({"name", "picture", "encoders", "sources", "source_of"}, _neighbours_problems),
    "map": ({"name", "encoders", "points", "sources", "source_of", "modalities", "modality_of"}, _map_problems),
}


def _example_problems(example: Any) -> list[str]:
    kind = example.get("kind", "position") if isinstance(example, dict) else "position"
    if kind not in _EXAMPLE_KEYS:
        return [f"examples: expected a kind of {', '.join(_EXAMPLE_KEYS)}, got {kind!r}"]
    keys, problems = _EXAMPLE_KEYS[kind]
    if not isinstance(example, dict) or not keys <= example.keys():
        return [f"examples: expected {{{', '.join(sorted(keys))}}} of kind {kind}"]
    return problems(example)


def validate_results(record: Any) -> list[str]:
    """Problems of a results record; an empty list when it is valid."""
    if not isinstance(record, dict):
        return [f"expected an object, got {type(record).__name__}"]
    if record.get("format") != FORMAT:
        return [f"format: expected {FORMAT!r}, got {record.get('format')!r}"]
    problems = [
        f"{key}: expected {kind}, got {type(record.get(key)).__name__}"
        for key, kind in _REQUIRED.items()
        if not isinstance(record.get(key), kind)
    ]
    if problems:
        return problems
    if record["kind"] not in KINDS:
        problems.append(f"kind: expected one of {', '.join(KINDS)}, got {record['kind']!r}")
    problems += [problem for name, metric in record["metrics"].items() for problem in _metric_problems(name, metric)]
    problems += [problem for case in record["cases"] for problem in _case_problems(case)]
    problems += [problem for alarm in record.get("alarms", []) for problem in _alarm_problems(alarm)]
    problems += [problem for example in record.get("examples", []) for problem in _example_problems(example)]
    return problems + [problem for name, curve in record["curves"].items() for problem in _curve_problems(name, curve)]


def write_results(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write a results record atomically.

    Raises:
        ValueError: the record is not valid (a mistake in our code, not the user's).
    """
    problems = validate_results(record)
    if problems:
        raise ValueError("results record: " + "; ".join(problems))
    write_json(path, record)


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and validate a results file.

    Raises:
        UserError: missing, not JSON, or not a results file.
    """
    record = read_json(path, "results file")
    problems = validate_results(record)
    if problems:
        raise UserError(f"not a valid results file ({problems[0]}); {path}; run the step again")
    return record
