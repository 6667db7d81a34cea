"""Progress of a long command: a bar with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["track"]

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 5.0


def track(iterable: Iterable[Item], description: str, total: int | None = None, quiet: bool = False) -> Iterator[Item]:
    """Yield from ``iterable`` and show how far it is, on stderr (stdout is for results).

    Args:
        iterable: what is worked through.
        description: what is done, for the reader ("reading series").
        total: number of items, if ``iterable`` has no length.
        quiet: show nothing.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if quiet:
        return iter(iterable)
    return _bar(iterable, description, total) if sys.stderr.isatty() else _lines(iterable, description, total)


def _bar(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(iterable, total=total, description=description)


def _lines(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(_line(description, done, total, now - start), file=sys.stderr, flush=True)
    print(f"{description}: {done} done in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def _line(description: str, done: int, total: int | None, elapsed: float) -> str:
    if not total:
        return f"{description}: {done}, {elapsed:.0f} s"
    return f"{description}: {done} of {total}, {elapsed:.0f} s, about {elapsed / done * (total - done):.0f} s left"
