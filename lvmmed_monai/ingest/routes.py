"""Which way an instance goes: by SOP class, then by image type and photometric interpretation."""

from __future__ import annotations

from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.seg_reader import SEGMENTATION_SOP_CLASSES

__all__ = [
    "DATALIST_MODALITIES",
    "LABEL_ROUTES",
    "MODALITIES",
    "PLANAR_ROUTES",
    "has_frame_geometry",
    "known_modality",
    "route",
]

_STORAGE = "1.2.840.10008.5.1.4.1.1."

DATALIST_MODALITIES = {"CT": "CT", "MR": "MR", "PT": "PET"}
"""DICOM modality of a stack of slices, and what the datalist calls it."""
MODALITIES = ("CT", "MR", "PET", "XR", "US", "COLOR", "OTHER")
"""What a datalist may call the modality of an image."""

LABEL_ROUTES = ("segmentation", "structures")
"""Objects that draw on images."""
PLANAR_ROUTES = ("2d", "colour")
"""Images without a place in space."""

_STACKS = {"2", "4", "128"}
_ENHANCED = {"2.1", "2.2", "4.1", "4.4", "130", "128.1"}
_MULTI_FRAME = {*_ENHANCED, "4.3", "20", "12.1.1", "12.2.1", "13.1.1"}
_PLANAR = {"1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "6.1", "6", "3", "3.1", "12.1", "12.2", "12.3"}
_COLOUR_FAMILY = "77."
_TILED_SLIDE = "77.1.6"  # its frames are tiles
_CAPTURES = {"7", "7.1", "7.2", "7.3", "7.4"}
_REPORTS = "88."
_STRUCTURE_SET = "481.3"
_CAPTURE_WORDS = {"SCREEN SAVE", "SCREENSAVE", "DOSE", "DOSE_INFO", "DOSEREPORT", "SCREENSHOT"}
_KNOWN_MODALITIES = {"CT", "MR", "PT", "CR", "DX", "MG", "US", "XA", "RF", "NM", "OT", "SC", "SEG", "SR"}


def known_modality(header: Header) -> str:
    """The modality as the datalist calls it, or another known DICOM term, or "OTHER": free text does not pass."""
    if header.modality in DATALIST_MODALITIES:
        return DATALIST_MODALITIES[header.modality]
    return header.modality if header.modality in _KNOWN_MODALITIES else "OTHER"


def _kind(sop_class: str) -> str:
    return sop_class.removeprefix(_STORAGE) if sop_class.startswith(_STORAGE) else ""


def has_frame_geometry(header: Header) -> bool:
    """Whether the position of each frame stands in functional groups (enhanced CT, MR and PET)."""
    return _kind(header.sop_class) in _ENHANCED


def _by_sop_class(sop_class: str) -> str:
    if sop_class in SEGMENTATION_SOP_CLASSES:
        return "segmentation"
    kind = _kind(sop_class)
    if kind == _STRUCTURE_SET:
        return "structures"
    families = {"stack": _STACKS, "multi-frame": _MULTI_FRAME, "2d": _PLANAR, "capture": _CAPTURES}
    for name, members in families.items():
        if kind in members:
            return name
    if kind.startswith(_REPORTS):
        return "report"
    return "colour" if kind.startswith(_COLOUR_FAMILY) and kind != _TILED_SLIDE else "other"


def _is_colour(header: Header) -> bool:
    return header.samples > 1 or header.photometric.startswith(("RGB", "YBR", "PALETTE"))


def route(header: Header) -> str:
    """The way of an instance.

    Returns:
        "stack", "segmentation", "structures", "localizer", "capture", "report", "colour", "mosaic", "multi-frame",
        "2d" or "other".
    """
    by_class = _by_sop_class(header.sop_class)
    if by_class in ("segmentation", "structures", "capture", "report", "other", "colour"):
        return by_class
    words = set(header.image_type)
    rules = (
        ("localizer", "LOCALIZER" in words),
        ("capture", bool(words & _CAPTURE_WORDS)),
        ("colour", _is_colour(header)),
        ("mosaic", header.mosaic),
        ("stack", by_class == "multi-frame" and header.frame is not None),
        ("multi-frame", by_class == "stack" and header.frames > 1),
    )
    return next((name for name, applies in rules if applies), by_class)
