"""Pictures and slices of volumes, decoded once, in one memory-mapped file.

    <folder>/<what>-<inputs>.bin     the pixels, uint8, one (C, H, W) array after the other
    <folder>/<what>-<inputs>.json    where each array lies, its shape, and the item it came from

``what`` is a hash of the settings and the files' places, ``inputs`` of the files' sizes and times of change. Changed
settings or files therefore never meet old pixels, and pixels of files that have changed are removed. An interrupted
build goes on after the last whole item; processes that want the same cache wait for the one that builds it.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lvmmed_monai.data.images import is_image, spatial_shape
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import locked, output_folder, read_json, sha256_json, write_json
from lvmmed_monai.log import track

__all__ = ["SliceCache", "SliceEntry"]

_LOG = logging.getLogger(__name__)
_VERSION = 1
_PROBES = 100
#: A pixel brighter than this part of the intensity range counts as showing something.
FOREGROUND_LEVEL = 0.05

Prepare = Callable[[Mapping[str, Any]], Sequence[NDArray[np.floating]]]


class SliceEntry(NamedTuple):
    """One picture of the cache: the item it came from, where its pixels begin, and its shape."""

    item: int
    offset: int
    channels: int
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.channels * self.height * self.width


class SliceCache:
    """Pictures of a list of items, as uint8 tensors.

    Args:
        items: datalist items; ``image`` is a path or a list of paths.
        prepare: gives an item's stacks, arrays (C, S, H, W) of S slices, 0 to 1; a picture is one slice. It must be
            deterministic, and all it depends on apart from the item's files must stand in ``settings``.
        folder: where the files are kept; shared by runs.
        settings: JSON values.
        size: the longer side is reduced to this many pixels; smaller pictures stay as they are.
        min_foreground: slices of volumes are left out when a smaller part of their pixels than this is brighter than
            ``FOREGROUND_LEVEL``. Pictures are never left out.

    Attributes:
        path: the pixel file.
        entries: one `SliceEntry` per picture.
        built: items prepared now; 0 when the cache was found.
        skipped: slices left out as empty.

    Raises:
        UserError: the folder cannot be written to, or is too small.
        DataError: a file is missing, or nothing is left to look at.
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
    ) -> None:
        self.items = list(items)
        self.size, self.min_foreground, self.built = size, min_foreground, 0
        what = {"settings": dict(settings), "size": size, "min_foreground": min_foreground, "version": _VERSION}
        files = [_files(item) for item in self.items]
        self._what = sha256_json([what, [[str(path.resolve()) for path in one] for one in files]])[:16]
        name = f"{self._what}-{sha256_json([[_stamp(path) for path in one] for one in files])[:16]}"
        folder = output_folder(folder)
        self.path = folder / f"{name}.bin"
        self._pixels: NDArray[np.uint8] | None = None
        with locked(folder / f"{self._what}.lock"):
            index = self._read_index()
            if index is None:
                self._build(prepare)
                index = self._read_index()
        if index is None or not index["entries"]:
            raise DataError(
                f"no picture is left of {len(self.items)} images; slice cache; check them or lower min_foreground"
            )
        self.entries = [SliceEntry(*entry) for entry in index["entries"]]
        self.skipped: int = index["skipped"]
        _LOG.info(
            "slice cache: %d pictures of %d images, %.1f MB (%d images prepared now, %d empty slices left out)",
            len(self.entries), len(self.items), self.path.stat().st_size / 1e6, self.built, self.skipped,
        )  # fmt: skip

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

    def _read_index(self) -> dict[str, Any] | None:
        """The index of a finished cache, or None where there is none or its pixels are gone."""
        path = self.path.with_suffix(".json")
        if not path.exists() or not self.path.exists():
            return None
        index = read_json(path, "slice cache index")
        return index if self.path.stat().st_size == index["bytes"] else None

    def _build(self, prepare: Prepare) -> None:
        expected = _estimate([path for item in self.items for path in _files(item)], self.size)
        _LOG.info(
            "slice cache: preparing %d images, about %.1f MB in %s", len(self.items), expected / 1e6, self.path.parent
        )
        partial, journal = self.path.with_suffix(".partial"), self.path.with_suffix(".journal")
        finished = _resume(partial, journal)
        offset = finished[-1]["end"] if finished else 0
        # Some room is kept free; a partial file already occupies its part of the estimate.
        output_folder(self.path.parent, need_bytes=max(0, int(1.1 * expected) - offset))
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
        os.replace(partial, self.path)
        entries = [entry for record in finished for entry in record["entries"]]
        skipped = sum(record["skipped"] for record in finished)
        write_json(self.path.with_suffix(".json"), {"bytes": offset, "skipped": skipped, "entries": entries})
        journal.unlink()
        for old in self.path.parent.glob(f"{self._what}-*"):
            if old.stem != self.path.stem:
                old.unlink()

    def _add(self, number: int, prepare: Prepare, pixels: Any, offset: int) -> dict[str, Any]:
        """Append the pictures of one item; returns its line of the journal."""
        entries, skipped = [], 0
        for stack in prepare(self.items[number]):
            for picture in self._reduced(torch.as_tensor(np.asarray(stack), dtype=torch.float32)):
                if stack.shape[1] > 1 and float((picture > FOREGROUND_LEVEL).float().mean()) < self.min_foreground:
                    skipped += 1
                    continue
                entry = SliceEntry(number, offset, *picture.shape)
                pixels.write((picture * 255).round().to(torch.uint8).contiguous().numpy().tobytes())
                offset += entry.nbytes
                entries.append(entry)
        return {"end": offset, "skipped": skipped, "entries": entries}

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


def _files(item: Mapping[str, Any]) -> list[Path]:
    image = item["image"]
    return [Path(path) for path in (image if isinstance(image, list | tuple) else [image])]


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"an image cannot be read ({error.strerror}); {path.name}; check the datalist") from None
    return [status.st_size, status.st_mtime_ns]


def _estimate(paths: Sequence[Path], size: int) -> int:
    """Bytes that the pictures will take at most, from the headers of a sample of the files."""
    sample = [path for path in paths[:: max(1, len(paths) // _PROBES)] if is_image(path)]
    total = 0
    for path in sample:
        width, height, slices = (*spatial_shape(path), 1)[:3]
        factor = min(1.0, size / max(width, height))
        channels = 1 if path.suffix in (".gz", ".nii") else 3
        total += math.ceil(width * factor) * math.ceil(height * factor) * slices * channels
    return total * len(paths) // max(1, len(sample))


def _resume(partial: Path, journal: Path) -> list[dict[str, Any]]:
    """The journal lines whose pixels are whole; cuts both files back to them."""
    if not partial.exists() or not journal.exists():
        partial.unlink(missing_ok=True)
        journal.unlink(missing_ok=True)
        return []
    size = partial.stat().st_size
    kept: list[dict[str, Any]] = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["end"] > size:
            break
        kept.append(record)
    journal.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.truncate(partial, kept[-1]["end"] if kept else 0)
    return kept
