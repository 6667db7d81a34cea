"""Random views of 2D images: a resized crop, mirrored, with changed colours and blur.

Drawing the parameters (`draw_view`) is apart from applying them (`apply_view`), so that a view can be repeated and
every position of a feature map traced back to its place in the image (`location_grids`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lvmmed_monai.errors import UserError

__all__ = ["ViewParameters", "ViewSettings", "apply_view", "draw_box", "draw_view", "location_grids"]

_LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
# RGB to luminance and two colour differences (YIQ): turning the differences turns the hue.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = torch.linalg.inv(_YIQ)


@dataclass(frozen=True)
class ViewSettings:
    """What views are drawn from.

    Attributes:
        size: height and width of a view in pixels.
        area: range of the crop's part of the image's area.
        aspect: range of the crop's width over height, drawn evenly on a logarithmic scale.
        flip: probability of mirroring left and right.
        jitter: probability of changing brightness and contrast (and colour images' saturation and hue).
        brightness, contrast, saturation: largest relative changes; hue: largest turn in parts of the circle.
        grey: probability that a colour image loses its colour.
        blur: probability of a Gaussian blur; sigma: range of its width as a fraction of ``size``.
        solarise: probability that pixels brighter than one half are inverted, as in BYOL.
        force_grey: no view keeps its colour, whatever ``grey`` says.
        small_views: number of small views beside the two of ``size`` (multi-crop, as in SwAV); small_size: their
            height and width; small_area: range of their part of the image's area. All else is as in large views.

    Raises:
        UserError: a size, area or number that cannot be.
    """

    size: int = 224
    area: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.0005, 0.01)
    solarise: float = 0.0
    force_grey: bool = False
    small_views: int = 0
    small_size: int = 96
    small_area: tuple[float, float] = (0.08, 0.3)

    def __post_init__(self) -> None:
        for kind, size, area in (("view", self.size, self.area), ("small view", self.small_size, self.small_area)):
            if size < 1 or not 0 < area[0] <= area[1] <= 1:
                raise UserError(f"{kind} size {size}, area {area}; views; give size >= 1 and 0 < area <= 1")
        if self.small_views < 0:
            raise UserError(f"small_views = {self.small_views}; views; give 0 or more")

    def small(self) -> ViewSettings:
        """What small views are drawn from."""
        return replace(self, size=self.small_size, area=self.small_area, small_views=0)


@dataclass(frozen=True)
class ViewParameters:
    """One drawn view. ``box`` is (top, left, height, width) in pixels; ``sigma``, in view pixels, is 0 for no blur."""

    box: tuple[int, int, int, int]
    flip: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grey: bool
    sigma: float
    solarise: bool = False

    def location(self) -> Tensor:
        """(5,) float32: the box and 1 or 0 for mirrored, as `location_grids` takes it."""
        return torch.tensor([*self.box, float(self.flip)], dtype=torch.float32)


def draw_view(
    rng: np.random.Generator, height: int, width: int, settings: ViewSettings, *, flip_safe: bool = True
) -> ViewParameters:
    """Draw a view of an image of ``height`` x ``width`` pixels.

    Args:
        rng: source of all randomness.
        flip_safe: False for images in which left and right mean something: they are never mirrored.
    """
    box = draw_box(rng, height, width, settings.area, settings.aspect)
    flip = bool(rng.random() < settings.flip) and flip_safe
    jitter = bool(rng.random() < settings.jitter)
    changes = (jitter * rng.uniform(-1.0, 1.0, size=4)).tolist()
    grey = bool(rng.random() < settings.grey)
    blur = rng.random() < settings.blur
    sigma = float(rng.uniform(*settings.sigma)) * settings.size
    # Drawn only where it is asked for: other settings draw what they drew before there was such a thing.
    solarise = settings.solarise > 0 and bool(rng.random() < settings.solarise)
    return ViewParameters(
        box=box,
        flip=flip,
        brightness=1.0 + settings.brightness * changes[0],
        contrast=1.0 + settings.contrast * changes[1],
        saturation=1.0 + settings.saturation * changes[2],
        hue=settings.hue * changes[3],
        grey=grey or settings.force_grey,
        sigma=sigma if blur else 0.0,
        solarise=solarise,
    )


def draw_box(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a crop with a part of the area and an aspect between the given ones.

    It is cut down to the image of ``height`` x ``width`` pixels where it would stick out.
    """
    pixels = rng.uniform(*area) * height * width
    ratio = math.exp(rng.uniform(*np.log(aspect)))
    high = min(max(round(math.sqrt(pixels / ratio)), 1), height)
    wide = min(max(round(math.sqrt(pixels * ratio)), 1), width)
    top, left = rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1)
    return int(top), int(left), high, wide


def apply_view(image: Tensor, parameters: ViewParameters, size: int) -> Tensor:
    """Cut out and change one view.

    Args:
        image: (C, H, W) with C 1 or 3; uint8, or floating point in [0, 1].
        parameters: from `draw_view` for this height and width.
        size: height and width of the view.

    Returns:
        (C, size, size) float32 in [0, 1].
    """
    top, left, height, width = parameters.box
    crop = image[:, top : top + height, left : left + width]
    crop = crop.float() / 255 if crop.dtype == torch.uint8 else crop.float()
    antialias = height > size or width > size
    view = functional.interpolate(crop[None], (size, size), mode="bilinear", antialias=antialias)[0]
    if parameters.flip:
        view = view.flip(-1)
    view = _blurred(_recoloured(view, parameters).clamp_(0, 1), parameters.sigma)
    return torch.where(view > 0.5, 1 - view, view) if parameters.solarise else view


def _recoloured(view: Tensor, parameters: ViewParameters) -> Tensor:
    """Brightness, contrast, saturation, hue and grey as one linear map of the channels, cut to [0, 1] by the caller."""
    if len(view) == 1:
        mean = view.mean()
        return ((view - mean) * parameters.contrast + mean) * parameters.brightness
    if parameters.grey:
        matrix = _LUMINANCE.expand(3, 3)
    else:
        turn = 2 * math.pi * parameters.hue
        cosine, sine = (parameters.saturation * f(turn) for f in (math.cos, math.sin))
        middle = torch.tensor([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
        matrix = _YIQ_TO_RGB @ middle @ _YIQ
    flat = view.flatten(1)
    mean = _LUMINANCE @ flat.mean(dim=1)
    offset = parameters.brightness * (1 - parameters.contrast) * mean
    gain = parameters.brightness * parameters.contrast
    return torch.addmm(offset.expand(3, 1), matrix, flat, alpha=gain).view_as(view)


def _blurred(view: Tensor, sigma: float) -> Tensor:
    if sigma <= 0:
        return view
    radius = max(1, math.ceil(3 * sigma))
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for axis, padding in ((1, (0, 0, radius, radius)), (2, (radius, radius, 0, 0))):
        length = view.shape[axis]
        padded = functional.pad(view, padding, mode="replicate")
        # Sums of shifted pictures: a convolution of one channel is three to six times as slow on a CPU.
        view = padded.narrow(axis, radius, length) * (weights[0] / total)
        for offset, weight in enumerate(weights[1:], start=1):
            view.add_(padded.narrow(axis, radius - offset, length), alpha=weight / total)
            view.add_(padded.narrow(axis, radius + offset, length), alpha=weight / total)
    return view.clamp_(0, 1)


def location_grids(locations: Tensor, rows: int, columns: int) -> Tensor:
    """Places in the original image of the positions of the views' feature maps.

    Args:
        locations: (B, 5) top, left, height, width of the crop in pixels, and 1 where it was mirrored.
        rows, columns: size of the feature map.

    Returns:
        (B, rows, columns, 2): vertical and horizontal pixel coordinate of each cell's centre. In a mirrored view the
        columns run from right to left, so that positions showing the same tissue have equal coordinates.
    """
    top, left, height, width, flip = locations.unbind(dim=1)
    down = (torch.arange(rows, device=locations.device) + 0.5) / rows
    across = (torch.arange(columns, device=locations.device) + 0.5) / columns
    across = torch.where(flip[:, None] > 0.5, 1 - across, across)
    y = (top[:, None] + down * height[:, None])[:, :, None].expand(-1, rows, columns)
    x = (left[:, None] + across * width[:, None])[:, None, :].expand(-1, rows, columns)
    return torch.stack([y, x], dim=3)
