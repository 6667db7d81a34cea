"""Between volumes and the 2D images a network sees, and back without loss."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, cast

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Orientation
from monai.utils import TraceKeys
from torch import Tensor

from lvmmed_monai.errors import UserError

__all__ = ["PLANES", "RepeatGrey", "RepeatGreyd", "ToSlices", "ToSlicesd"]

PLANES = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}
"""Plane -> where slices, rows and columns run to (anatomical codes), as a reader is used to see that plane:
axial and coronal with the patient's right on the left, coronal and sagittal with the head up."""

_AXES = (("L", "R"), ("P", "A"), ("I", "S"))


class ToSlices(InvertibleTransform):
    """Bring a volume to ``(C, slices, rows, columns)`` of one anatomical plane; a 2D image becomes one slice.

    A volume is reoriented by its affine (RAS, mm), never resampled, so the inverse gives back every voxel and the
    affine. A 2D image ``(C, H, W)`` becomes ``(C, 1, H, W)``.

    Args:
        plane: "axial", "coronal" or "sagittal"; without meaning for 2D images.
    """

    def __init__(self, plane: str = "axial") -> None:
        if plane not in PLANES:
            raise UserError(
                f"plane must be one of {', '.join(PLANES)}, got {plane!r}; ToSlices; correct the configuration"
            )
        self.plane = plane
        self.orientation = Orientation(axcodes=PLANES[plane], labels=_AXES)

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Reorient a volume or lift a 2D image.

        Args:
            image: (C, X, Y, Z) or (C, H, W) with its affine.

        Raises:
            UserError: any other number of dimensions, or an image without metadata.
        """
        if not isinstance(image, MetaTensor) or image.ndim not in (3, 4):
            raise UserError(
                "ToSlices needs a channel-first MetaTensor of 2 or 3 spatial dimensions, got "
                f"{type(image).__name__} of shape {tuple(image.shape)}; a transform before it; "
                "load with LoadImaged and EnsureChannelFirstd"
            )
        if image.ndim == 4:
            return cast(MetaTensor, self.orientation(image))
        # (H, W) -> (1, H, W): the new axis stands first, so the affine's columns move one to the right
        lifted = cast(MetaTensor, image.unsqueeze(1))
        return self.push_transform(lifted, orig_size=tuple(image.shape[1:]), affine=_lift_columns(image))

    def inverse(self, image: MetaTensor) -> MetaTensor:
        """Undo `__call__`: same voxels, same affine."""
        if image.applied_operations[-1][TraceKeys.CLASS_NAME] == type(self.orientation).__name__:
            return cast(MetaTensor, self.orientation.inverse(image))
        self.pop_transform(image)
        flat = cast(MetaTensor, image.squeeze(1))
        flat.affine = image.affine @ _lift_columns(image).T
        return flat


def _lift_columns(image: MetaTensor) -> Tensor:
    """Permutation that puts the third column of a 4x4 affine first; exact, and its transpose undoes it."""
    order = [2, 0, 1, 3]
    return torch.eye(4, dtype=image.affine.dtype)[:, order]


class ToSlicesd(MapTransform, InvertibleTransform):
    """Dictionary form of `ToSlices`; works with Invertd."""

    def __init__(self, keys: KeysCollection, plane: str = "axial", allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.to_slices = ToSlices(plane)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Slice each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.to_slices(result[key])
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.to_slices.inverse(result[key])
        return result


class RepeatGrey:
    """Give an image the number of channels a network wants: grey is repeated, colour stays, alpha is dropped.

    The repeated channels share one memory, so that a cached volume does not grow; they must not be written in place.

    Args:
        channels: channels of the result.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, image: Tensor) -> Tensor:
        """(C, ...) -> (channels, ...).

        Raises:
            UserError: C is neither 1 nor ``channels`` nor ``channels`` plus an alpha channel of a picture.
        """
        found = image.shape[0]
        if found == self.channels:
            return image
        if found == 1:
            return image.expand(self.channels, *image.shape[1:])
        if (found, self.channels) in {(4, 3), (2, 1)}:
            return image[: self.channels]
        raise UserError(
            f"the network takes {self.channels} channel(s) and the image has {found}; shape {tuple(image.shape)}; "
            f"set in_channels to {found}"
        )


class RepeatGreyd(MapTransform):
    """Dictionary form of `RepeatGrey`."""

    def __init__(self, keys: KeysCollection, channels: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.repeat = RepeatGrey(channels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Repeat the channels of each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.repeat(result[key])
        return result
