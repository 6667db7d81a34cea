"""A label map as a DICOM Segmentation object on the slices of its source series.

BINARY, Explicit VR Little Endian, one segment per label that occurs, frames without a voxel left out:
the form that every reader tried so far understands.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from lvmmed_monai import __version__
from lvmmed_monai.dicom.seg_sources import check_grid, check_sources, cleaned
from lvmmed_monai.dicom.segment_codes import display_colour, segment_code
from lvmmed_monai.dicom.uids import derived_uid
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path

__all__ = ["write_segmentation"]

_log = logging.getLogger(__name__)

MANUFACTURER = "lvmmed_monai"
SERIES_DESCRIPTION = "Segmentation (research, not for diagnosis)"


def write_segmentation(
    path: str | os.PathLike[str],
    mask: np.ndarray,
    affine: np.ndarray,
    sources: Sequence[pydicom.Dataset],
    labels: Mapping[int, str] | Mapping[str, str],
    *,
    algorithm_name: str = MANUFACTURER,
    series_description: str = SERIES_DESCRIPTION,
    series_number: int = 900,
    created: datetime | None = None,
) -> Path | None:
    """Write a label map as DICOM SEG and read it back.

    Patient, study and frame of reference are those of the source. The new UIDs depend only on the
    source series, the label map and its names, so the same result written again is the same object.

    Args:
        path: the file to write; it is there whole and verified, or not at all.
        mask: (x, y, z) label indices, x along the rows (columns), y along the columns (rows) and z in
            the order of ``sources``; 0 is background.
        affine: (4, 4) voxel index to RAS millimetres.
        sources: headers of the source instances, one per slice.
        labels: label index to name (the keys may be strings, as JSON has them).
        algorithm_name: what made the mask.
        series_description: of the new series.
        series_number: of the new series, 900 or more, clear of a scanner's own numbers.
        created: date and time that the object bears; by default now.

    Returns:
        The path, or None when the mask has no label voxel: a SEG without frames is not valid, so none is
        written, and the log says so.

    Raises:
        UserError: mask, affine, labels and sources do not fit together, or the sources cannot be referred to.
        RuntimeError: what was written does not read back as the mask.
    """
    if series_number < 900:
        raise UserError(f"series_number must be 900 or more, got {series_number}; write_segmentation; raise it")
    names = {int(index): str(name) for index, name in labels.items() if int(index) != 0}
    mask = _checked_mask(mask, names)
    affine = np.asarray(affine, dtype=np.float64)
    check_sources(sources)
    check_grid(mask, affine, sources)
    headers = [cleaned(source, affine) for source in sources]
    present = [int(index) for index in np.unique(mask) if index]
    if not present:
        _log.info("no voxel was labelled, so no DICOM SEG was written")
        return None
    renumber = np.zeros(256, dtype=np.uint8)
    renumber[present] = np.arange(1, len(present) + 1)
    numbered = renumber[mask]
    segmentation = _build(numbered, present, names, headers, algorithm_name, series_description, series_number)
    _stamp(segmentation, created or datetime.now())
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)
        if not np.array_equal(_read_back(temporary, headers, numbered.shape), numbered):
            raise RuntimeError("the DICOM SEG does not read back as the mask it was written from; nothing was kept")
    return Path(path)


def _checked_mask(mask: np.ndarray, names: Mapping[int, str]) -> np.ndarray:
    array = np.asarray(mask)
    if array.ndim != 3:
        raise UserError(
            f"the mask must be (x, y, z), got shape {array.shape}; write_segmentation; drop or add axes first"
        )
    values = np.unique(array)
    unknown = [float(value) for value in values if value != 0 and value not in names]
    if unknown or max(names, default=0) > 255:
        raise UserError(
            f"the mask holds values without a name in the labels: {unknown[:5]}; write_segmentation; "
            "give the label names (0 to 255) that the mask was made with"
        )
    return array.astype(np.uint8)


def _build(
    numbered: np.ndarray,
    present: Sequence[int],
    names: Mapping[int, str],
    headers: Sequence[pydicom.Dataset],
    algorithm_name: str,
    series_description: str,
    series_number: int,
) -> Any:
    """The highdicom object for a mask of segment numbers 1, 2, ... of the labels ``present``."""
    import highdicom

    content = hashlib.sha256(np.ascontiguousarray(numbered).tobytes())
    content.update(json.dumps([[index, names[index]] for index in present]).encode())
    parts = (str(headers[0].SeriesInstanceUID), algorithm_name, __version__, content.hexdigest())
    with warnings.catch_warnings():
        # About empty frames that it leaves out, and about values of the source that it copies as they are.
        warnings.simplefilter("ignore")
        segmentation = highdicom.seg.Segmentation(
            source_images=list(headers),
            pixel_array=np.ascontiguousarray(numbered.transpose(2, 1, 0)),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_descriptions(present, names, algorithm_name),
            series_instance_uid=derived_uid("segmentation series", *parts),
            series_number=series_number,
            sop_instance_uid=derived_uid("segmentation instance", *parts),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=algorithm_name[:64],
            software_versions=__version__,
            device_serial_number="none",
            content_description="research, not for diagnosis",
            content_label="SEGMENTATION",
            series_description=series_description[:64],
            omit_empty_frames=True,
            # Names of patients and labels may hold any letter; the source's own character set may not.
            specific_character_set="ISO_IR 192",
        )
    organisation = derived_uid("dimension organisation", *parts)
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = organisation
    return segmentation


def _descriptions(present: Sequence[int], names: Mapping[int, str], algorithm_name: str) -> list[Any]:
    import highdicom
    from highdicom.sr.coding import CodedConcept

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=algorithm_name[:64],
        family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=__version__,
    )
    descriptions = []
    for number, index in enumerate(present, start=1):
        category, kind = segment_code(names[index])
        descriptions.append(
            highdicom.seg.SegmentDescription(
                segment_number=number,
                segment_label=names[index][:64],
                segmented_property_category=CodedConcept(category[0], "SCT", category[1]),
                segmented_property_type=CodedConcept(kind[0], "SCT", kind[1]),
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                display_color=highdicom.color.CIELabColor(*display_colour(index)),
            )
        )
    return descriptions


def _stamp(segmentation: pydicom.Dataset, created: datetime) -> None:
    """Give the object one date and time of making, and the empty creator's name that readers look for."""
    date, time = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
    for name in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(segmentation, name, date)
    for name in ("SeriesTime", "ContentTime", "InstanceCreationTime"):
        setattr(segmentation, name, time)
    for equipment in segmentation.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = date + time
    segmentation.ContentCreatorName = ""


def _read_back(path: Path, headers: Sequence[pydicom.Dataset], shape: tuple[int, ...]) -> np.ndarray:
    """Decode a SEG by its own positions: (x, y, z) segment numbers on the slices of the source."""
    written = pydicom.dcmread(path)
    row, column = np.reshape(np.asarray(headers[0].ImageOrientationPatient, dtype=np.float64), (2, 3))
    positions = np.array([header.ImagePositionPatient for header in headers], dtype=np.float64)
    frames = written.pixel_array.reshape(-1, shape[1], shape[0])
    shared = written.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    if not np.allclose(np.asarray(orientation, dtype=np.float64), (*row, *column), atol=1e-4):
        raise RuntimeError("the DICOM SEG has another orientation than its source; nothing was kept")
    mask = np.zeros(shape, dtype=np.uint8)
    for frame, groups in zip(frames, written.PerFrameFunctionalGroupsSequence, strict=True):
        # With one segment highdicom states it once, in the shared groups.
        identification = groups.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        position = np.asarray(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        distance = np.linalg.norm(positions - position, axis=1)
        k = int(distance.argmin())
        if distance[k] > 1e-2:
            raise RuntimeError("a frame of the DICOM SEG stands on no source slice; nothing was kept")
        mask[:, :, k][frame.T > 0] = identification[0].ReferencedSegmentNumber
    return mask
