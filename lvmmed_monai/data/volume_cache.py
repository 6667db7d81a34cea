"""Prepared volumes on disk, read window by window.

A volume goes through its deterministic preparation once (reading, orientation, resampling, intensity to 0..1,
crop to the body) and is kept in one uncompressed file of chunks, 8 or 16 bit, that is mapped into memory: a window
of it costs a window's worth of reading, whatever the volume's size. Nothing random is ever stored.

    <folder>/<settings>/<volume>-<inputs>.vol      array (C, X, Y, Z); shape (C, 0, 0, 0) marks a volume of air

``settings`` is a hash of the preparation's settings, ``volume`` of the files' places, ``inputs`` of the files' sizes
and times of change and of the item's modality and body part. So changed settings never meet old arrays, a changed
file is prepared again and its old array removed, and an interrupted build goes on where it stopped, since a file is
whole or absent. Processes that want the same volumes wait for the one that prepares them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.data._chunks import ChunkedFile, open_chunks, write_chunks
from lvmmed_monai.data._datalist_rules import image_paths
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import locked, output_folder, remove_partial, sha256_json
from lvmmed_monai.log import track

__all__ = ["VolumeCache", "foreground_box"]

_LOG = logging.getLogger(__name__)
_VERSION = 2
_DTYPES = {"uint8": np.uint8, "float16": np.float16}
# Headers that are looked at to foretell the size, and volumes left out that a warning names.
_PROBES = 100
_NAMED = 5
_SUFFIX = ".vol"


def foreground_box(volume: NDArray[np.floating], threshold: float = 0.0) -> tuple[slice, slice, slice] | None:
    """The smallest box of (C, X, Y, Z) outside which nothing is brighter than ``threshold``; None if nothing is."""
    body = np.any(volume > threshold, axis=0)
    slices = []
    for others in ((1, 2), (0, 2), (0, 1)):
        present = np.flatnonzero(np.any(body, axis=others))
        if not len(present):
            return None
        slices.append(slice(int(present[0]), int(present[-1]) + 1))
    return slices[0], slices[1], slices[2]


class VolumeCache:
    """Prepared volumes of a list of items.

    A volume that is missing, cannot be read or is corrupt is left out, counted and named in a warning: one bad file
    must not end the pre-training on thousands. It is tried again at the next start.

    Args:
        items: datalist items; ``image`` is a path or a list of paths.
        prepare: makes an item's array, (C, X, Y, Z) or (X, Y, Z), 0 to 1; raises `DataError` for an image that cannot
            be used. It must be deterministic, and everything it depends on apart from the item's files, modality
            and body part must stand in ``settings``.
        folder: where the arrays are kept; shared by runs.
        settings: JSON values.
        dtype: "uint8" (256 grey levels) or "float16".
        voxels: foretells the number of voxels of an item's array from headers, for the size that is announced and
            looked for on the disk before the first volume is prepared; nothing is foretold without it.

    Attributes:
        built, reused, stale: how many arrays were made, found, and removed because their files had changed.
        empty: indices of the volumes that show nothing but air.
        rejected: what is wrong with each volume that is left out, by index.

    Raises:
        UserError: the folder cannot be written to or is too small, or a prepared array is not what it must be.
        DataError: no volume is left.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        prepare: Callable[[Mapping[str, Any]], NDArray[np.floating]],
        folder: str | Path,
        *,
        settings: Mapping[str, Any],
        dtype: str = "uint8",
        voxels: Callable[[Mapping[str, Any]], float] | None = None,
    ) -> None:
        if dtype not in _DTYPES:
            raise UserError(f"unknown storage type {dtype!r}; volume cache; choose one of {', '.join(_DTYPES)}")
        self.dtype = dtype
        key = sha256_json({"settings": dict(settings), "dtype": dtype, "version": _VERSION})[:12]
        self.folder = output_folder(Path(folder) / key)
        self.built = self.reused = self.stale = 0
        self.rejected: dict[int, str] = {}
        with locked(self.folder / "build.lock"):
            self._files = self._find(items)
            missing = [index for index in range(len(items)) if not self._files[index] and index not in self.rejected]
            if missing:
                self._announce([items[index] for index in missing], voxels)
                self._build(missing, items, prepare)
        self.empty = [index for index, file in enumerate(self._files) if file and file.shape[1] == 0]
        self._report(items)

    def _find(self, items: Sequence[Mapping[str, Any]]) -> list[ChunkedFile | None]:
        """The arrays that are there; what has no image is rejected."""
        files: list[ChunkedFile | None] = []
        for index, item in enumerate(items):
            try:
                files.append(open_chunks(self._path(item)))
            except OSError as error:
                files.append(None)
                self.rejected[index] = f"cannot be read ({error.strerror})"
        self.reused = sum(file is not None for file in files)
        return files

    def _path(self, item: Mapping[str, Any]) -> Path:
        paths = [Path(path) for path in image_paths(item)]
        volume = sha256_json([str(path.resolve()) for path in paths])[:16]
        stamps = [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        inputs = sha256_json([stamps, item.get("modality"), item.get("body_part")])[:12]
        return self.folder / f"{volume}-{inputs}{_SUFFIX}"

    def _announce(self, items: Sequence[Mapping[str, Any]], voxels: Callable[..., float] | None) -> None:
        if voxels is None:
            return
        counts = []
        for item in items[:: -(-len(items) // _PROBES)]:
            try:
                counts.append(voxels(item))
            except DataError:
                # It will be reported when it is prepared.
                continue
        if counts:
            expected = int(np.mean(counts) * len(items)) * np.dtype(_DTYPES[self.dtype]).itemsize
            _LOG.info("volume cache: preparing %d volumes, at most about %.1f MB", len(items), expected / 1e6)
            output_folder(self.folder, need_bytes=expected)

    def _build(
        self, missing: Sequence[int], items: Sequence[Mapping[str, Any]], prepare: Callable[..., NDArray[np.floating]]
    ) -> None:
        remove_partial(self.folder)
        old: dict[str, list[Path]] = {}
        for path in self.folder.glob(f"*{_SUFFIX}"):
            old.setdefault(path.name.partition("-")[0], []).append(path)
        for index in track(missing, "volume cache"):
            try:
                path = self._path(items[index])
                # The same image may stand twice in the list.
                self._files[index] = open_chunks(path)
                if self._files[index]:
                    continue
                array = self._quantise(np.asarray(prepare(items[index])))
            except DataError as error:
                self.rejected[index] = str(error).partition("; ")[0]
                continue
            write_chunks(path, array)
            self._files[index] = open_chunks(path)
            self.built += 1
            for other in old.get(path.name.partition("-")[0], []):
                if other != path:
                    other.unlink(missing_ok=True)
                    self.stale += 1

    def _quantise(self, array: NDArray[np.floating]) -> NDArray[Any]:
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4:
            raise UserError(f"a prepared volume must be (C, X, Y, Z), got {array.shape}; volume cache; check the image")
        if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UserError("a prepared volume has values outside 0..1; volume cache; check the intensity settings")
        if not array.size or not array.any():
            array = array[:, :0, :0, :0]
        return np.rint(array * 255).astype(np.uint8) if self.dtype == "uint8" else array.astype(np.float16)

    def _report(self, items: Sequence[Mapping[str, Any]]) -> None:
        _LOG.info(
            "volume cache: %d volumes, %.1f MB (%d prepared now, %d found, %d out of date, %d only air, %d left out)",
            len(items), self.nbytes / 1e6, self.built, self.reused, self.stale, len(self.empty), len(self.rejected),
        )  # fmt: skip
        if not self.rejected:
            return
        named = [f"{Path(image_paths(items[index])[0]).name}: {why}" for index, why in self.rejected.items()]
        more = f", and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        what = f"{len(named)} of {len(items)} volumes cannot be used ({', '.join(named[:_NAMED])}{more})"
        remedy = "repair them or take them out of the datalist"
        if len(named) == len(items):
            raise DataError(f"{what}; volume cache; {remedy}")
        _LOG.warning("%s; they are left out; %s", what, remedy)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(file.nbytes for file in self._files if file)

    def _file(self, index: int) -> ChunkedFile:
        file = self._files[index]
        if file is None:
            raise ValueError(f"volume {index} was left out: {self.rejected[index]}")
        return file

    def shape(self, index: int) -> tuple[int, int, int]:
        """Size of a volume, (X, Y, Z), in voxels."""
        _, x, y, z = self._file(index).shape
        return x, y, z

    def channels(self, index: int) -> int:
        """Number of channels of a volume."""
        return self._file(index).shape[0]

    def read_window(self, index: int, start: Sequence[int], size: Sequence[int]) -> NDArray[np.float32]:
        """A window of a volume; what reaches out of the volume is 0.

        Args:
            index: of the volume, not of one that is left out.
            start: (x, y, z) of the first voxel; may be negative.
            size: (X, Y, Z) of the window.

        Returns:
            (C, X, Y, Z), float32, 0 to 1.
        """
        file = self._file(index)
        window = np.zeros((file.shape[0], *size), np.float32)
        box, outside = [], []
        for first, length, extent in zip(start, size, file.shape[1:], strict=True):
            low, high = max(first, 0), min(first + length, extent)
            if high <= low:
                return window
            box.append((low, high))
            outside.append(slice(low - first, high - first))
        file.read(box, window[:, outside[0], outside[1], outside[2]])
        if self.dtype == "uint8":
            window /= 255
        return window
