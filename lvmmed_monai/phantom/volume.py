"""What every phantom generator gives: one volume with its label map and acquisition values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["PhantomVolume", "lps_affine"]


@dataclass
class PhantomVolume:
    """A generated volume.

    Attributes:
        image: (x, y, z) int16: HU for CT, arbitrary units for MR; x are the columns, y the rows and z the
            slices of the series.
        labels: (x, y, z) uint8 label indices, 0 is background.
        affine: (4, 4) voxel index to RAS millimetres.
        names: label index to name, without background.
        modality: "CT" or "MR".
        acquisition: DICOM keyword to value, for the header (kVp, echo time, contrast agent, ...).
    """

    image: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    names: dict[int, str]
    modality: str
    acquisition: dict[str, object] = field(default_factory=dict)


def lps_affine(directions: np.ndarray, spacing: tuple[float, float, float], origin: np.ndarray) -> np.ndarray:
    """RAS affine (4, 4) from DICOM's terms: columns of ``directions`` (3, 3) are the LPS unit vectors of x, y and z."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, dtype=np.float64) * np.asarray(spacing)
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
