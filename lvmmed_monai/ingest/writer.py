"""Files of one volume: NIfTI image and label, preview. Each is whole or absent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.dicom.geometry import Array
from lvmmed_monai.files import atomic_path
from lvmmed_monai.ingest.findings import Finding
from lvmmed_monai.ingest.preview import preview_image
from lvmmed_monai.ingest.volumes import DecodedVolume

__all__ = ["VolumePaths", "facts", "write_nifti", "write_volume"]

_SCANNER_SPACE = 1


class VolumePaths:
    """Where the files of a volume lie below the output folder."""

    def __init__(self, out: Path, volume_id: str) -> None:
        self.image = out / "images" / f"{volume_id}.nii.gz"
        self.label = out / "labels" / f"{volume_id}.nii.gz"
        self.channels = out / "labels" / f"{volume_id}_channels.nii.gz"
        self.preview = out / "previews" / f"{volume_id}.png"

    def complete(self, made: Mapping[str, Any]) -> bool:
        """Whether all files of a volume are there, of which its job said ``made``."""
        labels = (self.label.is_file() or made["labels"] is None) and (
            self.channels.is_file() or made["label_channels"] is None
        )
        return labels and self.image.is_file() and self.preview.is_file()


def write_nifti(path: Path, array: NDArray[Any], affine: Array) -> None:
    """Write an array as compressed NIfTI, atomically.

    Args:
        path: ends in ``.nii.gz``.
        array: (columns, rows, slices).
        affine: (4, 4) voxel indices to RAS in mm; stands in both the sform and the qform.
    """
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=_SCANNER_SPACE)
    image.set_qform(affine, code=_SCANNER_SPACE)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def write_volume(
    paths: VolumePaths,
    volume: DecodedVolume,
    labels: NDArray[np.uint8] | None,
    channels: NDArray[np.uint8] | None,
) -> None:
    """Write image, labels (or remove old ones) and preview.

    Args:
        paths: of the volume.
        volume: decoded.
        labels: (columns, rows, slices) label indices, or None.
        channels: (columns, rows, slices, names) 0 or 1, where labels overlap, or None.
    """
    write_nifti(paths.image, volume.values, volume.grid.affine)
    for path, array in ((paths.label, labels), (paths.channels, channels)):
        if array is None:
            path.unlink(missing_ok=True)
        else:
            write_nifti(path, array, volume.grid.affine)
    shown = labels if channels is None else (channels * np.arange(1, channels.shape[3] + 1, dtype=np.uint8)).max(axis=3)
    picture = preview_image(volume.values, volume.grid.spacing_mm, volume.modality, shown)
    with atomic_path(paths.preview) as temporary:
        picture.save(temporary, format="PNG")


def facts(
    volume: DecodedVolume,
    findings: Iterable[Finding],
    labels: Sequence[str] | None = None,
    label_channels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What ``qc.json`` says of a volume.

    Args:
        volume: decoded.
        findings: about its values and labels.
        labels: names of the labels in its map, None without one.
        label_channels: names of the channels where labels overlap, None without them.
    """
    return {
        "shape": list(volume.grid.shape),
        "spacing_mm": [round(step, 6) for step in volume.grid.spacing_mm],
        "value_range": [float(volume.values.min()), float(volume.values.max())],
        "labels": None if labels is None else list(labels),
        "label_channels": None if label_channels is None else list(label_channels),
        "decoders": list(volume.decoders),
        "findings": [finding.as_dict() for finding in findings],
    }
