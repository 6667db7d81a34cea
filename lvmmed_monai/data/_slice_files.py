"""The files of a slice cache: where they are, how large they will be, and whether what is there is sound."""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lvmmed_monai.data._datalist_rules import image_paths
from lvmmed_monai.data.images import is_image, spatial_shape
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import read_json, sha256_json, write_json

__all__ = ["SliceEntry", "cache_path", "missing_bytes", "read_index", "record_of", "resume", "stamp", "write_index"]

_LOG = logging.getLogger(__name__)
_VERSION = 2
# Headers that are looked at to foretell the size.
_PROBES = 100


class SliceEntry(NamedTuple):
    """One picture of the cache: the item and the stack in it that it came from, where its pixels begin, its shape."""

    item: int
    stack: int
    offset: int
    channels: int
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.channels * self.height * self.width


def cache_path(
    items: Sequence[Mapping[str, Any]],
    folder: str | Path,
    *,
    settings: Mapping[str, Any],
    size: int = 256,
    min_foreground: float = 0.05,
) -> Path:
    """Where `SliceCache` keeps the pixels of these items; nothing is read or made."""
    what = {"settings": dict(settings), "size": size, "min_foreground": min_foreground, "version": _VERSION}
    files = [[Path(path) for path in image_paths(item)] for item in items]
    key = sha256_json([what, [[str(path.resolve()) for path in one] for one in files]])[:16]
    return Path(folder) / f"{key}-{sha256_json([[stamp(path) for path in one] for one in files])[:16]}.bin"


def missing_bytes(items: Sequence[Mapping[str, Any]], path: Path, size: int, planes: int = 1) -> int:
    """Bytes that building the cache at ``path`` will still need, at most, from the headers of a sample of the files.

    Args:
        items, size, planes: as for `SliceCache`.
        path: from `cache_path`.
    """
    there = sum(one.stat().st_size for one in (path, path.with_suffix(".partial")) if one.exists())
    if path.exists() and path.with_suffix(".json").exists():
        return max(0, read_json(path.with_suffix(".json"), "slice cache index")["bytes"] - there)
    paths = [one for item in items for one in image_paths(item)]
    # Some room is kept free; a partial file already occupies its part of the estimate.
    return max(0, int(1.1 * _estimate(paths, size, planes)) - there)


def stamp(path: Path) -> list[int] | None:
    """Size and time of change; None for a file that is not there, which is reported when it is read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _estimate(paths: Sequence[str], size: int, planes: int) -> int:
    """Bytes that the pictures will take at most."""
    sample = [path for path in paths[:: max(1, len(paths) // _PROBES)] if is_image(path)]
    counts = []
    for path in sample:
        try:
            shape = spatial_shape(path)
        except DataError:
            # It will be reported when it is prepared.
            continue
        if len(shape) == 2:
            counts.append(3 * _pixels(*shape, size))
            continue
        x, y, z = shape
        cuts = sorted((z * _pixels(x, y, size), y * _pixels(x, z, size), x * _pixels(y, z, size)))
        counts.append(sum(cuts[-planes:]))
    return sum(counts) * len(paths) // max(1, len(counts))


def _pixels(width: int, height: int, size: int) -> int:
    factor = min(1.0, size / max(width, height))
    return math.ceil(width * factor) * math.ceil(height * factor)


def record_of(
    end: int, entries: Sequence[SliceEntry] = (), skipped: int = 0, checksum: int = 0, rejected: str | None = None
) -> dict[str, Any]:
    """What the journal and the index say of an item; ``end`` is where its pixels end."""
    return {"end": end, "entries": list(entries), "skipped": skipped, "checksum": checksum, "rejected": rejected}


def write_index(path: Path, records: Sequence[Mapping[str, Any]], of: Path | None = None) -> None:
    """Write the index of the pixels at ``path``, which still lie at ``of``."""
    size, modified = stamp(of or path) or [0, 0]
    write_json(path.with_suffix(".json"), {"bytes": size, "modified": modified, "items": records})


def read_index(path: Path) -> dict[str, Any] | None:
    """The index of a whole cache, or None. A damaged one is turned into an unfinished one of its sound items."""
    index_path = path.with_suffix(".json")
    if not index_path.exists() or not path.exists():
        return None
    try:
        index = read_json(index_path, "slice cache index")
    except UserError:
        index = None
    if index and stamp(path) == [index["bytes"], index["modified"]]:
        return index
    records = index["items"] if index else []
    sound = _sound(path, records)
    if index and len(sound) == len(records) and path.stat().st_size == index["bytes"]:
        write_index(path, records)
        return index
    _LOG.warning("the slice cache is damaged after %d of %d images; %s; it is repaired", len(sound), len(records), path)
    os.replace(path, path.with_suffix(".partial"))
    lines = "".join(json.dumps(record) + "\n" for record in sound)
    path.with_suffix(".journal").write_text(lines, encoding="utf-8")
    index_path.unlink()
    return None


def _sound(path: Path, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of the records, as far as the pixels at ``path`` have their checksums."""
    offset = 0
    with path.open("rb") as pixels:
        for number, record in enumerate(records):
            content = pixels.read(record["end"] - offset)
            if len(content) < record["end"] - offset or zlib.crc32(content) != record["checksum"]:
                return list(records[:number])
            offset = record["end"]
    return list(records)


def resume(partial: Path, journal: Path) -> list[dict[str, Any]]:
    """The journal lines whose pixels are whole; cuts both files back to them."""
    if not partial.exists() or not journal.exists():
        partial.unlink(missing_ok=True)
        journal.unlink(missing_ok=True)
        return []
    records: list[dict[str, Any]] = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    kept = _sound(partial, records)
    journal.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    os.truncate(partial, kept[-1]["end"] if kept else 0)
    return kept
