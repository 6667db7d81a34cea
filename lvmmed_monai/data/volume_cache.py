"""Prepared volumes on disk, read window by window.

A volume goes through its deterministic preparation once (reading, orientation, resampling, intensity to 0..1,
crop to the body) and is kept as one uncompressed ``.npy`` file, 8 or 16 bit, that is mapped into memory: a window
of it costs a window's worth of reading, whatever the volume's size. Nothing random is ever stored.

    <folder>/<settings>/<volume>-<inputs>.npy      array (C, X, Y, Z); shape (C, 0, 0, 0) marks a volume of air

``settings`` is a hash of the preparation's settings, ``volume`` of the files' places, ``inputs`` of the files' sizes
and times of change and of the item's modality. So changed settings never meet old arrays, a changed file is prepared
again and its old array removed, and an interrupted build goes on where it stopped, since a file is whole or absent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path, output_folder, sha256_json
from lvmmed_monai.log import track

__all__ = ["VolumeCache", "foreground_box"]

_LOG = logging.getLogger(__name__)
_VERSION = 1
# Between two lines of progress while volumes are prepared.
_DTYPES = {"uint8": np.uint8, "float16": np.float16}


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


def _image_files(item: Mapping[str, Any]) -> list[Path]:
    image = item["image"]
    return [Path(path) for path in (image if isinstance(image, list | tuple) else [image])]


class VolumeCache:
    """Prepared volumes of a list of items.

    Args:
        items: datalist items; ``image`` is a path or a list of paths.
        prepare: makes an item's array, (C, X, Y, Z) or (X, Y, Z), 0 to 1. It must be deterministic, and everything it
            depends on apart from the item's files and modality must stand in ``settings``.
        folder: where the arrays are kept; shared by runs.
        settings: JSON values.
        dtype: "uint8" (256 grey levels) or "float16".

    Attributes:
        built, reused, stale: how many arrays were made, found, and removed because their files had changed.
        empty: indices of the volumes that show nothing but air.

    Raises:
        UserError: the folder cannot be written to, or a prepared array is not what it must be.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        prepare: Callable[[Mapping[str, Any]], NDArray[np.floating]],
        folder: str | Path,
        *,
        settings: Mapping[str, Any],
        dtype: str = "uint8",
    ) -> None:
        if dtype not in _DTYPES:
            raise UserError(f"unknown storage type {dtype!r}; volume cache; choose one of {', '.join(_DTYPES)}")
        self.items = list(items)
        self.dtype = dtype
        key = sha256_json({"settings": dict(settings), "dtype": dtype, "version": _VERSION})[:12]
        self.folder = output_folder(Path(folder) / key)
        self.built = self.reused = self.stale = 0
        self._paths = self._build_all(prepare)
        self._shapes = [self._open(index).shape for index in range(len(self.items))]
        self.empty = [index for index, shape in enumerate(self._shapes) if shape[1] == 0]
        _LOG.info(
            "volume cache: %d volumes, %.1f MB (%d prepared now, %d found, %d out of date, %d of air only)",
            len(self.items),
            self.nbytes / 1e6,
            self.built,
            self.reused,
            self.stale,
            len(self.empty),
        )

    def _build_all(self, prepare: Callable[..., NDArray[np.floating]]) -> list[Path]:
        items = track(list(enumerate(self.items)), "volume cache")
        return [self._build(index, item, prepare) for index, item in items]

    def _build(self, index: int, item: Mapping[str, Any], prepare: Callable[..., NDArray[np.floating]]) -> Path:
        files = _image_files(item)
        volume = sha256_json([str(path.resolve()) for path in files])[:16]
        try:
            stamps = [[path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        except OSError as error:
            raise UserError(f"an image cannot be read ({error.strerror}); {files[0]}; check the datalist") from None
        path = self.folder / f"{volume}-{sha256_json([stamps, item.get('modality')])[:12]}.npy"
        if path.exists():
            self.reused += 1
            return path
        array = self._quantise(np.asarray(prepare(item)))
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, array)
        for old in self.folder.glob(f"{volume}-*.npy"):
            if old != path:
                old.unlink(missing_ok=True)
                self.stale += 1
        self.built += 1
        if self.built == 1 and len(self.items) > 1:
            expected = array.nbytes * (len(self.items) - index) / 1e6
            _LOG.info("volume cache: preparing up to %d volumes, about %.1f MB", len(self.items) - index, expected)
        return path

    def _quantise(self, array: NDArray[np.floating]) -> NDArray[Any]:
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4:
            raise UserError(f"a prepared volume must be (C, X, Y, Z), got {array.shape}; volume cache; check the image")
        if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UserError("a prepared volume has values outside 0..1; volume cache; check the intensity settings")
        if not array.size or not array.any():
            array = array[:, :0, :0, :0]
        return np.rint(array * 255).astype(np.uint8) if self.dtype == "uint8" else array.astype(np.float16)

    def _open(self, index: int) -> NDArray[Any]:
        path = self._paths[index]
        # An empty array has no bytes to map.
        try:
            return np.load(path, mmap_mode="r")
        except ValueError:
            return np.load(path)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(np.prod(shape)) for shape in self._shapes) * np.dtype(_DTYPES[self.dtype]).itemsize

    def shape(self, index: int) -> tuple[int, int, int]:
        """Size of a volume, (X, Y, Z), in voxels."""
        _, x, y, z = self._shapes[index]
        return x, y, z

    def channels(self, index: int) -> int:
        """Number of channels of a volume."""
        return self._shapes[index][0]

    def read_window(self, index: int, start: Sequence[int], size: Sequence[int]) -> NDArray[np.float32]:
        """A window of a volume; what reaches out of the volume is 0.

        Args:
            index: of the volume.
            start: (x, y, z) of the first voxel; may be negative.
            size: (X, Y, Z) of the window.

        Returns:
            (C, X, Y, Z), float32, 0 to 1.
        """
        volume = self._open(index)
        window = np.zeros((volume.shape[0], *size), np.float32)
        inside, outside = [], []
        for first, length, extent in zip(start, size, volume.shape[1:], strict=True):
            low, high = max(first, 0), min(first + length, extent)
            if high <= low:
                return window
            inside.append(slice(low, high))
            outside.append(slice(low - first, high - first))
        part = volume[:, inside[0], inside[1], inside[2]]
        window[:, outside[0], outside[1], outside[2]] = part
        if self.dtype == "uint8":
            window /= 255
        return window
