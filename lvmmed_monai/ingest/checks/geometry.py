"""Geometry: G01 to G08, and what W01, W02 and W04 say about positions.

Tolerances stand in `lvmmed_monai.dicom.geometry`.
"""

from __future__ import annotations

from lvmmed_monai.dicom.geometry import (
    DRIFT_TOLERANCE,
    ORIENTATION_LIMIT_DEG,
    PIXEL_SPACING_TOLERANCE,
    STEP_TOLERANCE_MM,
    STEP_TOLERANCE_RELATIVE,
    STRICT_STEP_TOLERANCE_MM,
    STRICT_STEP_TOLERANCE_RELATIVE,
    TILT_LIMIT_DEG,
    is_orientation,
)
from lvmmed_monai.ingest.findings import ERROR, WARNING, Finding, counted
from lvmmed_monai.ingest.series import Series

__all__ = ["CHECKS", "MINIMUM_SLICES"]

MINIMUM_SLICES = 3
"""Two slices cannot show whether steps are even."""
_STEPS_SHOWN = 6


def _one_orientation(series: Series) -> bool:
    return series.positioned and series.spread_deg <= ORIENTATION_LIMIT_DEG


def _measurable(series: Series) -> bool:
    """Whether steps between the slices mean something."""
    return _one_orientation(series) and series.distinct_positions and len(series.kept) >= MINIMUM_SLICES


def no_position(series: Series) -> list[Finding]:
    """G04: no position, or no valid orientation."""
    lacking = sum(header.position is None or not is_orientation(header.orientation or ()) for header in series.kept)
    if not lacking:
        return []
    return [
        Finding(
            "G04",
            ERROR,
            f"{lacking} of {counted(len(series.kept), 'instance')} without position or orientation",
            "ImagePositionPatient and ImageOrientationPatient in each",
            "export the original series; as planar images they can be described with a manifest",
        )
    ]


def no_spacing(series: Series) -> list[Finding]:
    """G05: no PixelSpacing."""
    lacking = sum(header.pixel_spacing is None or min(header.pixel_spacing) <= 0 for header in series.kept)
    if not lacking:
        return []
    measured = f"{lacking} of {counted(len(series.kept), 'instance')} without pixel spacing"
    return [Finding("G05", ERROR, measured, "PixelSpacing in each", "export the original series")]


def mixed_planes(series: Series) -> list[Finding]:
    """G06: orientation or pixel spacing differ inside the series."""
    if not series.positioned:
        return []
    spacings = [
        header.pixel_spacing for header in series.kept if header.pixel_spacing and min(header.pixel_spacing) > 0
    ]
    differences = [abs(s[axis] / spacings[0][axis] - 1) for s in spacings for axis in (0, 1)]
    difference = max(differences, default=0.0)
    if series.spread_deg <= ORIENTATION_LIMIT_DEG and difference <= PIXEL_SPACING_TOLERANCE:
        return []
    return [
        Finding(
            "G06",
            ERROR,
            f"orientations {series.spread_deg:.1f} degrees apart, pixel spacings {100 * difference:.1f} % apart",
            f"at most {ORIENTATION_LIMIT_DEG} degrees and {100 * PIXEL_SPACING_TOLERANCE:.1f} %",
            "export each orientation as a series of its own",
        )
    ]


def too_few(series: Series) -> list[Finding]:
    """G07: too few slices to show that steps are even."""
    count = len(series.duplicates.per_position)
    if not series.positioned or count >= MINIMUM_SLICES or max(series.duplicates.per_position) > 1:
        return []
    expected = f"at least {MINIMUM_SLICES}"
    return [Finding("G07", ERROR, counted(count, "slice"), expected, "choose another series, or fetch this one again")]


def _steps_text(series: Series) -> str:
    steps = [f"{step:.2f}" for step in series.steps.steps_mm[:_STEPS_SHOWN]]
    return ", ".join(steps) + (", ..." if len(series.steps.steps_mm) > _STEPS_SHOWN else "") + " mm"


def gap(series: Series) -> list[Finding]:
    """G01: slices are missing inside."""
    if not _measurable(series) or series.steps.kind != "gap":
        return []
    places = [str(i + 1) for i, step in enumerate(series.steps.steps_mm) if step > 1.5 * series.steps.spacing_mm]
    shown = ", ".join(places[:_STEPS_SHOWN]) + (", ..." if len(places) > _STEPS_SHOWN else "")
    return [
        Finding(
            "G01",
            ERROR,
            f"{counted(series.steps.missing, 'slice')} missing, after slice {shown} of {len(series.kept)}",
            f"a slice every {series.steps.spacing_mm:.2f} mm",
            "fetch the series again",
        )
    ]


def irregular(series: Series) -> list[Finding]:
    """G02: steps differ, or slices leave the straight line."""
    if not _measurable(series) or series.steps.kind != "irregular":
        return []
    tolerance = max(STEP_TOLERANCE_MM, STEP_TOLERANCE_RELATIVE * series.steps.spacing_mm)
    drift = DRIFT_TOLERANCE * series.steps.spacing_mm
    return [
        Finding(
            "G02",
            ERROR,
            f"steps {_steps_text(series)}; slices up to {series.steps.drift_mm:.2f} mm off an even line",
            f"steps within {tolerance:.2f} mm of each other, slices within {drift:.2f} mm of the line",
            "choose another reconstruction of the study",
        )
    ]


def tilt(series: Series) -> list[Finding]:
    """G03: slices are stacked at an angle (tilted gantry); a plain stack would be sheared."""
    if not _measurable(series) or series.tilt <= TILT_LIMIT_DEG:
        return []
    return [
        Finding(
            "G03",
            ERROR,
            f"stacked at {series.tilt:.1f} degrees to the normal",
            f"at most {TILT_LIMIT_DEG} degrees",
            "correct the tilt with a tool that states it, or choose another series",
        )
    ]


def no_frame_of_reference(series: Series) -> list[Finding]:
    """G08: without it nothing says that two series share a space."""
    if not series.kept or all(header.frame_of_reference for header in series.kept):
        return []
    remedy = "check by eye that results lie on the images"
    return [Finding("G08", WARNING, "no FrameOfReferenceUID", "one for the series", remedy)]


def declared_spacing(series: Series) -> list[Finding]:
    """W01: SpacingBetweenSlices or SliceThickness disagree with the positions."""
    if not _measurable(series):
        return []
    spacing = series.steps.spacing_mm
    declared = {
        "SpacingBetweenSlices": series.first.spacing_between,
        "SliceThickness": series.first.slice_thickness,
    }
    tolerance = max(STEP_TOLERANCE_MM, STEP_TOLERANCE_RELATIVE * spacing)
    wrong = [f"{name} {value:g} mm" for name, value in declared.items() if value and abs(value - spacing) > tolerance]
    if not wrong:
        return []
    return [Finding("W01", WARNING, ", ".join(wrong), f"{spacing:.2f} mm by the positions", "none; positions win")]


def numbers_not_spatial(series: Series) -> list[Finding]:
    """W02: InstanceNumber does not follow the positions."""
    numbers = [header.instance_number for header in series.slices] if _measurable(series) else []
    known = [number for number in numbers if number is not None]
    if known in (sorted(known), sorted(known, reverse=True)):
        return []
    measured = "InstanceNumber does not follow the positions"
    return [Finding("W02", WARNING, measured, "ascending or descending numbers", "none; positions win")]


def jitter(series: Series) -> list[Finding]:
    """W04: steps are even enough, but not quite even."""
    if not _measurable(series) or series.steps.kind != "regular":
        return []
    limit = max(STRICT_STEP_TOLERANCE_MM, STRICT_STEP_TOLERANCE_RELATIVE * series.steps.spacing_mm)
    if series.steps.deviation_mm <= limit:
        return []
    measured = f"steps differ by up to {series.steps.deviation_mm:.3f} mm"
    return [Finding("W04", WARNING, measured, f"at most {limit:.3f} mm", "look at the preview")]


CHECKS = [
    no_position,
    no_spacing,
    mixed_planes,
    too_few,
    gap,
    irregular,
    tilt,
    no_frame_of_reference,
    declared_spacing,
    numbers_not_spatial,
    jitter,
]
