"""Values, after decoding: W03 and W05."""

from __future__ import annotations

import numpy as np

from lvmmed_monai.ingest.findings import NOTE, WARNING, Finding, counted
from lvmmed_monai.ingest.volumes import DecodedVolume

__all__ = ["CHECKS"]

_CT_AIR_LIMIT_HU = -200
_SATURATED_SHARE = 0.01
_LOOK = "look at the preview"


def slopes_vary(volume: DecodedVolume) -> list[Finding]:
    """W03: the slope differs between slices (usual in PET); each slice was rescaled with its own."""
    low, high = min(volume.slopes), max(volume.slopes)
    if low == high:
        return []
    return [Finding("W03", NOTE, f"RescaleSlope from {low:g} to {high:g}", "one slope", "none")]


def ct_without_air(volume: DecodedVolume) -> list[Finding]:
    """W05: a CT whose smallest value is far from that of air is cropped, or not in HU."""
    low = float(volume.values.min())
    if volume.modality != "CT" or low <= _CT_AIR_LIMIT_HU:
        return []
    return [Finding("W05", WARNING, f"smallest value {low:g} HU", f"at most {_CT_AIR_LIMIT_HU} HU", _LOOK)]


def constant_slices(volume: DecodedVolume) -> list[Finding]:
    """W05: slices without content."""
    slices = volume.values.T.reshape(volume.values.shape[2], -1)  # slice by slice as they lie in memory: no copy
    count = int(np.count_nonzero(slices.min(axis=1) == slices.max(axis=1)))
    if not count:
        return []
    return [Finding("W05", WARNING, f"{counted(count, 'slice')} of one value", "slices with content", _LOOK)]


def saturated(volume: DecodedVolume) -> list[Finding]:
    """W05: too many voxels hold the largest value."""
    low, high = volume.values.min(), volume.values.max()
    share = np.count_nonzero(volume.values == high) / volume.values.size
    if share <= _SATURATED_SHARE or low == high:
        return []
    measured = f"{100 * share:.1f} % of voxels at the largest value"
    return [Finding("W05", WARNING, measured, f"at most {100 * _SATURATED_SHARE:.0f} %", _LOOK)]


def monochrome1(volume: DecodedVolume) -> list[Finding]:
    """W05: the image was stored with small values bright, and was turned."""
    if not volume.inverted:
        return []
    return [Finding("W05", NOTE, "MONOCHROME1, turned so that larger is brighter", "MONOCHROME2", _LOOK)]


CHECKS = [slopes_vary, ct_without_air, constant_slices, saturated, monochrome1]
