"""Masks: M01 and M02, before a label is drawn. M05 (overlap) is found while drawing."""

from __future__ import annotations

from lvmmed_monai.dicom.seg_reader import on_grid
from lvmmed_monai.ingest.checks.files import REMEDIES
from lvmmed_monai.ingest.findings import ERROR, WARNING, Finding
from lvmmed_monai.ingest.labels import Pairing

__all__ = ["CHECKS"]


def other_frame_of_reference(pairing: Pairing) -> list[Finding]:
    """M01: the label and its images declare different spaces."""
    own = pairing.label.segmentation.frame_of_reference
    images = pairing.series.first.frame_of_reference if pairing.series else ""
    if not own or not images or own == images:
        return []
    remedy = "check that label and images belong together"
    return [Finding("M01", ERROR, "another frame of reference than the images", "the same one", remedy)]


def missing_images(pairing: Pairing) -> list[Finding]:
    """M02: the images are not here, or the frames do not lie on them."""
    expected = "frames that lie on the slices of one accepted series"
    segmentation = pairing.label.segmentation
    if pairing.series is None:
        measured = "no accepted image series, or more than one, fits this label"
        return [Finding("M02", ERROR, measured, expected, REMEDIES["M02"])]
    if not on_grid(segmentation, pairing.series.grid):
        return [Finding("M02", ERROR, "frames that lie on no slice of the image series", expected, REMEDIES["M02"])]
    if not pairing.by_reference and (segmentation.referenced_series or segmentation.referenced_instances):
        measured = "the images that it names are not here; it was placed by its geometry"
        return [Finding("M02", WARNING, measured, expected, "look at the preview")]
    return []


CHECKS = [other_frame_of_reference, missing_images]
