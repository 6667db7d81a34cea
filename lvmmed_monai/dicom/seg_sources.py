"""The source side of a DICOM SEG: may it refer to these instances, and do they carry its grid?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pydicom

from lvmmed_monai.errors import UserError

__all__ = ["check_grid", "check_sources", "cleaned"]

# Source slices may stand this far from the affine's grid: a fifth of a millimetre is a fraction of
# any voxel, and above the rounding of positions and the jitter that ingest accepts in thin slices.
POSITION_TOLERANCE_MM = 0.2
# Thick slices: ingest takes steps that vary by 5 %; two of them may add up.
POSITION_TOLERANCE_STEPS = 0.1

# Patient and study attributes of type 2: highdicom reads them, and de-identified files often lack them.
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def cleaned(source: pydicom.Dataset, affine: np.ndarray) -> pydicom.Dataset:
    """A copy in which nothing is missing or malformed that highdicom reads."""
    header = copy.deepcopy(source)
    for name in _TYPE_2:
        if name not in header:
            setattr(header, name, "")
    for name, form in (("StudyDate", "%Y%m%d"), ("PatientBirthDate", "%Y%m%d"), ("StudyTime", "%H%M%S")):
        if not _parses(str(header.get(name) or ""), form):
            setattr(header, name, "")
    if not header.get("SliceThickness"):
        # highdicom requires a number; where the thickness is unknown, the slices are taken to touch each other.
        header.SliceThickness = round(_distance_between_slices(affine), 6)
    return header


def _distance_between_slices(affine: np.ndarray) -> float:
    """Step from slice to slice along the normal of the slices, in millimetres (less than the step if tilted)."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return float(abs(affine[:3, 2] @ normal) / np.linalg.norm(normal))


def _parses(text: str, form: str) -> bool:
    try:
        datetime.strptime(text.split(".")[0], form)
    except ValueError:
        return False
    return True


def check_sources(headers: Sequence[pydicom.Dataset]) -> None:
    """Raise `UserError` unless the headers are of one series and have what a reference needs."""
    needed = (
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "Rows",
        "Columns",
    )
    for name in needed:
        lacking = sum(not header.get(name) for header in headers)
        if lacking:
            raise UserError(
                f"{lacking} of {len(headers)} source instances have no {name}; the source series; "
                "a DICOM SEG cannot refer to them, write NIfTI only"
            )
    for name in ("SeriesInstanceUID", "FrameOfReferenceUID"):
        if len({header[name].value for header in headers}) > 1:
            raise UserError(
                f"the source instances differ in {name}; the source series; give the instances of one series only"
            )


def check_grid(mask: np.ndarray, affine: np.ndarray, headers: Sequence[pydicom.Dataset]) -> None:
    """Compare the corners of each mask slice with those of its source slice, in LPS millimetres."""
    shape = (int(headers[0].Columns), int(headers[0].Rows), len(headers)) if headers else (0, 0, 0)
    if mask.shape != shape:
        raise UserError(
            f"the mask has shape {mask.shape}, the source series {shape}; columns, rows, slices; "
            "give the mask on the grid of its source volume"
        )
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    corners = np.array([(0, 0), (shape[0] - 1, 0), (0, shape[1] - 1)], dtype=np.float64)
    worst = 0.0
    for k, header in enumerate(headers):
        expected = (to_lps[:3, :2] @ corners.T).T + to_lps[:3, 2] * k + to_lps[:3, 3]
        row, column = np.reshape(np.asarray(header.ImageOrientationPatient, dtype=np.float64), (2, 3))
        between_rows, between_columns = (float(value) for value in header.PixelSpacing)
        origin = np.asarray(header.ImagePositionPatient, dtype=np.float64)
        actual = origin + corners[:, :1] * between_columns * row + corners[:, 1:] * between_rows * column
        worst = max(worst, float(np.abs(expected - actual).max()))
    allowed = max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_STEPS * float(np.linalg.norm(to_lps[:3, 2])))
    if worst > allowed:
        raise UserError(
            f"the mask lies up to {worst:.2f} mm off its source slices ({allowed:.2f} mm allowed); affine and series; "
            "give the mask on the grid of its source volume, slices in the same order"
        )
