"""The stack: splits S01 and S03, copies D01 to D04, several volumes T01."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from lvmmed_monai.ingest.findings import ERROR, NOTE, WARNING, Finding, counted
from lvmmed_monai.ingest.series import Series

__all__ = ["CHECKS"]


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
    """D04: some position holds different images (of different UIDs), and it is no complete set of volumes."""
    counts = series.duplicates.per_position
    if series.duplicates.same_uid_other_pixels or max(counts, default=1) < 2 or _volumes(counts) > 1:
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
    """T01: every position is there k times: time points, echoes or b-values in one series."""
    counts = series.duplicates.per_position
    volumes = _volumes(counts)
    if volumes < 2:
        return []
    return [
        Finding(
            "T01",
            ERROR,
            f"{volumes} volumes of {len(counts)} slices in one series",
            "one volume",
            "export each time point, echo or b-value as a series of its own",
        )
    ]


def _volumes(counts: tuple[int, ...]) -> int:
    """How many volumes share the positions evenly; a single position is no volume."""
    return counts[0] if len(counts) > 1 and len(set(counts)) == 1 else 1


CHECKS = [
    splits,
    instance_numbers_missing,
    copies_by_uid,
    conflicts_by_uid,
    copies_by_position,
    conflicts_by_position,
    several_volumes,
]
