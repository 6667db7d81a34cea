"""One run at a time in an output folder, and nothing half-written in it from the run before."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import remove_partial

__all__ = ["UNPACKED", "hold"]

_FOLDERS = (".", "images", "labels", "previews")
UNPACKED = ".unpacked-"
"""How the names of folders begin that hold what is unpacked; those of a killed run are removed by the next one."""


@contextmanager
def hold(out: Path) -> Iterator[Path]:
    """Keep other runs out of an output folder, and remove what a killed run, or a killed worker, left half-written.

    The system lets go of the folder however this process ends. On a file system without locks nothing is held,
    and then nothing is removed either: it may be another run's.

    Yields:
        A folder in it for what is unpacked, of mode 0700, where all workers see it; it is gone afterwards.

    Raises:
        UserError: another run is at work in it.
    """
    folder = os.open(out, os.O_RDONLY)
    try:
        held = _locked(folder, out)
        if held:
            _sweep(out)
        try:
            with tempfile.TemporaryDirectory(prefix=UNPACKED, dir=out, ignore_cleanup_errors=True) as scratch:
                yield Path(scratch)
        finally:
            if held:
                _sweep(out)
    finally:
        os.close(folder)


def _locked(folder: int, out: Path) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another ingest is writing to the output folder; {out}; wait for its end, or choose another folder"
        ) from None
    except OSError:
        return False
    return True


def _sweep(out: Path) -> None:
    for name in _FOLDERS:
        remove_partial(out / name)
    for scratch in out.glob(f"{UNPACKED}*"):
        shutil.rmtree(scratch, ignore_errors=True)
