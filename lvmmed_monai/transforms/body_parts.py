"""Published preparation of CT by body part (VoCo v2): voxel size, intensity window, and how a volume meets a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BODY_PART_PRESETS", "BodyPartPreset", "preset_of_body_part"]


@dataclass(frozen=True)
class BodyPartPreset:
    """How volumes of a body part are prepared.

    Attributes:
        spacing_mm: voxel size along R, A and S.
        ct_window: HU that become 0 and 1.
        fit: "window": blocks are windows of the resampled volume; "resize": the volume, cut to the body, is resized
            to one block, whatever the voxels become.
    """

    spacing_mm: tuple[float, float, float]
    ct_window: tuple[float, float]
    fit: Literal["window", "resize"]


_ABDOMEN = (1.5, 1.5, 1.5), (-175.0, 250.0)

BODY_PART_PRESETS = {
    "abdomen": BodyPartPreset(*_ABDOMEN, "window"),
    "abdomen_resized": BodyPartPreset(*_ABDOMEN, "resize"),
    "chest": BodyPartPreset((1.25, 1.25, 5.0), (-1000.0, 500.0), "window"),
    "head_neck": BodyPartPreset(*_ABDOMEN, "resize"),
}
"""By name. A block of 192 x 192 x 64 voxels covers 288 x 288 x 96 mm of an abdomen, 240 x 240 x 320 mm of a chest;
``abdomen_resized`` was used for lesion scans of a few slices, ``head_neck`` for mixed body parts, too."""

# Words of DICOM's Body Part Examined, without blanks and signs.
_WORDS = {
    "abdomen": ("ABDOMEN", "ABDOMENPELVIS", "COLON", "KIDNEY", "LIVER", "PANCREAS", "PELVIS", "SPLEEN", "STOMACH"),
    "chest": ("CHEST", "LUNG", "THORAX"),
    "head_neck": ("HEAD", "HEADNECK", "HEADANDNECK", "NECK"),
}
_NAMES = {word: name for name, words in _WORDS.items() for word in words}


def preset_of_body_part(body_part: str | None) -> BodyPartPreset | None:
    """The preset of a body part as DICOM or a datalist names it ("Chest", "HEAD AND NECK"); None for any other."""
    word = "".join(filter(str.isalnum, body_part or "")).upper()
    return BODY_PART_PRESETS[_NAMES[word]] if word in _NAMES else None
