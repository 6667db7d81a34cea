"""The stack: splits S01 and S03, copies D01 to D04, several volumes T01 and T02."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from lvmmed_monai.dicom.headers import PHASE_KEYWORDS
from lvmmed_monai.ingest.findings import ERROR, NOTE, WARNING, Finding, counted
from lvmmed_monai.ingest.series import Series
from lvmmed_monai.ingest.stack import Stack
from lvmmed_monai.ingest.time_points import BY_NUMBER, component

__all__ = ["CHECKS", "STACK_CHECKS"]

_CONSTANT_PHASES = ("TemporalPositionIdentifier", "DiffusionBValue", "EchoTime")
"""What no volume has two of. Times and AcquisitionNumber do change within good volumes."""
_PHASE_TOLERANCE = 0.01
_QUANTITIES = ("CT", "PT")


def splits(series: Series) -> list[Finding]:
    """S01: image size, pixel type or frame of reference differ inside the series."""
    stacks = Counter(
        (h.rows, h.columns, h.bits_allocated, h.pixel_representation, h.photometric, h.frame_of_reference)
        for h in series.kept
    )
    if len(stacks) < 2:
        return []
    sizes = " + ".join(str(count) for count in stacks.values())
    return [
        Finding(
            "S01",
            ERROR,
            f"{len(stacks)} stacks of {sizes} instances",
            "one image size, pixel type and frame of reference",
            "export each stack as a series of its own",
        )
    ]


def instance_numbers_missing(series: Series) -> list[Finding]:
    """S03: InstanceNumber has holes. The only sign, in a folder, of slices cut off at an end or left behind."""
    numbers = sorted({h.instance_number for h in series.kept if h.instance_number is not None})
    steps = {later - earlier for earlier, later in pairwise(numbers)}
    crowded = max(series.duplicates.per_position, default=1) > 1
    if crowded or len(numbers) < len(series.kept) or 1 not in steps or steps == {1}:
        return []
    expected = numbers[-1] - numbers[0] + 1
    return [
        Finding(
            "S03",
            WARNING,
            counted(len(numbers), "instance"),
            f"{expected} by the range of InstanceNumber",
            "compare with the count in the archive and fetch the series again",
        )
    ]


def copies_by_uid(series: Series) -> list[Finding]:
    """D01: exact copies under one SOPInstanceUID are dropped."""
    count = series.duplicates.same_uid
    return [Finding("D01", NOTE, f"exact copies dropped: {count}", "each instance once", "none")] if count else []


def conflicts_by_uid(series: Series) -> list[Finding]:
    """D02: one SOPInstanceUID stands for different pixels."""
    count = series.duplicates.same_uid_other_pixels
    if not count:
        return []
    remedy = "ask the source which version is right and remove the other"
    return [
        Finding(
            "D02", ERROR, f"{counted(count, 'instance UID')} with different pixels", "one image for each UID", remedy
        )
    ]


def copies_by_position(series: Series) -> list[Finding]:
    """D03: copies at the same position under another UID are dropped."""
    count = series.duplicates.same_position
    return [Finding("D03", NOTE, f"copies dropped: {count}", "one image for each position", "none")] if count else []


def conflicts_by_position(series: Series) -> list[Finding]:
    """D04: some position holds different images (of different UIDs), and nothing tells them apart as volumes."""
    counts = series.duplicates.per_position
    if series.duplicates.same_uid_other_pixels or max(counts, default=1) < 2 or series.split.volumes:
        return []
    crowded = [count for count in counts if count > 1]
    return [
        Finding(
            "D04",
            ERROR,
            f"up to {max(crowded)} different images at {len(crowded)} of {counted(len(counts), 'position')}",
            "one image for each position",
            "ask the source which images belong to the volume",
        )
    ]


def several_volumes(series: Series) -> list[Finding]:
    """T01: every position is there k times (time points, echoes, b-values): each becomes a volume of its own."""
    split = series.split
    if not split.by:
        return []
    count = len(split.volumes) + len(split.incomplete)
    measured = f"{count} volumes of {counted(len(series.duplicates.places), 'slice')}, told apart by {split.by}"
    if split.by == BY_NUMBER:
        remedy = "look at the previews: nothing but the numbering tells the volumes apart"
        return [Finding("T01", WARNING, measured, "one volume", remedy)]
    return [Finding("T01", NOTE, measured, "one volume", "choose the volumes that you need")]


def incomplete_volume(series: Series) -> list[Finding]:
    """T02: a time point lacks slices; it is left out."""
    if not series.split.incomplete:
        return []
    sizes = ", ".join(map(str, series.split.incomplete))
    places = counted(len(series.duplicates.places), "slice")
    return [Finding("T02", WARNING, f"volumes of {sizes} slices left out", places, "fetch the series again")]


def _differs(stack: Stack, keyword: str) -> bool:
    index = PHASE_KEYWORDS.index(keyword)
    values = {header.phases[index] for header in stack.members}
    known = [value for value in values if value is not None]
    return len(values) > len(known) > 0 or (len(known) > 1 and max(known) - min(known) > _PHASE_TOLERANCE * max(known))


def mixed_volumes(stack: Stack) -> list[Finding]:
    """S01: echo, b-value, time point or image component differ between the slices of one volume."""
    differing = [name for name in _CONSTANT_PHASES if _differs(stack, name)]
    if len({component(header) for header in stack.members}) > 1:
        differing.append("ImageType")
    if not differing:
        return []
    measured = f"{', '.join(differing)} differ between slices at different positions"
    return [Finding("S01", ERROR, measured, "the same for all slices", "export each volume as a series of its own")]


def rescaling(stack: Stack) -> list[Finding]:
    """S01: the rescaling to real values is stated in some slices only, or is by 0: values would be wrong there."""
    lacking = sum(header.slope is None or header.intercept is None for header in stack.members)
    zero = sum(header.slope == 0 for header in stack.members)
    if not zero and lacking in (0, len(stack.members)):
        return []
    measured = f"{counted(lacking + zero, 'slice')} of {len(stack.members)} without a usable rescaling"
    remedy = "fetch the series again; its headers are damaged"
    return [Finding("S01", ERROR, measured, "RescaleSlope and RescaleIntercept in all slices or in none", remedy)]


def no_rescaling(stack: Stack) -> list[Finding]:
    """W03: CT or PET without a rescaling: nothing says that the values are in HU, or in activity."""
    if stack.first.modality not in _QUANTITIES or any(header.slope is not None for header in stack.members):
        return []
    remedy = "look at the values before you trust a window or a threshold"
    return [Finding("W03", WARNING, "no rescaling", "RescaleSlope and RescaleIntercept", remedy)]


CHECKS = [
    splits,
    instance_numbers_missing,
    copies_by_uid,
    conflicts_by_uid,
    copies_by_position,
    conflicts_by_position,
    several_volumes,
    incomplete_volume,
]
STACK_CHECKS = [mixed_volumes, rescaling, no_rescaling]
