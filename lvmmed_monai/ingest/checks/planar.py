"""Pictures and clips: W03 and W05 after decoding; D01 and D02 for copies of one instance."""

from __future__ import annotations

import numpy as np

from lvmmed_monai.dicom.planar import CUT, TURNED, UNSCALED, PlanarImage
from lvmmed_monai.ingest.findings import ERROR, NOTE, WARNING, Finding, counted

__all__ = ["CHECKS", "SATURATED_SHARE", "conflicts", "copies"]

SATURATED_SHARE = 0.01
"""More of the pixels than this at the largest value says that the detector, or a conversion, cut values off."""
_LOOK = "look at the preview"


def copies(count: int) -> list[Finding]:
    """D01: exact copies under one SOPInstanceUID are dropped."""
    return [Finding("D01", NOTE, f"exact copies dropped: {count}", "each instance once", "none")] if count else []


def conflicts(count: int) -> list[Finding]:
    """D02: one SOPInstanceUID stands for different pixels."""
    if not count:
        return []
    measured = f"{counted(count, 'further instance')} of the same UID with different pixels"
    remedy = "ask the source which version is right and remove the other"
    return [Finding("D02", ERROR, measured, "one image for each UID", remedy)]


def constant(image: PlanarImage) -> list[Finding]:
    """W05: a picture, or frames of a clip, without content."""
    flat = image.frames.reshape(len(image.frames), -1, 3 if image.colour else 1)
    count = int(np.count_nonzero((flat.min(axis=1) == flat.max(axis=1)).all(axis=1)))
    if not count:
        return []
    measured = f"{counted(count, 'frame')} of {len(flat)} of one value"
    return [Finding("W05", WARNING, measured, "pictures with content", _LOOK)]


def saturated(image: PlanarImage) -> list[Finding]:
    """W05: too many pixels of a picture of more than 8 bits hold its largest value.

    Pictures of 8 bits, in colour or grey, are made for display: white in them is usual and says nothing.
    """
    frames = image.frames
    top = frames.max()
    if frames.dtype != np.uint16 or frames.min() == top:
        return []
    share = float(np.mean(frames == top))
    if share <= SATURATED_SHARE:
        return []
    measured = f"{100 * share:.1f} % of pixels at the largest value"
    return [Finding("W05", WARNING, measured, f"at most {100 * SATURATED_SHARE:.0f} %", _LOOK)]


def turned(image: PlanarImage) -> list[Finding]:
    """W05: the picture was stored with small values bright, and was turned."""
    if TURNED not in image.notes:
        return []
    return [Finding("W05", NOTE, "MONOCHROME1, turned so that larger is brighter", "MONOCHROME2", _LOOK)]


def unscaled(image: PlanarImage) -> list[Finding]:
    """W03: the rescaling gives no whole numbers from 0 to 65535, and was left out."""
    if UNSCALED not in image.notes:
        return []
    return [Finding("W03", NOTE, "a rescaling that a picture cannot hold", "whole numbers from 0 to 65535", "none")]


def cut(image: PlanarImage) -> list[Finding]:
    """W05: colours of more than 8 bits were cut to 8."""
    if CUT not in image.notes:
        return []
    return [Finding("W05", NOTE, "colours of more than 8 bits, cut to 8", "8 bits", "none")]


CHECKS = [constant, saturated, turned, unscaled, cut]
