"""Pairs of views of pictures and slices, for methods that train in 2D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from torch import Tensor
from torch.utils.data import Dataset

from lvmmed_monai.data.datalist import load_pool
from lvmmed_monai.data.slice_cache import SliceCache
from lvmmed_monai.errors import UserError
from lvmmed_monai.transforms.intensity import DEFAULT_CT_WINDOW, scale_intensity
from lvmmed_monai.transforms.loading import LoadImageUprightd
from lvmmed_monai.transforms.slices import PLANES, ToSlices
from lvmmed_monai.transforms.views_2d import ViewSettings, apply_view, draw_view

__all__ = ["PicturePreparation", "ViewPairs", "view_pairs"]

# Slices across a volume of few slices are strips without content.
_SHORTEST_SIDE = 16
_LUMINANCE = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


class PicturePreparation:
    """Reads a datalist item into stacks of slices, scaled to 0..1 by the rule of its modality.

    A volume is cut in the given anatomical planes; each of its channels gives its own stack. A picture keeps its
    colours and loses a transparency channel.

    Args:
        planes: keys of `transforms.slices.PLANES`.
    """

    def __init__(self, planes: Sequence[str]) -> None:
        self.planes = tuple(planes)
        self._cut = [ToSlices(plane) for plane in self.planes]
        self._load = Compose([LoadImageUprightd("image"), EnsureChannelFirstd("image")])

    @property
    def settings(self) -> dict[str, Any]:
        """All that a prepared item depends on, apart from its files, as JSON values."""
        return {"planes": list(self.planes), "ct_window": list(DEFAULT_CT_WINDOW), "shortest_side": _SHORTEST_SIDE}

    def __call__(self, item: Mapping[str, Any]) -> list[np.ndarray]:
        """(C, S, H, W) float32 stacks, C 1 or 3."""
        image = self._load({"image": item["image"]})["image"]
        picture = image.ndim == 3
        if picture and len(image) in (2, 4):
            image = image[:-1]
        image = scale_intensity(image, item["modality"])
        if picture:
            return [image.numpy()[:, None]] if len(image) == 3 else [channel[None, None] for channel in image.numpy()]
        stacks = [np.asarray(cut(cast(MetaTensor, image))) for cut in self._cut]
        return [channel[None] for stack in stacks if min(stack.shape[2:]) >= _SHORTEST_SIDE for channel in stack]


class ViewPairs(Dataset):
    """Two views of each picture of a cache.

    All that is random in an element follows from (seed, draw, index), so neither workers nor an interruption change
    it, and no two draws repeat each other.

    Args:
        cache: the pictures.
        views: what the views are drawn from.
        in_channels: channels of the views; grey pictures are repeated, coloured ones for 1 channel turned to grey.
        seed: of the draws.

    Attributes:
        data: the datalist item of each picture.
    """

    def __init__(self, cache: SliceCache, views: ViewSettings, in_channels: int, seed: int) -> None:
        if in_channels not in (1, 3):
            raise UserError(f"in_channels = {in_channels}; pictures; choose 1 or 3")
        self.cache, self.views, self.in_channels, self.seed = cache, views, in_channels, seed
        self.data = [cache.item(index) for index in range(len(cache))]

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        """Views of the picture ``index`` by its ``draw``-th draw; an int is the index, of draw 0.

        Returns:
            "view1", "view2": (in_channels, size, size) float32, 0 to 1; "location1", "location2": (5,) for
            `transforms.views_2d.location_grids`; "index": number of the picture.
        """
        draw, index = key if isinstance(key, tuple) else (0, key)
        return self.draw(index, np.random.default_rng([self.seed, draw, index]))

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Two views of a picture by the given generator."""
        image = self.cache[index]
        if self.in_channels == 1 and len(image) == 3:
            image = (image.float() / 255 * _LUMINANCE).sum(dim=0, keepdim=True)
        sample: dict[str, Tensor] = {"index": torch.tensor(index)}
        for number in ("1", "2"):
            flip_safe = bool(self.data[index].get("flip_safe", False))
            parameters = draw_view(rng, image.shape[1], image.shape[2], self.views, flip_safe=flip_safe)
            view = apply_view(image, parameters, self.views.size)
            sample[f"view{number}"] = view if len(view) == self.in_channels else view.repeat(self.in_channels, 1, 1)
            sample[f"location{number}"] = parameters.location()
        return sample


def view_pairs(
    datalists: Sequence[str | Path],
    section: str,
    cache_dir: str | Path,
    *,
    planes: Sequence[str],
    cache_size: int,
    views: ViewSettings,
    in_channels: int,
    seed: int,
) -> ViewPairs:
    """`ViewPairs` of one section of datalists, from a cache that is built where it is missing.

    Raises:
        UserError: a datalist is not valid, or an option is unknown.
        DataError: an image is missing, or none is left.
    """
    unknown = [plane for plane in planes if plane not in PLANES]
    if unknown or not planes:
        raise UserError(f"planes = {list(planes)}; pictures; choose one or more of {', '.join(PLANES)}")
    prepare = PicturePreparation(planes)
    items = load_pool(datalists, section)
    # The rule of the intensities hangs on the modality, which stands in the datalist and not in the file.
    settings = {**prepare.settings, "modalities": [item["modality"] for item in items]}
    cache = SliceCache(items, prepare, cache_dir, settings=settings, size=cache_size)
    return ViewPairs(cache, views, in_channels, seed)
