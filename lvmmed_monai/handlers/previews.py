"""One picture for each evaluated case: label and prediction drawn on the image, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path
from lvmmed_monai.handlers.recorders import class_map
from lvmmed_monai.transforms.loading import LoadImageUprightd
from lvmmed_monai.transforms.saving import PICTURE_SUFFIXES, OneNamePerSource

__all__ = ["PALETTE", "PreviewWriter", "draw_preview"]

# Colours for classes 1, 2, ...: bright on grey, and told apart by most people with a colour vision deficiency.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 200, 140),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
    (120, 120, 255),
)
_SIDE = 320  # pixels of a panel's longer side
_LINE = 16  # pixels of a line of text


def _colour(number: int) -> tuple[int, int, int]:
    return PALETTE[(number - 1) % len(PALETTE)]


def _upright(array: NDArray[Any], image: MetaTensor) -> tuple[NDArray[Any], tuple[float, ...]]:
    """``array`` (\\*spatial, ...) as the viewer expects it, with the pixel size in mm of its spatial axes.

    Pictures are upright already. A volume is turned to patient axes left, posterior, superior, then its
    columns and rows are swapped: the display is then radiological.
    """
    dims = image.ndim - 1
    source = str(image.meta.get("filename_or_obj", ""))
    if dims == 2 and source.lower().endswith(PICTURE_SUFFIXES):
        return array, (1.0, 1.0)
    affine = np.asarray(image.affine, dtype=float)
    spacing = np.linalg.norm(affine[:dims, :dims], axis=0)
    if dims == 3:
        here = nib.orientations.io_orientation(affine)
        turn = nib.orientations.ornt_transform(here, nib.orientations.axcodes2ornt(("L", "P", "S")))
        array = nib.orientations.apply_orientation(array, turn)
        spacing = spacing[np.argsort(turn[:, 0])]
    order = (1, 0, *range(2, array.ndim))
    return array.transpose(order), tuple(float(one) for one in (spacing[1], spacing[0], *spacing[2:]))


def _slice_number(label: NDArray[np.int64], pred: NDArray[np.int64]) -> int:
    """The slice along the last axis that shows most of all classes together; without a label, of the predicted ones.

    Each class counts by its share of what the best slice has of it; else the largest structure would choose alone.
    """
    for mask in (label, pred):
        counts = np.stack([(mask == number).sum(axis=(0, 1)) for number in np.unique(mask[mask > 0])] or [[0]])
        if counts.any():
            return int((counts / counts.max(axis=1, keepdims=True)).sum(axis=0).argmax())
    return label.shape[2] // 2


def _display(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey or RGB values as 8-bit RGB, between the 1st and the 99.5th percentile."""
    values = pixels.astype(np.float32)
    low, high = np.percentile(values, [1, 99.5])
    scaled = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1) * 255
    rgb = scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, axis=-1)
    return rgb.astype(np.uint8)


def _panel(background: NDArray[np.uint8], mask: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The image enlarged to ``size`` (width, height) with the outline of each class."""
    picture = np.array(Image.fromarray(background).resize(size, Image.Resampling.BILINEAR))
    large = np.array(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    for number in np.unique(large[large > 0]):
        region = large == number
        picture[region & ~ndimage.binary_erosion(region, iterations=2)] = _colour(int(number))
    return picture


def _caption(width: int, labels: Mapping[str, str], shown: list[int]) -> NDArray[np.uint8]:
    """Lines of text: which panel is which, and the name of each class in its colour."""
    entries = [(labels.get(str(number), f"class {number}"), _colour(number)) for number in shown]
    strip = Image.new("RGB", (width, _LINE * (1 + len(entries))))
    draw = ImageDraw.Draw(strip)
    draw.text((4, 2), "label", fill=(200, 200, 200))
    draw.text((width // 2 + 4, 2), "prediction", fill=(200, 200, 200))
    for line, (name, colour) in enumerate(entries, start=1):
        draw.rectangle((4, line * _LINE + 3, 14, line * _LINE + 13), fill=colour)
        draw.text((20, line * _LINE + 2), name, fill=(200, 200, 200))
    return np.array(strip)


def draw_preview(
    image: MetaTensor, label: torch.Tensor, pred: torch.Tensor, labels: Mapping[str, str]
) -> NDArray[np.uint8]:
    """A picture (rows, columns, 3) of the slice that shows most: label on the left, prediction on the right.

    Args:
        image: ``(C, *spatial)`` with metadata; of three channels in 2D the colours are shown, else the first channel.
        label: ``(*spatial)`` class numbers.
        pred: ``(*spatial)`` class numbers.
        labels: {"1": name, ...} for the legend.
    """
    values = np.moveaxis(image.detach().cpu().numpy(), 0, -1)
    colour = image.ndim == 3 and values.shape[-1] == 3
    pixels, spacing = _upright(values if colour else values[..., 0], image)
    truth, _ = _upright(np.asarray(label), image)
    guess, _ = _upright(np.asarray(pred), image)
    if truth.ndim == 3:
        number = _slice_number(truth, guess)
        pixels, truth, guess = pixels[:, :, number], truth[:, :, number], guess[:, :, number]
    height, width = truth.shape[0] * spacing[0], truth.shape[1] * spacing[1]
    scale = _SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    background = _display(pixels)
    panels = np.concatenate([_panel(background, mask, size) for mask in (truth, guess)], axis=1)
    shown = sorted({int(one) for mask in (truth, guess) for one in np.unique(mask)} - {0})
    return np.concatenate([panels, _caption(panels.shape[1], labels, shown)], axis=0)


def _on_grid_of(image: MetaTensor, pred: torch.Tensor) -> MetaTensor:
    """The image on the prediction's grid: itself, or its file again where the prediction was taken back to that."""
    moved = isinstance(pred, MetaTensor) and not torch.allclose(image.affine.cpu(), pred.affine.cpu(), atol=1e-3)
    if not moved and image.shape[1:] == pred.shape[1:]:
        return image
    read = Compose([LoadImageUprightd("image"), EnsureChannelFirstd("image")])
    return read({"image": image.meta["filename_or_obj"]})["image"]


class PreviewWriter:
    """Writes a PNG for each case of an evaluator: ``<folder>/<case>.png``.

    The paths are put into ``engine.state.previews`` {case: path}, from where `ResultsWriter` takes them.

    Args:
        folder: where the pictures go, e.g. ``previews`` beside the results file.
        labels: {"0": "background", "1": name, ...}.
        max_cases: pictures to draw; None draws all.
    """

    def __init__(self, folder: str | os.PathLike[str], labels: Mapping[str, str], max_cases: int | None = None) -> None:
        self.folder = Path(folder)
        self.labels = labels
        self.max_cases = max_cases
        self._names = OneNamePerSource()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator with decollated output that holds ``pred`` and ``label``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)

    def _start(self, engine: Any) -> None:
        self._names, engine.state.previews = OneNamePerSource(), {}

    def _draw(self, engine: Any) -> None:
        previews = engine.state.previews
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            if engine.state.rank != 0 or (self.max_cases is not None and len(previews) >= self.max_cases):
                return
            name = self._names.stem_of(item["image"])
            previews[name] = self._write(name, _on_grid_of(item["image"], output["pred"]), output)

    def _write(self, name: str, image: MetaTensor, output: Mapping[str, Any]) -> str:
        label, pred = class_map(output["label"]), class_map(output["pred"])
        if not image.shape[1:] == label.shape == pred.shape:
            raise UserError(
                f"image {tuple(image.shape[1:])}, label {tuple(label.shape)} and prediction {tuple(pred.shape)} "
                f"differ in shape; {name}; bring all three onto one grid in postprocessing"
            )
        path = self.folder / f"{name}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(draw_preview(image, label, pred, self.labels)).save(temporary)
        return str(path)
