"""Geometry: G01 to G08, and what W01, W02 and W04 say about positions.

Tolerances stand in `lvmmed_monai.dicom.geometry`.
"""

from __future__ import annotations

from lvmmed_monai.dicom.geometry import (
    DRIFT_TOLERANCE,
    LARGEST_TILT_DEG,
    ORIENTATION_LIMIT_DEG,
    PIXEL_SPACING_TOLERANCE,
    TILT_LIMIT_DEG,
    is_orientation,
    step_tolerance_mm,
)
from lvmmed_monai.ingest.findings import ERROR, WARNING, Finding, counted
from lvmmed_monai.ingest.stack import Stack

__all__ = ["CHECKS"]

_STEPS_SHOWN = 6


def _one_orientation(stack: Stack) -> bool:
    return stack.positioned and stack.spread_deg <= ORIENTATION_LIMIT_DEG


def _measurable(stack: Stack) -> bool:
    """Whether steps between the slices mean something."""
    return _one_orientation(stack) and stack.places == len(stack.members) >= stack.minimum


def no_position(stack: Stack) -> list[Finding]:
    """G04: no position, or no valid orientation."""
    lacking = sum(header.position is None or not is_orientation(header.orientation or ()) for header in stack.members)
    if not lacking:
        return []
    return [
        Finding(
            "G04",
            ERROR,
            f"{lacking} of {counted(len(stack.members), 'instance')} without position or orientation",
            "ImagePositionPatient and ImageOrientationPatient in each",
            "export the original series; as planar images they can be described with a manifest",
        )
    ]


def no_spacing(stack: Stack) -> list[Finding]:
    """G05: no PixelSpacing."""
    lacking = sum(header.pixel_spacing is None or min(header.pixel_spacing) <= 0 for header in stack.members)
    if not lacking:
        return []
    measured = f"{lacking} of {counted(len(stack.members), 'instance')} without pixel spacing"
    return [Finding("G05", ERROR, measured, "PixelSpacing in each", "export the original series")]


def mixed_planes(stack: Stack) -> list[Finding]:
    """G06: orientation or pixel spacing differ inside the stack."""
    if not stack.positioned:
        return []
    spacings = [
        header.pixel_spacing for header in stack.members if header.pixel_spacing and min(header.pixel_spacing) > 0
    ]
    differences = [abs(s[axis] / spacings[0][axis] - 1) for s in spacings for axis in (0, 1)]
    difference = max(differences, default=0.0)
    if stack.spread_deg <= ORIENTATION_LIMIT_DEG and difference <= PIXEL_SPACING_TOLERANCE:
        return []
    return [
        Finding(
            "G06",
            ERROR,
            f"orientations {stack.spread_deg:.1f} degrees apart, pixel spacings {100 * difference:.1f} % apart",
            f"at most {ORIENTATION_LIMIT_DEG} degrees and {100 * PIXEL_SPACING_TOLERANCE:.1f} %",
            "export each orientation as a series of its own",
        )
    ]


def too_few(stack: Stack) -> list[Finding]:
    """G07: too few slices to show that steps are even."""
    if not stack.positioned or stack.places >= stack.minimum or stack.places < len(stack.members):
        return []
    measured, expected = counted(stack.places, "slice"), f"at least {stack.minimum}"
    return [Finding("G07", ERROR, measured, expected, "choose another series, or fetch this one again")]


def _steps_text(stack: Stack) -> str:
    steps = [f"{step:.2f}" for step in stack.steps.steps_mm[:_STEPS_SHOWN]]
    return ", ".join(steps) + (", ..." if len(stack.steps.steps_mm) > _STEPS_SHOWN else "") + " mm"


def gap(stack: Stack) -> list[Finding]:
    """G01: slices are missing inside."""
    if not _measurable(stack) or stack.steps.kind != "gap":
        return []
    places = [str(i + 1) for i, step in enumerate(stack.steps.steps_mm) if step > 1.5 * stack.steps.spacing_mm]
    shown = ", ".join(places[:_STEPS_SHOWN]) + (", ..." if len(places) > _STEPS_SHOWN else "")
    return [
        Finding(
            "G01",
            ERROR,
            f"{counted(stack.steps.missing, 'slice')} missing, after slice {shown} of {len(stack.members)}",
            f"a slice every {stack.steps.spacing_mm:.2f} mm",
            "fetch the series again",
        )
    ]


def irregular(stack: Stack) -> list[Finding]:
    """G02: steps differ, or slices leave the straight line."""
    if not _measurable(stack) or stack.steps.kind != "irregular":
        return []
    tolerance = step_tolerance_mm(stack.steps.spacing_mm, stack.strict)
    drift = DRIFT_TOLERANCE * stack.steps.spacing_mm
    return [
        Finding(
            "G02",
            ERROR,
            f"steps {_steps_text(stack)}; slices up to {stack.steps.drift_mm:.2f} mm off an even line",
            f"steps within {tolerance:.2f} mm of each other, slices within {drift:.2f} mm of the line",
            "choose another reconstruction of the study",
        )
    ]


def tilt(stack: Stack) -> list[Finding]:
    """G03: slices are stacked at an angle (tilted gantry); a plain stack would be sheared."""
    if not _measurable(stack) or stack.tilt <= TILT_LIMIT_DEG:
        return []
    measured = f"stacked at {stack.tilt:.1f} degrees to the normal"
    if stack.strict or stack.tilt > LARGEST_TILT_DEG:
        limit = TILT_LIMIT_DEG if stack.strict else LARGEST_TILT_DEG
        return [Finding("G03", ERROR, measured, f"at most {limit:g} degrees", "choose another series of the study")]
    remedy = "none; slices were shifted in their planes onto an orthogonal grid (--strict refuses instead)"
    return [Finding("G03", WARNING, measured, f"at most {TILT_LIMIT_DEG} degrees", remedy)]


def no_frame_of_reference(stack: Stack) -> list[Finding]:
    """G08: without it nothing says that two series share a space."""
    if not stack.members or all(header.frame_of_reference for header in stack.members):
        return []
    remedy = "check by eye that results lie on the images"
    return [Finding("G08", WARNING, "no FrameOfReferenceUID", "one for the series", remedy)]


def declared_spacing(stack: Stack) -> list[Finding]:
    """W01: SpacingBetweenSlices or SliceThickness disagree with the positions."""
    if not _measurable(stack):
        return []
    spacing = stack.steps.spacing_mm
    declared = {
        "SpacingBetweenSlices": stack.first.spacing_between,
        "SliceThickness": stack.first.slice_thickness,
    }
    tolerance = step_tolerance_mm(spacing)
    wrong = [f"{name} {value:g} mm" for name, value in declared.items() if value and abs(value - spacing) > tolerance]
    if not wrong:
        return []
    return [Finding("W01", WARNING, ", ".join(wrong), f"{spacing:.2f} mm by the positions", "none; positions win")]


def numbers_not_spatial(stack: Stack) -> list[Finding]:
    """W02: InstanceNumber does not follow the positions."""
    numbers = [header.instance_number for header in stack.slices] if _measurable(stack) else []
    known = [number for number in numbers if number is not None]
    if known in (sorted(known), sorted(known, reverse=True)):
        return []
    measured = "InstanceNumber does not follow the positions"
    return [Finding("W02", WARNING, measured, "ascending or descending numbers", "none; positions win")]


def jitter(stack: Stack) -> list[Finding]:
    """W04: steps are even enough, but not quite even."""
    if not _measurable(stack) or stack.steps.kind != "regular":
        return []
    limit = step_tolerance_mm(stack.steps.spacing_mm, strict=True)
    if stack.steps.deviation_mm <= limit:
        return []
    measured = f"steps differ by up to {stack.steps.deviation_mm:.3f} mm"
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
