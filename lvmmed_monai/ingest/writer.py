"""Files of one volume: NIfTI image and label, preview. Each is whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.dicom.geometry import Array
from lvmmed_monai.files import atomic_path
from lvmmed_monai.ingest.preview import preview_image
from lvmmed_monai.ingest.volumes import DecodedVolume

__all__ = ["VolumePaths", "write_nifti", "write_volume"]

_SCANNER_SPACE = 1


class VolumePaths:
    """Where the files of a volume lie below the output folder."""

    def __init__(self, out: Path, volume_id: str) -> None:
        self.image = out / "images" / f"{volume_id}.nii.gz"
        self.label = out / "labels" / f"{volume_id}.nii.gz"
        self.preview = out / "previews" / f"{volume_id}.png"

    def complete(self, labelled: bool) -> bool:
        """Whether all files of the volume are there."""
        return self.image.is_file() and self.preview.is_file() and (self.label.is_file() or not labelled)


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


def write_volume(paths: VolumePaths, volume: DecodedVolume, labels: NDArray[np.uint8] | None) -> None:
    """Write image, label (or remove an old one) and preview."""
    write_nifti(paths.image, volume.values, volume.grid.affine)
    if labels is None:
        paths.label.unlink(missing_ok=True)
    else:
        write_nifti(paths.label, labels, volume.grid.affine)
    picture = preview_image(volume.values, volume.grid.spacing_mm, volume.modality, labels)
    with atomic_path(paths.preview) as temporary:
        picture.save(temporary, format="PNG")
