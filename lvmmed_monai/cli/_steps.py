"""Steps of a longer job: each one or more ``lvmmed`` commands, shown, run, and remembered when they are done."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvmmed_monai import __version__
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import output_folder, read_json, write_json

__all__ = ["Step", "minutes", "remove", "run_steps"]

_INTERRUPTED = 130


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: short name, also of the file that remembers it.
        title: what it does, for the reader.
        commands: gives the words after ``lvmmed`` of each command; called when the earlier steps are done.
        outputs: files and folders that the step makes.
        continues: whether an interrupted run of the same commands takes up its own outputs; else they are removed.
    """

    name: str
    title: str
    commands: Callable[[], list[list[str]]]
    outputs: Sequence[Path]
    continues: bool = False


def run_steps(steps: Sequence[Step], state: Path) -> float:
    """Run the steps in order; one that was done by the same commands on the same inputs is not done again.

    Args:
        steps: the steps.
        state: folder that remembers what was done.

    Returns:
        Seconds that all steps took, those of earlier calls included.

    Raises:
        UserError: a step failed (`DataError` if it exited with 3).
        KeyboardInterrupt: a step was interrupted.
    """
    output_folder(state)
    key, total = __version__, 0.0
    for number, step in enumerate(steps, start=1):
        commands = step.commands()
        # What a step starts from is known by the commands of all steps before it.
        key = hashlib.sha256(json.dumps([key, commands]).encode()).hexdigest()
        record = state / f"{number:02d}-{step.name}.json"
        known = read_json(record, "step record") if record.is_file() else {}
        print(f"\n[step {number} of {len(steps)}] {step.title}  (so far {minutes(total)})", flush=True)
        done = known.get("key") == key and known.get("seconds") is not None
        if done and all(path.exists() for path in step.outputs):
            print("  done before, kept", flush=True)
            total += known["seconds"]
            continue
        if not (step.continues and known.get("key") == key):
            remove(step.outputs)
        write_json(record, {"key": key, "seconds": None})
        seconds = _run(step, f"step {number} of {len(steps)}, {step.title}", commands)
        write_json(record, {"key": key, "seconds": seconds})
        total += seconds
    return total


def minutes(seconds: float) -> str:
    """``3 min 05 s``."""
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def remove(paths: Sequence[Path]) -> None:
    """Remove files and folders, where they are there."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _run(step: Step, where: str, commands: Sequence[Sequence[str]]) -> float:
    start = time.monotonic()
    for words in commands:
        print(f"  $ {shlex.join(['lvmmed', *words])}", flush=True)
        # Waiting threads sleep: where another program uses the cores, spinning ones make torch several times slower.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1"}
        code = subprocess.run([sys.executable, "-m", "lvmmed_monai", *words], env=environment).returncode
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        if code != 0:
            raise _failure(where, code)
    seconds = time.monotonic() - start
    print(f"  done in {minutes(seconds)}", flush=True)
    return round(seconds, 1)


def _failure(where: str, code: int) -> UserError:
    if code < 0:
        reason = f"was ended by signal {-code}" + (", as when memory is full" if code == -9 else "")
        return UserError(
            f"the command {reason}; {where}; close other programs, then start again: finished steps are kept"
        )
    kind = DataError if code == DataError.exit_code else UserError
    return kind(
        f"the command failed, for the reason above; {where}; correct that and start again: finished steps are kept"
    )
