"""Codes and display colours of segments: SNOMED CT (SCT) by the names that label sets use."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["SegmentCode", "display_colour", "segment_code"]


class SegmentCode(NamedTuple):
    """Category and type of a segmented property, each (SCT code value, meaning)."""

    category: tuple[str, str]
    type: tuple[str, str]


_ANATOMY = ("91723000", "Anatomical Structure")
_TISSUE = ("85756007", "Tissue")
_ABNORMAL = ("49755003", "Morphologically Abnormal Structure")

_FALLBACK = SegmentCode(_ANATOMY, ("91772007", "Organ"))

# Keys are normalised names: lower case, words separated by one underscore.
_CODES = {
    "adrenal_gland": SegmentCode(_ANATOMY, ("23451007", "Adrenal gland")),
    "aorta": SegmentCode(_ANATOMY, ("15825003", "Aorta")),
    "bladder": SegmentCode(_ANATOMY, ("89837001", "Bladder")),
    "bone": SegmentCode(_ANATOMY, ("272673000", "Bone")),
    "brain": SegmentCode(_ANATOMY, ("12738006", "Brain")),
    "colon": SegmentCode(_ANATOMY, ("71854001", "Colon")),
    "esophagus": SegmentCode(_ANATOMY, ("32849002", "Esophagus")),
    "gallbladder": SegmentCode(_ANATOMY, ("28231008", "Gallbladder")),
    "grey_matter": SegmentCode(_TISSUE, ("40146001", "Cerebral Gray Matter")),
    "heart": SegmentCode(_ANATOMY, ("80891009", "Heart")),
    "hippocampus": SegmentCode(_ANATOMY, ("5366008", "Hippocampus")),
    "inferior_vena_cava": SegmentCode(_ANATOMY, ("64131007", "Inferior vena cava")),
    "kidney": SegmentCode(_ANATOMY, ("64033007", "Kidney")),
    "kidney_left": SegmentCode(_ANATOMY, ("18639004", "Left kidney")),
    "kidney_right": SegmentCode(_ANATOMY, ("9846003", "Right kidney")),
    "lesion": SegmentCode(_ABNORMAL, ("52988006", "Lesion")),
    "liver": SegmentCode(_ANATOMY, ("10200004", "Liver")),
    "lung": SegmentCode(_ANATOMY, ("39607008", "Lung")),
    "nodule": SegmentCode(_ABNORMAL, ("27925004", "Nodule")),
    "pancreas": SegmentCode(_ANATOMY, ("15776009", "Pancreas")),
    "prostate": SegmentCode(_ANATOMY, ("41216001", "Prostate")),
    "spinal_cord": SegmentCode(_ANATOMY, ("2748008", "Spinal cord")),
    "spleen": SegmentCode(_ANATOMY, ("78961009", "Spleen")),
    "stomach": SegmentCode(_ANATOMY, ("69695003", "Stomach")),
    "tumor": SegmentCode(_ABNORMAL, ("108369006", "Neoplasm")),
    "ventricle": SegmentCode(_ANATOMY, ("35764002", "Brain ventricle")),
    "white_matter": SegmentCode(_TISSUE, ("68523003", "Cerebral White Matter")),
}

_SYNONYMS = {
    "gray_matter": "grey_matter",
    "ivc": "inferior_vena_cava",
    "left_kidney": "kidney_left",
    "lungs": "lung",
    "oesophagus": "esophagus",
    "right_kidney": "kidney_right",
    "tumour": "tumor",
    "ventricles": "ventricle",
}

# CIELab (L*, a*, b*), far apart from each other; after the last one they begin again.
_COLOURS = (
    (62.0, 55.0, 40.0),
    (66.0, -45.0, 45.0),
    (58.0, 10.0, -50.0),
    (85.0, -8.0, 70.0),
    (60.0, 60.0, -35.0),
    (75.0, -35.0, -15.0),
    (88.0, 3.0, 18.0),
    (50.0, 65.0, 50.0),
    (70.0, 25.0, 65.0),
    (45.0, -25.0, 10.0),
)


def segment_code(name: str) -> SegmentCode:
    """The codes for a label's name, or the general ones (an organ) for a name that is not in the table."""
    key = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return _CODES.get(_SYNONYMS.get(key, key), _FALLBACK)


def display_colour(index: int) -> tuple[float, float, float]:
    """CIELab colour of the label with this index (from 1 on): the same label has the same colour everywhere."""
    return _COLOURS[(index - 1) % len(_COLOURS)]
