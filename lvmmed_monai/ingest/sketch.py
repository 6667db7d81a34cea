"""A picture of a series that was refused: its slices beside each other, without a claim where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.geometry import plane_axes
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.pixels import PixelReader
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.files import atomic_path
from lvmmed_monai.ingest.jobs import only_this
from lvmmed_monai.ingest.preview import planar_preview, preview_image
from lvmmed_monai.ingest.stack import MINIMUM_SLICES, positioned, positions_of

__all__ = ["SketchJob", "draw_sketch"]

_MOST_SLICES = 64


@dataclass(frozen=True)
class SketchJob:
    """Draw a picture of some slices into the file ``path``."""

    headers: tuple[Header, ...]
    path: Path


def _chosen(headers: Sequence[Header]) -> list[Header]:
    """Slices of the most common size, in the order of space or of their numbers, evenly thinned out."""
    size, _ = Counter((header.rows, header.columns) for header in headers).most_common(1)[0]
    members = [header for header in headers if (header.rows, header.columns) == size]
    if positioned(members):
        order = np.argsort(positions_of(members) @ plane_axes(members[0].orientation or ())[2], kind="stable")
    else:
        order = np.argsort([header.instance_number or 0 for header in members], kind="stable")
    picked = np.unique(np.linspace(0, len(members) - 1, min(len(members), _MOST_SLICES)).round().astype(int))
    return [members[index] for index in order[picked]]


def _decoded(headers: Sequence[Header]) -> tuple[list[Header], list[NDArray[Any]]]:
    """Those that can be decoded, with their real values (rows, columns)."""
    found, values = [], []
    with SourceReader() as reader:
        pixels = PixelReader(reader)
        for header in headers:
            try:
                stored = pixels.stored(header).values
            except DicomError:
                continue  # it is one of the reasons why the series is refused
            if stored.ndim == 2:
                found.append(header)
                values.append(stored * np.float32(header.slope or 1) + np.float32(header.intercept or 0))
    return found, values


def _height_mm(headers: Sequence[Header]) -> float:
    """Distance between neighbours, so that the picture gets some proportions."""
    if positioned(headers):
        positions = positions_of(headers)
        extent = float(np.ptp(positions @ plane_axes(headers[0].orientation or ())[2])) / (len(headers) - 1)
        if extent > 0:
            return extent
    return headers[0].slice_thickness or 1.0


def _picture(headers: Sequence[Header], values: Sequence[NDArray[Any]]) -> Image.Image:
    spacing = headers[0].pixel_spacing
    spacing = spacing if spacing is not None and min(spacing) > 0 else (1.0, 1.0)
    if len(values) < MINIMUM_SLICES:
        return planar_preview(np.stack(values), spacing)
    volume = np.stack([plane.T for plane in values], axis=2)
    return preview_image(volume, (spacing[1], spacing[0], _height_mm(headers)), headers[0].modality)


def draw_sketch(job: SketchJob) -> dict[str, Any]:
    """Draw what can be decoded.

    Returns:
        "drawn": whether there is a picture.

    Raises:
        DicomError: F08 see `only_this`.
    """
    with only_this():
        headers, values = _decoded(_chosen(job.headers))
        if not headers:
            return {"drawn": False}
        picture = _picture(headers, values).convert("RGB")
    with atomic_path(job.path) as temporary:
        picture.save(temporary, format="PNG")
    return {"drawn": True}
