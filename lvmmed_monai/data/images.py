"""Shapes and values of the image files that a datalist may name: NIfTI and the common 2D formats.

Arrays of 2D images are (rows, columns[, colour]) as Pillow gives them; shapes are (columns, rows[, slices]),
which is the order of a NIfTI array and of what MONAI's readers give.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvmmed_monai.errors import DataError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "IMAGE_SUFFIXES",
    "NIFTI_SUFFIXES",
    "ImageContent",
    "image_stem",
    "is_image",
    "read_content",
    "spatial_shape",
    "volume_mm3",
]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *_PICTURE_SUFFIXES)


@dataclass(frozen=True)
class ImageContent:
    """One image file, read.

    Attributes:
        array: (x, y, z[, t]) with the file's scale and offset applied, or (rows, columns[, colour]).
        affine: (4, 4) voxel to RAS millimetres; None for 2D formats.
    """

    array: np.ndarray
    affine: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Columns, rows[, slices]."""
        if self.affine is None:
            return self.array.shape[1], self.array.shape[0]
        return self.array.shape[:3]


def image_stem(name: str | Path) -> str:
    """File name without folder and without the ending of an image format (``.nii.gz`` counts as one)."""
    base = Path(name).name
    for suffix in IMAGE_SUFFIXES:
        if base.lower().endswith(suffix):
            return base[: -len(suffix)]
    return Path(base).stem


def is_image(name: str | Path) -> bool:
    """True when the file name ends like an image format that can be read here."""
    return str(name).lower().endswith(IMAGE_SUFFIXES)


def _is_nifti(path: str | Path) -> bool:
    return str(path).lower().endswith(NIFTI_SUFFIXES)


def _open_nifti(path: str | Path) -> Any:
    import nibabel

    return nibabel.load(path)


def _unreadable(path: str | Path, error: BaseException) -> DataError:
    return DataError(
        f"image cannot be read ({type(error).__name__}); {Path(path).name}; "
        "replace the file or remove it from the datalist"
    )


def spatial_shape(path: str | Path) -> tuple[int, ...]:
    """Columns, rows[, slices] of an image, from its header alone.

    Raises:
        DataError: the file is missing, is no image, or its header is broken.
    """
    try:
        if _is_nifti(path):
            return tuple(int(size) for size in _open_nifti(path).shape[:3])
        from PIL import Image

        with Image.open(path) as picture:
            return picture.size
    except Exception as error:  # nibabel and Pillow raise errors of many kinds for broken files
        raise _unreadable(path, error) from error


def volume_mm3(path: str | Path) -> float:
    """Volume of a NIfTI image in mm3, all its voxels, from its header alone.

    Raises:
        DataError: the file is missing, is no NIfTI, or its header is broken.
    """
    import numpy as np

    try:
        image = _open_nifti(path)
        return abs(float(np.linalg.det(image.affine[:3, :3]))) * float(np.prod(image.shape[:3]))
    except Exception as error:
        raise _unreadable(path, error) from error


def read_content(path: str | Path) -> ImageContent:
    """Read a whole image.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    import numpy as np

    try:
        if _is_nifti(path):
            nifti = _open_nifti(path)
            return ImageContent(np.asanyarray(nifti.dataobj), np.asarray(nifti.affine, dtype=np.float64))
        from PIL import Image

        with Image.open(path) as picture:
            return ImageContent(np.asarray(picture), None)
    except Exception as error:  # nibabel and Pillow raise errors of many kinds for broken files
        raise _unreadable(path, error) from error
