"""One series in memory: the same checks as the ingest, without files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.ingest.checks import values as value_checks
from lvmmed_monai.ingest.checks.files import from_error
from lvmmed_monai.ingest.findings import ERROR, Finding, refuses, run_checks
from lvmmed_monai.ingest.jobs import CheckJob, ScanJob, check_series, only_this, scan
from lvmmed_monai.ingest.routes import LABEL_ROUTES, route
from lvmmed_monai.ingest.series import group_headers
from lvmmed_monai.ingest.stack import Stack
from lvmmed_monai.ingest.volumes import decode_volume

__all__ = ["RefusedSeriesError", "Volume", "read_volume", "read_volumes"]

PathLike = str | os.PathLike[str]


class RefusedSeriesError(DataError):
    """The files give no volume that can be trusted.

    Attributes:
        findings: why, and what else was found.
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        first = next(finding for finding in self.findings if finding.severity == ERROR)
        super().__init__(
            f"the series is refused ({first.code}: {first.measured}; expected {first.expected}); "
            f"the files given; {first.remedy}"
        )


@dataclass(frozen=True)
class Volume:
    """A volume, and where each of its slices came from.

    Attributes:
        array: (columns, rows, slices) int16 or float32; HU for CT.
        affine: (4, 4) voxel indices to RAS in mm.
        instances: file (or archive member) of each slice.
        findings: warnings and notes about it.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    instances: tuple[Source, ...]
    findings: tuple[Finding, ...]


def read_volumes(files: Iterable[PathLike], strict: bool = False) -> list[Volume]:
    """Read all volumes of some files: one for each series, or for each time point, echo or b-value in it.

    Args:
        files: DICOM files in any order; label objects among them are passed over.
        strict: smaller geometric tolerances, and tilted series are refused instead of repaired.

    Raises:
        RefusedSeriesError: a file cannot be used, or a series or a volume in it does not pass its checks.
    """
    scanned = scan(ScanJob(0, tuple(Source(os.path.abspath(file)) for file in files)))
    if scanned.bad:
        raise RefusedSeriesError([bad.finding for bad in scanned.bad])
    series = group_headers(header for header in scanned.headers if route(header) not in LABEL_ROUTES)
    if not series:
        raise UserError("no DICOM image was given; the files; name the files of one series")
    found: list[Volume] = []
    for headers in series:
        try:
            checked = check_series(CheckJob(0, headers, strict))
        except DicomError as error:
            raise RefusedSeriesError([from_error(error)]) from None
        about = [*checked.findings, *(finding for stack in checked.stacks for finding in stack.findings)]
        if not checked.stacks and not refuses(about):
            about.append(Finding("G04", ERROR, "planar images", "slices with a place in space", "use the ingest"))
        if refuses(about):
            raise RefusedSeriesError(about)
        for stack in checked.stacks:
            members = Stack(tuple(headers[index] for index in stack.members), strict)
            found.append(_decoded(members, [*checked.findings, *stack.findings]))
    return found


def _decoded(stack: Stack, findings: list[Finding]) -> Volume:
    try:
        with SourceReader() as reader, only_this():
            volume = decode_volume(stack, reader)
    except DicomError as error:
        raise RefusedSeriesError([*findings, from_error(error)]) from None
    findings += run_checks(value_checks.CHECKS, volume)
    instances = tuple(header.source for header in stack.slices)
    return Volume(volume.values, volume.grid.affine, instances, tuple(findings))


def read_volume(files: Iterable[PathLike], strict: bool = False) -> Volume:
    """Read the one volume of a series.

    Raises:
        RefusedSeriesError: see `read_volumes`; or the files hold several volumes (T01).
    """
    volumes = read_volumes(files, strict)
    if len(volumes) > 1:
        remedy = "use read_volumes, and choose"
        raise RefusedSeriesError([Finding("T01", ERROR, f"{len(volumes)} volumes", "one volume", remedy)])
    return volumes[0]
