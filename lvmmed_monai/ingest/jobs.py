"""What runs in worker processes: reading headers, checking series, making files. All that crosses can be pickled."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.dicomdir import MEDIA_DIRECTORY
from lvmmed_monai.dicom.frames import read_frames
from lvmmed_monai.dicom.geometry import TILT_LIMIT_DEG
from lvmmed_monai.dicom.headers import Header, read_dataset, read_header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.checks import SERIES_CHECKS, STACK_CHECKS
from lvmmed_monai.ingest.checks import files as file_checks
from lvmmed_monai.ingest.checks import values as value_checks
from lvmmed_monai.ingest.findings import Finding, run_checks
from lvmmed_monai.ingest.inventory import BadFile
from lvmmed_monai.ingest.labels import DrawnLabels, LabelObject, LabelTable, Pairing, draw_labels, read_label_object
from lvmmed_monai.ingest.planar import make_planar
from lvmmed_monai.ingest.routes import PLANAR_ROUTES, has_frame_geometry, route
from lvmmed_monai.ingest.series import Series
from lvmmed_monai.ingest.stack import Stack
from lvmmed_monai.ingest.tilt import straighten
from lvmmed_monai.ingest.volumes import decode_volume, pixel_digest
from lvmmed_monai.ingest.writer import VolumePaths, facts, write_volume

__all__ = [
    "CheckJob",
    "Checked",
    "CheckedStack",
    "PlanarJob",
    "ScanJob",
    "Scanned",
    "VolumeJob",
    "check_series",
    "make_images",
    "make_volume",
    "only_this",
    "read_label",
    "scan",
]

HEAD_BYTES = 64 * 1024
"""Read of each file at first: nearly all headers end before."""

_SIZED_ROUTES = ("stack", "multi-frame", "segmentation", *PLANAR_ROUTES)


@contextmanager
def only_this() -> Iterator[None]:
    """Whatever a broken object makes this program or a library raise costs the object and not the run (F08).

    Raises:
        DicomError: as it came, or F08 for a mistake that nobody foresaw. Its text may hold values and is left out.
    """
    try:
        yield
    except (DicomError, UserError, OSError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a decoder that is written in Rust is no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        measured = f"{type(error).__name__} in {Path(where.filename).stem}, line {where.lineno}"
        raise DicomError("F08", measured, "an object that this program can judge") from None


@dataclass(frozen=True)
class ScanJob:
    """Read the headers of some instances; ``number`` is the place of the job among all."""

    number: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Scanned:
    """Headers, one for each frame of an enhanced object, and what was wrong with the other instances."""

    headers: tuple[Header, ...]
    bad: tuple[BadFile, ...]


def _headers_of(source: Source, reader: SourceReader) -> tuple[Header, ...]:
    header = read_header(reader.head(source, HEAD_BYTES), source, lambda: reader.read(source))
    if has_frame_geometry(header):
        return tuple(read_frames(read_dataset(reader.read(source), pixels=False), header))
    return (header,)


def scan(job: ScanJob) -> Scanned:
    """Read headers; a bad file costs itself and never the run. Media directories are passed over."""
    headers: list[Header] = []
    bad: list[BadFile] = []
    with SourceReader() as reader:
        for source in job.sources:
            try:
                with only_this():
                    found = _headers_of(source, reader)
            except DicomError as error:
                bad.append(BadFile(source, file_checks.from_error(error)))
                continue
            if found[0].sop_class == MEDIA_DIRECTORY:
                continue
            wrong = run_checks(file_checks.CHECKS, found[0]) if route(found[0]) in _SIZED_ROUTES else []
            bad += [BadFile(source, finding) for finding in wrong]
            headers += () if wrong else found
    return Scanned(tuple(headers), tuple(bad))


@dataclass(frozen=True)
class CheckJob:
    """Check one series; ``number`` is its place among all."""

    number: int
    headers: tuple[Header, ...]
    strict: bool


@dataclass(frozen=True)
class CheckedStack:
    """One volume of a series: which of the job's headers are its slices, and what was found about it."""

    members: tuple[int, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Checked:
    """What was found about a series as a whole, and about each volume in it."""

    findings: tuple[Finding, ...]
    stacks: tuple[CheckedStack, ...]

    def as_dict(self, headers: int) -> dict[str, Any]:
        """For the journal; ``headers`` is the number of the job's headers."""
        whole = tuple(range(headers))
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "stacks": [
                {
                    "members": None if stack.members == whole else stack.members,
                    "findings": [finding.as_dict() for finding in stack.findings],
                }
                for stack in self.stacks
            ],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], headers: int) -> Checked:
        """From the journal."""
        stacks = (
            CheckedStack(
                tuple(stack["members"] or range(headers)), tuple(Finding(**found) for found in stack["findings"])
            )
            for stack in record["stacks"]
        )
        return cls(tuple(Finding(**found) for found in record["findings"]), tuple(stacks))


def _in_file_order(stack: Stack, number: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(sorted(number[id(member)] for member in stack.members))


def check_series(job: CheckJob) -> Checked:
    """Apply all checks that need headers (and the pixels of possible copies)."""
    with SourceReader() as reader, only_this():
        series = Series(job.headers, pixel_digest(reader), job.strict)
        findings = tuple(run_checks(SERIES_CHECKS, series))
        number = {id(header): index for index, header in enumerate(job.headers)}
        stacks = tuple(
            CheckedStack(_in_file_order(stack, number), tuple(run_checks(STACK_CHECKS, stack)))
            for stack in series.stacks
        )
    return Checked(findings, stacks)


def read_label(header: Header) -> LabelObject:
    """Read a label object without its pixels.

    Raises:
        DicomError: it is broken.
    """
    with SourceReader() as reader, only_this():
        return read_label_object(header, reader)


@dataclass(frozen=True)
class VolumeJob:
    """Make the files of one volume."""

    volume_id: str
    members: tuple[Header, ...]
    pairings: tuple[Pairing, ...]
    table: LabelTable
    out: Path


def _draw(job: VolumeJob, stack: Stack, reader: SourceReader) -> DrawnLabels:
    """Labels of a volume, on its grid: those of a tilted one are drawn on its slices and moved with them."""
    if not job.pairings:
        return DrawnLabels(None, None, (), ())
    drawn = draw_labels(job.pairings, stack.grid, job.table, reader)
    if stack.tilt <= TILT_LIMIT_DEG:
        return drawn
    if drawn.map is not None:
        return replace(drawn, map=straighten(drawn.map, stack.grid, labels=True)[0])
    if drawn.channels is not None:
        moved = [straighten(one, stack.grid, labels=True)[0] for one in np.moveaxis(drawn.channels, 3, 0)]
        return replace(drawn, channels=np.stack(moved, axis=3))
    return drawn


def make_volume(job: VolumeJob) -> dict[str, Any]:
    """Decode and write one volume.

    Returns:
        What ``qc.json`` says of it.

    Raises:
        DicomError: its pixels cannot be decoded, or F08; nothing was written.
    """
    paths = VolumePaths(job.out, job.volume_id)
    stack = Stack(job.members)
    with SourceReader() as reader, only_this():
        volume = decode_volume(stack, reader)
        drawn = _draw(job, stack, reader)
    findings = [*run_checks(value_checks.CHECKS, volume), *drawn.findings]
    labels, channels = drawn.map, drawn.channels
    write_volume(paths, volume, labels, channels)
    present = set(labels.ravel().tolist()) if labels is not None else set()
    names = None if labels is None else [name for name, index in job.table.items() if index in present]
    return facts(volume, findings, names, None if channels is None else drawn.names)


@dataclass(frozen=True)
class PlanarJob:
    """Make the files of the pictures and clips of one series; ``ids`` are the pseudonyms of its headers."""

    headers: tuple[Header, ...]
    ids: tuple[str, ...]
    out: Path


def make_images(job: PlanarJob) -> dict[str, Any]:
    """Decode and write pictures and clips; one that cannot be used costs itself only.

    Returns:
        "images": a `PlanarResult` of each, as a dictionary.
    """
    ids = dict(zip(job.headers, job.ids, strict=True))
    with SourceReader() as reader, only_this():
        results = make_planar(job.headers, reader, job.out, ids.__getitem__)
    return {"images": [result.as_dict() for result in results]}
