"""Pictures and slices of volumes, decoded once, in one memory-mapped file.

    <folder>/<what>-<inputs>.bin     the pixels, uint8, one (C, H, W) array after the other
    <folder>/<what>-<inputs>.json    where each array lies, its shape, and the item it came from

``what`` is a hash of the settings and the files' places, ``inputs`` of the files' sizes and times of change. Changed
settings or files therefore never meet old pixels, and pixels of files that have changed are removed. An interrupted
build goes on after the last whole item; processes that want the same cache wait for the one that builds it.

The index holds a checksum of each item's pixels, and the size and time of change of the pixel file. While these two are
as they were left, a start costs no reading; else every checksum is compared, and from the first damaged item on the
file is built again.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lvmmed_monai.data._datalist_rules import image_paths
from lvmmed_monai.data._slice_files import (
    SliceEntry,
    cache_path,
    missing_bytes,
    read_index,
    record_of,
    resume,
    write_index,
)
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import locked, output_folder, read_json
from lvmmed_monai.log import track

__all__ = ["SliceCache", "SliceEntry", "cache_path", "missing_bytes"]

_LOG = logging.getLogger(__name__)
# Images left out that a warning names.
_NAMED = 5
#: A pixel brighter than this part of the intensity range counts as showing something.
FOREGROUND_LEVEL = 0.05

Prepare = Callable[[Mapping[str, Any]], Sequence[NDArray[np.floating]]]


class SliceCache:
    """Pictures of a list of items, as uint8 tensors.

    An image that is missing, cannot be read or is corrupt is left out, counted and named in a warning, until its file
    changes: one bad file must not end the pre-training on thousands.

    Args:
        items: datalist items; ``image`` is a path or a list of paths.
        prepare: gives an item's stacks, arrays (C, S, H, W) of S slices, 0 to 1; a picture is one slice. It raises
            `DataError` for an image that cannot be used. It must be deterministic, and all it depends on apart from
            the item's files must stand in ``settings``.
        folder: where the files are kept; shared by runs.
        settings: JSON values.
        size: the longer side is reduced to this many pixels; smaller pictures stay as they are.
        min_foreground: slices of volumes are left out when a smaller part of their pixels than this is brighter than
            ``FOREGROUND_LEVEL``. Pictures are never left out.
        planes: in how many directions volumes are cut, for the size that is foretold.

    Attributes:
        path: the pixel file.
        entries: one `SliceEntry` per picture.
        built: items prepared now; 0 when the cache was found.
        skipped: slices left out as empty.
        rejected: what is wrong with each image that is left out, by the number of its item.

    Raises:
        UserError: the folder cannot be written to or is too small, or a prepared array is not what it must be.
        DataError: nothing is left to look at.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        prepare: Prepare,
        folder: str | Path,
        *,
        settings: Mapping[str, Any],
        size: int = 256,
        min_foreground: float = 0.05,
        planes: int = 1,
    ) -> None:
        self.items = list(items)
        self.size, self.min_foreground, self.built = size, min_foreground, 0
        folder = output_folder(folder)
        self.path = cache_path(self.items, folder, settings=settings, size=size, min_foreground=min_foreground)
        self._pixels: NDArray[np.uint8] | None = None
        with locked(folder / f"{self._what}.lock"):
            index = read_index(self.path)
            if index is None:
                self._build(prepare, planes)
                index = read_json(self.path.with_suffix(".json"), "slice cache index")
        self.entries = [SliceEntry(*entry) for record in index["items"] for entry in record["entries"]]
        self.skipped: int = sum(record["skipped"] for record in index["items"])
        problems = {number: record["rejected"] for number, record in enumerate(index["items"])}
        self.rejected: dict[int, str] = {number: why for number, why in problems.items() if why}
        self._report()

    @property
    def _what(self) -> str:
        return self.path.name.partition("-")[0]

    def _report(self) -> None:
        _LOG.info(
            "slice cache: %d pictures of %d images, %.1f MB (%d images prepared now, %d empty slices left out)",
            len(self.entries), len(self.items), self.path.stat().st_size / 1e6, self.built, self.skipped,
        )  # fmt: skip
        named = [f"{_name(self.items[number])}: {why}" for number, why in self.rejected.items()]
        more = f", and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        what = f"{len(named)} of {len(self.items)} images cannot be used ({', '.join(named[:_NAMED])}{more})"
        remedy = "repair them or take them out of the datalist"
        if not self.entries:
            raise DataError(
                f"{what}; slice cache; {remedy}"
                if named
                else f"no picture is left of {len(self.items)} images; slice cache; check them or lower min_foreground"
            )
        if named:
            _LOG.warning("%s; they are left out; %s", what, remedy)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Tensor:
        """(C, H, W) uint8."""
        if self._pixels is None:
            # Mapped at first use in each process: data loader workers open it for themselves.
            self._pixels = np.memmap(self.path, np.uint8, mode="r")
        entry = self.entries[index]
        flat = np.array(self._pixels[entry.offset : entry.offset + entry.nbytes])
        return torch.from_numpy(flat).view(entry.channels, entry.height, entry.width)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}

    def item(self, index: int) -> Mapping[str, Any]:
        """The datalist item that a picture came from."""
        return self.items[self.entries[index].item]

    def _build(self, prepare: Prepare, planes: int) -> None:
        partial, journal = self.path.with_suffix(".partial"), self.path.with_suffix(".journal")
        need = missing_bytes(self.items, self.path, self.size, planes)
        _LOG.info(
            "slice cache: preparing %d images, about %.1f MB more in %s", len(self.items), need / 1e6, self.path.parent
        )
        output_folder(self.path.parent, need_bytes=need)
        finished = resume(partial, journal)
        offset = finished[-1]["end"] if finished else 0
        with partial.open("ab") as pixels, journal.open("a", encoding="utf-8") as lines:
            for number in track(range(len(finished), len(self.items)), "slice cache"):
                record = self._add(number, prepare, pixels, offset)
                offset = record["end"]
                pixels.flush()
                lines.write(json.dumps(record) + "\n")
                lines.flush()
                finished.append(record)
                self.built += 1
            os.fsync(pixels.fileno())
        # In this order a process that is killed in between goes on with what is there.
        write_index(self.path, finished, of=partial)
        os.replace(partial, self.path)
        journal.unlink()
        for old in self.path.parent.glob(f"{self._what}-*"):
            if old.stem != self.path.stem:
                old.unlink()

    def _add(self, number: int, prepare: Prepare, pixels: Any, offset: int) -> dict[str, Any]:
        """Append the pictures of one item; returns its line of the journal."""
        entries, skipped, checksum = [], 0, 0
        try:
            stacks = prepare(self.items[number])
        except DataError as error:
            return record_of(offset, rejected=str(error).partition("; ")[0])
        for place, stack in enumerate(stacks):
            for picture in self._reduced(torch.as_tensor(np.asarray(stack), dtype=torch.float32)):
                if stack.shape[1] > 1 and float((picture > FOREGROUND_LEVEL).float().mean()) < self.min_foreground:
                    skipped += 1
                    continue
                entry = SliceEntry(number, place, offset, *picture.shape)
                content = (picture * 255).round().to(torch.uint8).contiguous().numpy().tobytes()
                checksum = zlib.crc32(content, checksum)
                pixels.write(content)
                offset += entry.nbytes
                entries.append(entry)
        return record_of(offset, entries, skipped, checksum)

    def _reduced(self, stack: Tensor) -> Tensor:
        """(C, S, H, W) to (S, C, h, w) with the longer side at most ``size``."""
        if stack.ndim != 4 or not stack.numel():
            raise UserError(f"prepared slices have shape {tuple(stack.shape)}; slice cache; give (C, S, H, W)")
        if not (bool(torch.isfinite(stack).all()) and float(stack.min()) >= 0 and float(stack.max()) <= 1):
            raise UserError("prepared slices have values outside 0..1; slice cache; check the intensity settings")
        stack = stack.transpose(0, 1)
        factor = self.size / max(stack.shape[2:])
        if factor >= 1:
            return stack
        shape = [max(1, round(factor * side)) for side in stack.shape[2:]]
        return functional.interpolate(stack, shape, mode="bilinear", antialias=True).clamp(0, 1)


def _name(item: Mapping[str, Any]) -> str:
    return Path(image_paths(item)[0]).name
