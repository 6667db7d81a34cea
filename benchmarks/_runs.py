"""What benchmarks of many runs share: who does which, what is kept, bundles in this process, means with intervals."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lvmmed_monai.cli.run import config_files, find_bundle
from lvmmed_monai.files import read_json, write_json
from lvmmed_monai.results import environment


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process is to make the file ``path``: it is not there, and no other process is making it.

    The claim is a lock that ends with the process, so that what a killed process began is begun again.
    """
    import fcntl

    with path.with_suffix(".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield not path.exists()


def keep(path: Path, figures: Mapping[str, Any]) -> None:
    """Write what a run gave, with the commit that it ran on."""
    write_json(path, {**figures, "commit": environment()["commit"]})


def commits(paths: Iterable[Path]) -> str:
    """A line that names the commits that these files' figures are of; what is kept outlives a change of the code."""
    counts = Counter(str(read_json(path, "result").get("commit", "unknown")) for path in paths if path.exists())
    return "Figures of commit " + ", ".join(f"{commit} ({count} runs)" for commit, count in sorted(counts.items()))


def run_bundle(name: str, config: str, **settings: Any) -> float:
    """Run a configuration of a bundle in this process; gives the CPU seconds that it took."""
    from monai.bundle import run

    for announcer in ("monai.bundle.scripts", "monai.bundle.workflows"):
        logging.getLogger(announcer).setLevel(logging.ERROR)
    folder = find_bundle(name)
    files = [str(path) for path in config_files(folder, config)]
    values = {key: "$None" if value is None else value for key, value in settings.items()}
    start = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        run(config_file=files if len(files) > 1 else files[0], bundle_root=str(folder), logging_file=False, **values)
    return time.process_time() - start


def absolute(item: dict[str, Any], where: Path) -> dict[str, Any]:
    """A datalist item with absolute paths."""
    paths = {key: value for key, value in item.items() if key in ("image", "label") and isinstance(value, str)}
    return {**item, **{key: str(where / value) for key, value in paths.items()}}


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); NaN for one value."""
    values = np.asarray(values)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    error = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * error)


def metric(values: Sequence[float] | np.ndarray, **more: Any) -> dict[str, Any]:
    """A metric of the results format."""
    mean, half = interval(values)
    bounds = [mean - half, mean + half] if np.isfinite(half) else None
    return {"value": mean, "n": len(values), "interval": bounds, "higher_is_better": True, **more}
