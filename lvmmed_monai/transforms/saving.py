"""Writing predicted label maps on the grid of the image they belong to."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path

__all__ = ["PICTURE_SUFFIXES", "OneNamePerSource", "SaveImageMaskd", "source_stem"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def source_stem(path: str | os.PathLike[str]) -> str:
    """File name without its endings (``a.nii.gz`` -> ``a``; other dots belong to the name)."""
    name = Path(path).name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else Path(name).stem


class OneNamePerSource:
    """Refuses that two images of a run, equal in name, end in one output file."""

    def __init__(self) -> None:
        self._sources: dict[str, str] = {}

    def stem_of(self, image: Any) -> str:
        """The stem of the file that ``image`` came from.

        Raises:
            UserError: the image has no file name, or another file had the same stem.
        """
        source = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
        if not source:
            raise UserError(
                "a prediction has lost its metadata, so its file name and grid are unknown; postprocessing; "
                "keep MetaTensors (set_track_meta(True)) and run Invertd before saving"
            )
        stem = source_stem(source)
        if self._sources.setdefault(stem, os.path.abspath(source)) != os.path.abspath(source):
            raise UserError(
                f"two images are called {stem}; their outputs would overwrite each other; "
                "give the images different names or run them separately"
            )
        return stem


def _check_grid(mask: MetaTensor, picture: bool, stem: str) -> None:
    """Refuse a prediction of another shape than its file: Invertd has not brought it back, and says nothing itself."""
    if "spatial_shape" not in mask.meta:
        return
    stored = [int(side) for side in mask.meta["spatial_shape"]]
    expected = stored[::-1] if picture else stored  # pictures give width before height
    # axes of length 1 come and go between file formats
    if [side for side in mask.shape[1:] if side != 1] != [side for side in expected if side != 1]:
        raise UserError(
            f"the prediction has shape {tuple(mask.shape[1:])}, its image {tuple(expected)}; {stem}; "
            "put Invertd with the preprocessing before SaveImageMaskd"
        )


class SaveImageMaskd(SaveImaged):
    """Write label maps as uint8 under ``<output_dir>/<stem>_<postfix>``: NIfTI, or PNG where the image was a picture.

    The files are written beside their place and renamed. Shape and affine are those of the prediction, which Invertd
    has brought back to the image's grid. PNG pixels are class numbers.

    Args:
        keys: predictions (1, ...) with metadata.
        output_dir: folder, made when the first file is written.
        postfix: last part of the file name.
        allow_missing_keys: leave absent keys alone instead of raising.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike[str],
        postfix: str = "seg",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys,
            output_dir=Path(output_dir),
            output_postfix=postfix,
            output_dtype=np.uint8,
            resample=False,
            separate_folder=False,
            print_log=False,
            allow_missing_keys=allow_missing_keys,
        )
        self.output_dir = Path(output_dir)
        self.postfix = postfix
        self._names = OneNamePerSource()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write each key; the data come back unchanged."""
        result = dict(data)
        for key in self.key_iterator(result):
            self._write(result[key])
        return result

    def _write(self, mask: MetaTensor) -> None:
        stem = self._names.stem_of(mask)
        array = mask.detach().cpu().numpy()
        if array.shape[0] != 1 or array.min() < 0 or array.max() > 255:
            raise UserError(
                f"a label map must have one channel and values 0 to 255, got shape {array.shape} and values "
                f"{array.min():g} to {array.max():g}; {stem}; put AsDiscreted(argmax) before SaveImageMaskd"
            )
        picture = Path(mask.meta["filename_or_obj"]).suffix.lower() in PICTURE_SUFFIXES
        _check_grid(mask, picture, stem)
        if picture:
            from PIL import Image

            with atomic_path(self.output_dir / f"{stem}_{self.postfix}.png") as path:
                Image.fromarray(array[0].astype(np.uint8)).save(path, format="PNG")
            return
        with atomic_path(self.output_dir / f"{stem}_{self.postfix}.nii.gz") as path:
            # the saver adds the ending to the name it is given
            self.saver(mask, filename=str(path).removesuffix(self.saver.output_ext))
