"""Pairs of views of pictures and slices, for methods that train in 2D."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from torch import Tensor
from torch.utils.data import Dataset

from lvmmed_monai.data.datalist import image_paths, load_pool
from lvmmed_monai.data.slice_cache import SliceCache, cache_path, missing_bytes
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.methods._balance import repeats_of
from lvmmed_monai.transforms.intensity import DEFAULT_CT_WINDOW, intensity_rules, scale_intensity
from lvmmed_monai.transforms.loading import LoadImageUprightd
from lvmmed_monai.transforms.slices import PLANES, ToSlices
from lvmmed_monai.transforms.views_2d import ViewSettings, apply_view, draw_box, draw_view

__all__ = ["PicturePreparation", "ViewPairs", "missing_space", "view_pairs"]

# Slices across a volume of few slices are strips without content.
_SHORTEST_SIDE = 16
# Of an over-sampled copy.
_COPY_AREA = (0.85, 0.95)
# "<id>_017.png", the 17th frame of a clip.
_FRAME = re.compile(r"(.*)_\d{3,}\.[a-zA-Z]+")
_LUMINANCE = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


class PicturePreparation:
    """Reads a datalist item into stacks of slices, scaled to 0..1 by the rule of its modality.

    A volume is cut in the given anatomical planes; each of its channels gives its own stacks, and is scaled by its own
    values. A picture keeps its colours and loses a transparency channel.

    Args:
        planes: keys of `transforms.slices.PLANES`.
        intensity: rules in place of those of single modalities, as `transforms.intensity_rules` takes them.

    Raises:
        UserError: an unknown plane, or a rule that cannot be.
    """

    def __init__(
        self, planes: Sequence[str], intensity: Mapping[str, Mapping[str, Sequence[float]]] | None = None
    ) -> None:
        if not planes or any(plane not in PLANES for plane in planes):
            raise UserError(f"planes = {list(planes)}; pictures; choose one or more of {', '.join(PLANES)}")
        self.planes, self.rules = tuple(planes), intensity_rules(intensity)
        self._cut = [ToSlices(plane) for plane in self.planes]
        self._load = Compose([LoadImageUprightd("image"), EnsureChannelFirstd("image")])

    @property
    def settings(self) -> dict[str, Any]:
        """All that a prepared item depends on, apart from its files and modality, as JSON values."""
        return {
            "planes": list(self.planes),
            "ct_window": list(DEFAULT_CT_WINDOW),
            "intensity": self.rules,
            "shortest_side": _SHORTEST_SIDE,
        }

    def __call__(self, item: Mapping[str, Any]) -> list[np.ndarray]:
        """(C, S, H, W) float32 stacks, C 1 or 3.

        Raises:
            DataError: the image cannot be read.
        """
        image = self._read(item)
        if image.ndim == 3 and isinstance(item["image"], str | Path):
            colours = image[:-1] if len(image) in (2, 4) else image
            scaled = self._scaled(colours, item).numpy()
            return [scaled[:, None]] if len(scaled) == 3 else [channel[None, None] for channel in scaled]
        # Channels of several files, or several volumes in one: each has its own range of values.
        image = cast(MetaTensor, torch.stack([self._scaled(channel, item) for channel in image]))
        if image.ndim == 3:
            return [channel[None, None] for channel in image.numpy()]
        stacks = [np.asarray(cut(image)) for cut in self._cut]
        return [channel[None] for stack in stacks if min(stack.shape[2:]) >= _SHORTEST_SIDE for channel in stack]

    def _scaled(self, image: Tensor, item: Mapping[str, Any]) -> Tensor:
        return scale_intensity(image, item["modality"], **self.rules.get(item["modality"], {}))

    def _read(self, item: Mapping[str, Any]) -> Tensor:
        name = Path(image_paths(item)[0]).name
        remedy = f"{name}; repair it or leave it out of the datalist"
        try:
            image: Tensor = self._load({"image": item["image"]})["image"]
        except MemoryError:
            raise
        except Exception as error:  # the readers raise errors of many kinds for broken files
            raise DataError(f"cannot be read ({type(error).__name__}); {remedy}") from error
        if image.ndim not in (3, 4) or not image.numel():
            raise DataError(f"has shape {tuple(image.shape)}, channels first; {remedy}")
        return image


class ViewPairs(Dataset):
    """Two views of each picture of a cache, and small ones where the settings say so.

    All that is random in an element follows from (seed, draw, index), so neither workers nor an interruption change
    it, and no two draws repeat each other.

    A picture that is drawn r times as often as it would be is over-sampled: of its draws, but for one in r, a random
    crop of 85 to 95 percent of its area takes the picture's place, as in the paper (supplement).

    Args:
        cache: the pictures.
        views: what the views are drawn from.
        in_channels: channels of the views; grey pictures are repeated, coloured ones for 1 channel turned to grey.
        seed: of the draws.
        repeats: how often each picture is drawn in a pass, for the sampler, 1 or more; None means once.

    Attributes:
        data: the datalist item of each picture.
    """

    def __init__(
        self,
        cache: SliceCache,
        views: ViewSettings,
        in_channels: int,
        seed: int,
        repeats: np.ndarray | None = None,
    ) -> None:
        if in_channels not in (1, 3):
            raise UserError(f"in_channels = {in_channels}; pictures; choose 1 or 3")
        self.cache, self.views, self.in_channels, self.seed = cache, views, in_channels, seed
        self.repeats = repeats
        self._small = views.small()
        self.data = [cache.item(index) for index in range(len(cache))]

    @property
    def groups(self) -> np.ndarray:
        """A number for each picture, the same for slices of one volume and plane and for frames of one clip."""
        keys = [_group_of(item, entry.stack) for item, entry in zip(self.data, self.cache.entries, strict=True)]
        return np.cumsum([False, *(now != before for before, now in pairwise(keys))])

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        """Views of the picture ``index`` by its ``draw``-th draw; an int is the index, of draw 0.

        Returns:
            "view1", "view2": (in_channels, size, size) float32, 0 to 1; "location1", "location2": (5,) for
            `transforms.views_2d.location_grids`; with K small views "small": (K, in_channels, small_size, small_size)
            and "small_location": (K, 5); "index": number of the picture.
        """
        draw, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, draw, index])
        repeats = 1.0 if self.repeats is None else float(self.repeats[index])
        # Nothing is drawn where nothing is over-sampled.
        copy = repeats > 1 and rng.random() > 1 / repeats
        return self.draw(index, rng, area=_COPY_AREA if copy else None)

    def picture(self, index: int) -> Tensor:
        """A whole picture, (1 or in_channels, H, W): uint8, or float32 from 0 to 1 where it was turned to grey."""
        image = self.cache[index]
        if self.in_channels == 1 and len(image) == 3:
            return (image.float() / 255 * _LUMINANCE).sum(dim=0, keepdim=True)
        return image

    def draw(
        self, index: int, rng: np.random.Generator, *, area: tuple[float, float] | None = None
    ) -> dict[str, Tensor]:
        """Views of a picture by the given generator, or of a random crop of it with a part of its area in ``area``."""
        image = self.picture(index)
        rows, columns = image.shape[1:]
        top, left, height, width = 0, 0, rows, columns
        if area:
            top, left, height, width = draw_box(rng, rows, columns, area, (columns / rows, columns / rows))
        crop = image[:, top : top + height, left : left + width]
        flip_safe = bool(self.data[index].get("flip_safe", False))

        def view(settings: ViewSettings) -> tuple[Tensor, Tensor]:
            parameters = draw_view(rng, height, width, settings, flip_safe=flip_safe)
            drawn = apply_view(crop, parameters, settings.size)
            place = parameters.location() + torch.tensor([top, left, 0.0, 0.0, 0.0])
            return drawn if len(drawn) == self.in_channels else drawn.repeat(self.in_channels, 1, 1), place

        sample: dict[str, Tensor] = {"index": torch.tensor(index)}
        for number in ("1", "2"):
            sample[f"view{number}"], sample[f"location{number}"] = view(self.views)
        if self.views.small_views:
            small = [view(self._small) for _ in range(self.views.small_views)]
            sample["small"], sample["small_location"] = (torch.stack(part) for part in zip(*small, strict=True))
        return sample


def _group_of(item: Mapping[str, Any], stack: int) -> tuple[Any, ...]:
    """Equal for slices of one volume and plane, and for the frames that ingest writes of one clip."""
    path = image_paths(item)[0]
    frame = _FRAME.fullmatch(path)
    clip = (item.get("subject"), item.get("series"), frame[1]) if frame else path
    return item.get("datalist"), clip, stack


def view_pairs(
    datalists: str | Path | Sequence[str | Path],
    section: str,
    cache_dir: str | Path,
    *,
    planes: Sequence[str],
    cache_size: int,
    views: ViewSettings,
    in_channels: int,
    seed: int,
    weights: Sequence[float] | None = None,
    balance: float = 0.0,
    intensity: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> ViewPairs:
    """`ViewPairs` of one section of datalists, from a cache that is built where it is missing.

    Args:
        weights, balance: of `repeats_of`.
        intensity, planes: of `PicturePreparation`.

    Raises:
        UserError: a datalist is not valid, or an option is unknown.
        DataError: an image is missing, or none is left.
    """
    lists = 1 if isinstance(datalists, str | Path) else len(datalists)
    if weights is not None and len(weights) != lists:
        raise UserError(f"{len(weights)} weights for {lists} datalists; weights; give one for each datalist")
    items, prepare, settings = _pool(datalists, section, planes, intensity)
    cache = SliceCache(items, prepare, cache_dir, settings=settings, size=cache_size, planes=len(prepare.planes))
    pictures = [cache.item(index) for index in range(len(cache))]
    return ViewPairs(cache, views, in_channels, seed, repeats_of(pictures, weights, balance))


def missing_space(
    datalists: str | Path | Sequence[str | Path],
    section: str,
    cache_dir: str | Path,
    *,
    planes: Sequence[str],
    cache_size: int,
    intensity: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> int:
    """Bytes that the cache of `view_pairs` will still take, at most; the options and errors are the same."""
    items, prepare, settings = _pool(datalists, section, planes, intensity)
    path = cache_path(items, cache_dir, settings=settings, size=cache_size)
    return missing_bytes(items, path, cache_size, len(prepare.planes))


def _pool(
    datalists: str | Path | Sequence[str | Path],
    section: str,
    planes: Sequence[str],
    intensity: Mapping[str, Mapping[str, Sequence[float]]] | None,
) -> tuple[list[dict[str, Any]], PicturePreparation, dict[str, Any]]:
    """Items of a section, with the number of their datalist; their preparation, and the settings of its cache."""
    prepare = PicturePreparation(planes, intensity)
    paths = [datalists] if isinstance(datalists, str | Path) else list(datalists)
    if not paths:
        raise UserError("no datalist given; pre-training; name at least one datalist")
    items = [{**item, "datalist": number} for number, path in enumerate(paths) for item in load_pool(path, section)]
    # The rule of the intensities hangs on the modality, which stands in the datalist and not in the file.
    return items, prepare, {**prepare.settings, "modalities": [item["modality"] for item in items]}
