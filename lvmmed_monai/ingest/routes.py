"""Which way an instance goes: by SOP class, then by image type and photometric interpretation."""

from __future__ import annotations

from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.seg_reader import SEGMENTATION_SOP_CLASSES

__all__ = ["DATALIST_MODALITIES", "known_modality", "route"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."

DATALIST_MODALITIES = {"CT": "CT", "MR": "MR", "PT": "PET"}
"""DICOM modality of a stack of slices, and what the datalist calls it."""

_STACKS = {"2", "4", "128"}
_MULTI_FRAME = {"2.1", "2.2", "4.1", "4.3", "4.4", "130", "128.1", "20", "3.1", "12.1.1", "12.2.1", "13.1.1"}
_PLANAR = {"1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "6.1", "6", "3", "12.1", "12.2", "12.3"}
_COLOUR_FAMILY = "77."
_CAPTURES = {"7", "7.1", "7.2", "7.3", "7.4"}
_REPORTS = "88."
_CAPTURE_WORDS = {"SCREEN SAVE", "SCREENSAVE", "DOSE", "DOSE_INFO", "DOSEREPORT", "SCREENSHOT"}
_KNOWN_MODALITIES = {"CT", "MR", "PT", "CR", "DX", "MG", "US", "XA", "RF", "NM", "OT", "SC", "SEG", "SR"}


def known_modality(header: Header) -> str:
    """The modality as the datalist calls it, or another known DICOM term, or "OTHER": free text does not pass."""
    if header.modality in DATALIST_MODALITIES:
        return DATALIST_MODALITIES[header.modality]
    return header.modality if header.modality in _KNOWN_MODALITIES else "OTHER"


def _by_sop_class(sop_class: str) -> str:
    if sop_class in SEGMENTATION_SOP_CLASSES:
        return "segmentation"
    kind = sop_class.removeprefix(_STORAGE) if sop_class.startswith(_STORAGE) else ""
    families = {"stack": _STACKS, "multi-frame": _MULTI_FRAME, "2d": _PLANAR, "capture": _CAPTURES}
    for name, members in families.items():
        if kind in members:
            return name
    if kind.startswith(_REPORTS):
        return "report"
    return "colour" if kind.startswith(_COLOUR_FAMILY) else "other"


def _is_colour(header: Header) -> bool:
    return header.samples > 1 or header.photometric.startswith(("RGB", "YBR", "PALETTE"))


def route(header: Header) -> str:
    """The way of an instance.

    Returns:
        "stack", "segmentation", "localizer", "capture", "report", "colour", "mosaic", "multi-frame", "2d" or "other".
    """
    by_class = _by_sop_class(header.sop_class)
    if by_class in ("segmentation", "capture", "report", "other", "colour"):
        return by_class
    words = set(header.image_type)
    rules = (
        ("localizer", "LOCALIZER" in words),
        ("capture", bool(words & _CAPTURE_WORDS)),
        ("colour", _is_colour(header)),
        ("mosaic", header.mosaic),
        ("multi-frame", by_class == "stack" and header.frames > 1),
    )
    return next((name for name, applies in rules if applies), by_class)
