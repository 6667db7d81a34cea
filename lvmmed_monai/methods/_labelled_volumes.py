"""Volumes with label maps: their datalists, their preparation, and training crops of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, ResampleToMatch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lvmmed_monai.data.datalist import datalist_labels, image_paths, load_items, load_pool
from lvmmed_monai.data.volume_cache import VolumeCache, foreground_box
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.methods._preparation import VolumePreparation
from lvmmed_monai.methods._volumes import VolumeBlocks
from lvmmed_monai.transforms.crops_3d import (
    BlockAugmentation,
    augment_crop,
    draw_block_augmentation,
    draw_crop_augmentation,
    render_block,
)

__all__ = ["LabelledCrops", "LabelledPreparation", "labelled_pool", "shared_labels", "vary_grey"]

# The cache keeps 0..1 as a byte; a class number over this comes back exactly.
_LEVELS = 255
# Places of structures that are remembered for each volume.
_MOST_PLACES = 4096
_MOST_NOISE = 0.1
# Headers of an image and its label map may differ by so much, from rounding.
_PLACE_MM = 0.1


def shared_labels(datalists: Sequence[str | Path]) -> dict[str, str]:
    """The label map that all labelled datalists have, in the order of its numbers.

    Raises:
        UserError: none is given, they differ, one has no labels, or there are more than 256.
    """
    if not datalists:
        raise UserError("no labelled datalist; pre-training with labels; name at least one with labelled_datalist")
    maps = [datalist_labels(path) for path in datalists]
    for path, labels in zip(datalists, maps, strict=True):
        if labels != maps[0]:
            raise UserError(
                f"the labels of {Path(path).name} differ from those of {Path(datalists[0]).name}; "
                "pre-training with labels; give all labelled datalists the same labels"
            )
    if not 2 <= len(maps[0]) <= _LEVELS + 1:
        raise UserError(
            f"2 to {_LEVELS + 1} labels are needed, background included, got {len(maps[0])}; {datalists[0]}; "
            "name a datalist for segmentation"
        )
    return maps[0]


def labelled_pool(datalists: Sequence[str | Path], section: str) -> list[dict[str, Any]]:
    """Items of one section of labelled datalists; the label map is the last of the paths under ``image``.

    Raises:
        UserError: a datalist is not valid or not for segmentation.
        DataError: a file is missing, or a label map has another shape than its image.
    """
    for path in datalists:
        load_items(path, section, task="segmentation")
    # The cache looks at the files under "image" for changes: those of labels count too.
    pool = load_pool(datalists, section)
    return [{**item, "image": [*image_paths(item), item["label"]]} for item in pool]


class LabelledPreparation:
    """As for volumes without labels; the label map, on the same grid, becomes the last channel.

    Args:
        images: what is done with a volume without labels.
        classes: number of classes, background included, at most 256.
    """

    def __init__(self, images: VolumePreparation, classes: int) -> None:
        self.images = images
        self.classes = classes
        self._load = LoadImage(image_only=True, ensure_channel_first=True)
        self._onto = ResampleToMatch(mode="nearest", padding_mode="zeros")

    @property
    def settings(self) -> dict[str, Any]:
        """All that a prepared array depends on beside its files and what stands in its item."""
        return {**self.images.settings, "label": "nearest", "classes": self.classes}

    def __call__(self, item: Mapping[str, Any]) -> NDArray[np.floating]:
        """The prepared image's channels, and the label map over 255: (C + 1, X, Y, Z).

        Args:
            item: of `labelled_pool`.

        Raises:
            DataError: a file cannot be read, or the label map holds what is no class or lies on another grid.
        """
        *images, path = item["image"]
        plain = {**item, "image": images if len(images) > 1 else images[0]}
        image = self.images.resampled(plain)
        label = self._label(path, image)
        box = foreground_box(image.cpu().numpy())
        prepared = self.images.cropped(image, plain)
        if box is None:
            return np.concatenate((prepared, prepared[:1]))
        # Of the size that the image has now, whatever its preparation did to that.
        inside = label[(slice(None), *box)].unsqueeze(0)
        fitted = F.interpolate(inside, prepared.shape[1:], mode="nearest-exact")[0]
        return np.concatenate((prepared, fitted.numpy() / _LEVELS))

    def _label(self, path: str, image: MetaTensor) -> Tensor:
        """The label map on the grid of ``image``, (1, X, Y, Z), float32."""
        name = Path(path).name
        try:
            label = self._load(path)
        except Exception as error:
            raise DataError(
                f"a label map cannot be read ({type(error).__name__}); {name}; "
                "repair it or leave it out of the datalist"
            ) from error
        wrong = [value for value in np.unique(label.numpy()) if value not in range(self.classes)]
        if wrong or label.shape[0] != 1:
            what = f"holds {wrong[0]:g}" if wrong else f"has {label.shape[0]} channels"
            raise DataError(
                f"a label map {what}, one channel of 0 to {self.classes - 1} is needed; {name}; "
                "correct it or the labels of the datalist"
            )
        if not np.allclose(label.meta["original_affine"], image.meta["original_affine"], rtol=1e-3, atol=_PLACE_MM):
            raise DataError(
                f"a label map lies on another grid than its image; {name}; "
                "give a label map with its image's position, orientation and voxel size"
            )
        return torch.as_tensor(np.asarray(self._onto(label, img_dst=image)))


def vary_grey(random: np.random.Generator, crop: Tensor, modality: str) -> Tensor:
    """Change the grey values of a crop (C, X, Y, Z): window and gamma as for blocks, and noise of .1 at most."""
    drawn = draw_block_augmentation(random, modality=modality)
    grey = render_block(crop, crop.shape[1:], BlockAugmentation(window=drawn.window, gamma=drawn.gamma))
    noise = random.standard_normal(tuple(crop.shape), dtype=np.float32)
    return grey + random.uniform(0, _MOST_NOISE) * torch.from_numpy(noise)


class LabelledCrops(VolumeBlocks):
    """Crops of labelled volumes.

    A sample holds ``labelled`` (S, C, edge, edge, edge), augmented, and ``label`` (S, edge, edge, edge), class numbers.

    Args:
        items: of `labelled_pool`.
        cache: their volumes by `LabelledPreparation`.
        edge: of a crop, in voxels.
        crops: of a sample, S.
        positive_share: of the crops that have a voxel of some structure in their middle; the others lie anywhere.
        seed: of all draws.

    Raises:
        DataError: no volume is left.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        cache: VolumeCache,
        *,
        edge: int,
        crops: int,
        positive_share: float,
        seed: int,
    ) -> None:
        super().__init__(items, cache, seed=seed)
        self.edge = edge
        self.crops = crops
        self.positive_share = positive_share
        self._places: dict[int, NDArray[np.int32]] = {}

    def sample(self, random: np.random.Generator, index: int) -> dict[str, Tensor]:
        """One sample of volume ``index`` with everything random drawn from ``random``."""
        images, labels = zip(*(self._crop(random, index) for _ in range(self.crops)), strict=True)
        return {"labelled": torch.stack(images), "label": torch.stack(labels)}

    def volume(self, index: int) -> tuple[Tensor, Tensor]:
        """The whole volume ``index``, (C, X, Y, Z), 0 to 1, and its label map, (X, Y, Z), class numbers."""
        volume = self._indices[index]
        return _parted(torch.from_numpy(self.cache.read_window(volume, (0, 0, 0), self.cache.shape(volume))))

    def _crop(self, random: np.random.Generator, index: int) -> tuple[Tensor, Tensor]:
        window = self.cache.read_window(self._indices[index], self._start(random, index), (self.edge,) * 3)
        geometry = replace(draw_crop_augmentation(random, mirror=self.may_mirror(index)), shift=0.0)
        image, label = _parted(augment_crop(torch.from_numpy(window), geometry))
        return vary_grey(random, image, self.data[index].get("modality", "OTHER")), label

    def _start(self, random: np.random.Generator, index: int) -> list[int]:
        extents = self.cache.shape(self._indices[index])
        places = self._structures(index)
        centre = [int(random.integers(extent)) for extent in extents]
        if random.random() < self.positive_share and len(places):
            centre = places[int(random.integers(len(places)))].tolist()
        # Inside the volume, or around one that is smaller than the crop.
        return [
            min(max(middle - self.edge // 2, min(0, extent - self.edge)), max(0, extent - self.edge))
            for middle, extent in zip(centre, extents, strict=True)
        ]

    def _structures(self, index: int) -> NDArray[np.int32]:
        if index not in self._places:
            places = np.argwhere(self.volume(index)[1].numpy() > 0).astype(np.int32)
            self._places[index] = places[:: -(-len(places) // _MOST_PLACES) or 1].copy()
        return self._places[index]


def _parted(window: Tensor) -> tuple[Tensor, Tensor]:
    return window[:-1], (window[-1] * _LEVELS).round().to(torch.uint8)
