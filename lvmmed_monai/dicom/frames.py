"""Multi-frame objects: one header for each frame, so that what follows sees slices as in any other series."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from lvmmed_monai.dicom.header_rules import PHASE_KEYWORDS
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.values import image_type_of, number_of, numbers_of, parsing, value_of

__all__ = ["MAX_FRAMES", "read_frames"]

MAX_FRAMES = 200_000
"""An object that claims more frames is refused (F06)."""

# What tells volumes apart: keyword of `PHASE_KEYWORDS`, group, and the value in it.
_PHASE_VALUES = {
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
}
_PHASE_TIMES = {"AcquisitionTime": "FrameAcquisitionDateTime", "ContentTime": "FrameReferenceDateTime"}
_TIME_OF_DAY = re.compile(r"[0-9]{8}([0-9]{6}(?:\.[0-9]+)?)")
_PLACES = {
    tag_for_keyword(keyword)
    for keyword in ("StackID", "InStackPositionNumber", "ImagePositionPatient", "ImagePositionVolume")
}

Groups = dict[str, Dataset]


def _groups(item: Dataset) -> Groups:
    """The functional groups in an item: keyword of the sequence to its first item."""
    found = {element.keyword: element.value for element in item if element.VR == "SQ" and element.keyword}
    return {keyword: items[0] for keyword, items in found.items() if items}


def _value(groups: Groups, group: str, keyword: str) -> Any:
    return value_of(groups[group], keyword) if group in groups else None


def _number(groups: Groups, group: str, keyword: str) -> float | None:
    return number_of(groups[group], keyword) if group in groups else None


def _numbers(groups: Groups, group: str, keyword: str, count: int) -> tuple[float, ...] | None:
    return numbers_of(groups[group], keyword, count) if group in groups else None


def _time_of_day(groups: Groups, keyword: str) -> float | None:
    """Date and time as HHMMSS.ffffff."""
    found = _TIME_OF_DAY.match(str(_value(groups, "FrameContentSequence", keyword) or ""))
    return float(found[1]) if found else None


def _phases(groups: Groups, header: Header, rank: int | None) -> tuple[float | None, ...]:
    found = {keyword: _number(groups, *place) for keyword, place in _PHASE_VALUES.items()}
    found |= {keyword: _time_of_day(groups, name) for keyword, name in _PHASE_TIMES.items()}
    if found["DiffusionBValue"] is None and _value(groups, "MRDiffusionSequence", "DiffusionDirectionality") == "NONE":
        found["DiffusionBValue"] = 0.0
    if rank is not None:
        found["TemporalPositionIdentifier"] = float(rank)
    of_file = dict(zip(PHASE_KEYWORDS, header.phases, strict=True))
    return tuple(of_file[key] if found.get(key) is None else found[key] for key in PHASE_KEYWORDS)


def _frame_type(groups: Groups) -> tuple[str, ...]:
    types = (image_type_of(item, "FrameType") for keyword, item in groups.items() if keyword.endswith("TypeSequence"))
    return next((values for values in types if values), ())


def _index_values(groups: Groups) -> tuple[int, ...]:
    values = _value(groups, "FrameContentSequence", "DimensionIndexValues")
    return tuple(int(value) for value in (values if isinstance(values, Sequence) else [values]) if value is not None)


def _ranks(dataset: Dataset, frames: Sequence[Groups]) -> list[int | None]:
    """Which volume each frame belongs to by its dimension indices other than the place; None where they do not say.

    A stack of diffusion images, or of several echoes and kinds, often has one temporal position only; then the other
    indices tell its volumes apart.
    """
    indices = [_index_values(groups) for groups in frames]
    temporal = {_number(groups, *_PHASE_VALUES["TemporalPositionIdentifier"]) for groups in frames}
    length = len(indices[0])
    pointers = [value_of(item, "DimensionIndexPointer") for item in value_of(dataset, "DimensionIndexSequence") or []]
    if len(temporal) > 1 or not length or any(len(values) != length for values in indices):
        return [None] * len(frames)
    if len(pointers) == length:
        other = [column for column, pointer in enumerate(pointers) if pointer not in _PLACES]
    else:
        places = [_number(groups, "FrameContentSequence", "InStackPositionNumber") for groups in frames]
        other = [column for column in range(length) if [values[column] for values in indices] != places]
    keys = [tuple(values[column] for column in other) for values in indices]
    order = {key: rank for rank, key in enumerate(sorted(set(keys)), start=1)}
    return [order[key] if len(order) > 1 else None for key in keys]


def _frame_header(header: Header, groups: Groups, index: int, rank: int | None) -> Header:
    measures, rescaling = "PixelMeasuresSequence", "PixelValueTransformationSequence"
    spacing = _numbers(groups, measures, "PixelSpacing", 2)
    image_type = _frame_type(groups) or header.image_type
    place = _number(groups, "FrameContentSequence", "InStackPositionNumber")
    found = {
        "position": _numbers(groups, "PlanePositionSequence", "ImagePositionPatient", 3),
        "orientation": _numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
        "pixel_spacing": spacing,
        "planar_spacing": spacing if spacing and min(spacing) > 0 else None,
        "slice_thickness": _number(groups, measures, "SliceThickness"),
        "spacing_between": _number(groups, measures, "SpacingBetweenSlices"),
        "slope": _number(groups, rescaling, "RescaleSlope"),
        "intercept": _number(groups, rescaling, "RescaleIntercept"),
    }
    return replace(
        header,
        **{name: value for name, value in found.items() if value is not None},  # type: ignore[arg-type]
        image_type=image_type,
        mosaic="MOSAIC" in image_type,
        instance_number=index + 1 if place is None else int(place),
        phases=_phases(groups, header, rank),
        frame=index,
    )


def _frame_groups(dataset: Dataset, frames: int) -> list[Groups]:
    """The groups of each frame: its own, and those that all share."""
    shared = value_of(dataset, "SharedFunctionalGroupsSequence")
    own = value_of(dataset, "PerFrameFunctionalGroupsSequence")
    if own is not None and len(own) != frames:
        raise DicomError("F03", f"functional groups of {len(own)} frames", f"{frames}, one for each frame")
    common = _groups(shared[0]) if shared else {}
    return [common | _groups(item) for item in own] if own is not None else [common] * frames


def read_frames(dataset: Dataset, header: Header) -> list[Header]:
    """One header for each frame of an instance.

    What the frame's functional groups say (position, orientation, spacing, rescaling, frame type, time point, echo,
    b-value) replaces what stands in the header; without groups the frames differ in ``frame`` alone.

    Args:
        dataset: the instance; its pixels are not needed.
        header: its header.

    Returns:
        In the order of the file, ``frame`` from 0; ``instance_number`` is the place in the stack where stated.

    Raises:
        DicomError: F03 groups that do not belong to the frames, or broken ones; F06 too many frames.
    """
    if not 1 <= header.frames <= MAX_FRAMES:
        raise DicomError("F06", f"{header.frames} frames", f"1 to {MAX_FRAMES}")
    with parsing():
        groups = _frame_groups(dataset, header.frames)
        ranks = _ranks(dataset, groups)
        return [_frame_header(header, groups[index], index, ranks[index]) for index in range(header.frames)]
