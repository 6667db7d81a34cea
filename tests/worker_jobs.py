"""Jobs for the tests of workers: importable in other processes, and quick to import."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from lvmmed_monai.dicom.problems import DicomError


def square(number: int) -> int:
    return number * number


def process_of(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def array_of(count: int) -> np.ndarray:
    return np.arange(count)


def refuse_odd(number: int) -> int:
    if number % 2:
        raise DicomError("F04", f"{number} bytes", "an even number")
    return number


def fail(number: int) -> int:
    if number == 3:
        raise KeyError("three")
    return number


class OddError(Exception):
    """Cannot be copied: its arguments are not those of its constructor."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_oddly(number: int) -> int:
    raise OddError(number, number)


def give_function(number: int) -> object:
    return lambda: number


def misbehave(what: str) -> str:
    if what == "memory":
        return str(np.ones(8 * 1024**3, dtype=np.uint8).sum())
    if what == "slow memory":
        return str(len([bytes(1024**2) for _ in range(8 * 1024)]))
    if what == "time":
        time.sleep(1000)
    if what == "computing":
        while True:
            pass
    if what == "exit":
        os._exit(9)
    if what == "sys.exit":
        sys.exit(3)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "recursion":
        return misbehave(what)
    return what


def be_noisy(text: str) -> str:
    print(text)
    print(text, file=sys.stderr, flush=True)
    os.write(1, text.encode())
    os.write(2, text.encode())
    warnings.warn(text, stacklevel=1)
    return text


def break_the_next(path: str) -> str:
    """The first job in each process is fine, and every later one crashes."""
    if os.environ.get("WORKER_JOBS_BROKEN"):
        os._exit(5)
    os.environ["WORKER_JOBS_BROKEN"] = "1"
    return path


def note_and_wait(path: str) -> None:
    """Leave the process id in a file, then never end."""
    Path(path).with_suffix(".part").write_text(str(os.getpid()))
    Path(path).with_suffix(".part").rename(path)
    while True:
        time.sleep(1)


def loaded_modules(_: int) -> list[str]:
    return [name for name in ("torch", "monai", "pytest", "numpy", "pydicom") if name in sys.modules]


def threads_of(_: int) -> tuple[str | None, int]:
    (np.ones((300, 300)) @ np.ones((300, 300))).sum()
    return os.environ.get("OMP_NUM_THREADS"), len(os.listdir("/proc/self/task"))


def marked_square(job: tuple[str, int]) -> int:
    """Leave a mark in a folder that names number, process and parent; then wait for the file ``go`` there."""
    folder, number = job
    (Path(folder) / f"{number}-{os.getpid()}-{os.getppid()}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return number * number
