"""The headers of all instances, read by the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.checks.files import from_error
from lvmmed_monai.ingest.inventory import BadFile, Progress, no_progress
from lvmmed_monai.ingest.jobs import ScanJob, Scanned, scan
from lvmmed_monai.ingest.workers import Workers

__all__ = ["read_headers"]

_CHUNK = 256
"""Files of one job: few enough to show progress, enough that the way to the worker costs nothing."""


def _jobs(sources: Sequence[Source]) -> Iterator[ScanJob]:
    for start in range(0, len(sources), _CHUNK):
        yield ScanJob(start, tuple(sources[start : start + _CHUNK]))


def read_headers(
    sources: Sequence[Source], workers: Workers, progress: Progress = no_progress
) -> tuple[list[Header], list[BadFile]]:
    """Read all headers, in the order of ``sources``; a bad file costs itself and never the run.

    Args:
        sources: instances to look at.
        workers: read them. Where one of them dies, its files are read again one by one, to find the bad one.
        progress: shows how far it is.
    """
    done: dict[int, Scanned] = {}
    again: list[ScanJob] = []
    bad: list[BadFile] = []
    chunks = -(-len(sources) // _CHUNK)
    for job, found in progress(workers.run(scan, _jobs(sources)), "reading headers", chunks):
        if isinstance(found, Scanned):
            done[job.number] = found
        else:
            again += [ScanJob(job.number + index, (source,)) for index, source in enumerate(job.sources)]
    for job, found in workers.run(scan, again):
        if isinstance(found, DicomError):
            bad.append(BadFile(job.sources[0], from_error(found)))
        else:
            done[job.number] = found
    headers = [header for number in sorted(done) for header in done[number].headers]
    bad += [one for number in sorted(done) for one in done[number].bad]
    return headers, bad
