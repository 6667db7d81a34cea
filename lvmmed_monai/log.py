"""What a command says on stderr while it works: plain lines without identifiers, and how far it is."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["configure_logging", "track"]

_LOG = logging.getLogger(__name__)

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 5.0

# Each of these repeats one harmless notice at every file or every configuration that is read.
_CHATTER = (
    "monai.data.nvimgcodec_pydicom_plugin",
    "monai.bundle.config_parser",
    "nibabel.global",
    "highdicom",
    "pydicom",
)


def configure_logging(*, quiet: bool = False, debug: bool = False) -> None:
    """Set up the root logger of a command; libraries and modules only call ``logging.getLogger(__name__)``."""
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", force=True)
    if debug:
        return
    for name in _CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(monai|pydicom|highdicom)(\.|$)")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(monai|torch|ignite)(\.|$)")


def track(iterable: Iterable[Item], description: str, total: int | None = None, quiet: bool = False) -> Iterator[Item]:
    """Yield from ``iterable`` and show how far it is: a bar with the time left on a terminal, lines elsewhere.

    Both go to stderr in a command; stdout is for results.

    Args:
        iterable: what is worked through.
        description: what is done, for the reader ("reading series").
        total: number of items, if ``iterable`` has no length.
        quiet: show nothing; so it is, too, where information is not logged.
    """
    quiet = quiet or not _LOG.isEnabledFor(logging.INFO)
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
            _LOG.info(_line(description, done, total, now - start))
    _LOG.info(f"{description}: {done} done in {time.monotonic() - start:.1f} s")


def _line(description: str, done: int, total: int | None, elapsed: float) -> str:
    if not total:
        return f"{description}: {done}, {elapsed:.0f} s"
    return f"{description}: {done} of {total}, {elapsed:.0f} s, about {elapsed / done * (total - done):.0f} s left"
