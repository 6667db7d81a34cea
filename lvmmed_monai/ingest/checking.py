"""From headers to candidates: which series, and which volumes in them, pass all checks on headers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from lvmmed_monai.dicom.geometry import SliceGrid
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.checks.files import from_error
from lvmmed_monai.ingest.checks.neighbours import fills_a_gap
from lvmmed_monai.ingest.findings import ERROR, WARNING, Finding, codes, counted, refuses
from lvmmed_monai.ingest.inventory import BadFile
from lvmmed_monai.ingest.jobs import Checked, CheckJob, check_series
from lvmmed_monai.ingest.journal import fingerprint
from lvmmed_monai.ingest.labels import Pairing
from lvmmed_monai.ingest.mosaic import CONVERTER, converter
from lvmmed_monai.ingest.reason_table import remedy
from lvmmed_monai.ingest.routes import PLANAR_ROUTES, known_modality, route
from lvmmed_monai.ingest.run import Place, Run
from lvmmed_monai.ingest.series import folder_of
from lvmmed_monai.ingest.stack import Stack

__all__ = ["Candidate", "Passed", "SeriesOf", "check_all"]

_LOST_CODES = {"F01", "F03", "F06", "F07", "F08"}
"""What is wrong with a file that may have been a slice."""
_SHOWN_ROUTES = ("stack", "localizer")
"""Of a series that is refused, these are shown in a picture; captures and reports often hold names."""


@dataclass
class Candidate:
    """A volume that passed the checks on headers.

    Attributes:
        place: of its series, and of the volume in it.
        volume_id: its pseudonym.
        stack: its slices.
        findings: what was found about it and its series.
        time_point: (number from 1, of how many) where the series holds several volumes, else None.
        pairings: label objects that belong to it.
    """

    place: Place
    volume_id: str
    stack: Stack
    findings: list[Finding]
    time_point: tuple[int, int] | None
    pairings: list[Pairing] = field(default_factory=list)

    @property
    def time(self) -> dict[str, int]:
        """Which volume of the series it is, as ``qc.json`` has it."""
        return dict(zip(("time_point", "time_points"), self.time_point or (), strict=False))

    @property
    def first(self) -> Header:
        """Its first slice."""
        return self.stack.first

    @property
    def slices(self) -> tuple[Header, ...]:
        """Its slices in the order of space."""
        return self.stack.slices

    @property
    def grid(self) -> SliceGrid:
        """Its voxel grid."""
        return self.stack.grid


@dataclass(frozen=True)
class SeriesOf:
    """A series of pictures or of mosaics that passed its checks; ``number`` is its place among all."""

    number: int
    headers: tuple[Header, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Passed:
    """What passed the checks on headers."""

    volumes: list[Candidate]
    planar: list[SeriesOf]
    mosaics: list[SeriesOf]


def _convertible(findings: Sequence[Finding]) -> bool:
    return codes(findings) == ["R04"] and converter() is not None


def _converted(finding: Finding) -> Finding:
    if finding.code != "R04":
        return finding
    return replace(finding, severity=WARNING, remedy=f"none; converted by {CONVERTER}, its place in space checked")


def _other_modality(header: Header, wanted: str | None) -> list[Finding]:
    found = known_modality(header)
    if wanted is None or found == wanted:
        return []
    return [Finding("R06", ERROR, f"modality {found}", f"modality {wanted}", "ingest it without --modality")]


class _Context:
    """What is known about a series from outside of it."""

    def __init__(self, run: Run, series: Sequence[tuple[Header, ...]], bad_files: Sequence[BadFile]) -> None:
        self.run = run
        self.series = series
        self.bad = Counter(folder_of(bad.source) for bad in bad_files if bad.finding.code in _LOST_CODES)
        self.in_folder: dict[str, set[int]] = defaultdict(set)
        self.in_frame: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, headers in enumerate(series):
            self.in_frame[headers[0].study_uid, headers[0].frame_of_reference].append(number)
            for header in headers if self.bad else ():
                self.in_folder[folder_of(header.source)].add(number)

    def neighbours(self, number: int) -> Iterator[Header]:
        """Images of the other series of the study in the same frame of reference."""
        first = self.series[number][0]
        others = self.in_frame[first.study_uid, first.frame_of_reference]
        return (header for other in others if other != number for header in self.series[other])

    def about(self, number: int) -> list[Finding]:
        """S03 by what the archive counts, and by what else lies in the folder."""
        return [*self._incomplete(number), *self._lost(number)]

    def _incomplete(self, number: int) -> list[Finding]:
        headers = self.series[number]
        expected = self.run.expected.get(headers[0].series_uid)
        if expected is None:
            return []
        have = len({header.sop_uid for header in headers})
        return [Finding("S03", ERROR, f"{have} instances", f"{expected} by the archive", remedy("S03"))]

    def _lost(self, number: int) -> list[Finding]:
        """A broken file beside the only series of a folder is one of its slices: at an end, no gap shows it."""
        folders = {folder_of(header.source) for header in self.series[number]} if self.bad else set()
        lost = [(self.bad[folder], len(self.in_folder[folder])) for folder in folders if self.bad[folder]]
        if not lost:
            return []
        severity = ERROR if any(series == 1 for _, series in lost) else WARNING
        measured = f"{counted(sum(count for count, _ in lost), 'broken file')} in its folder"
        remedy = "fetch the series again, or remove the file if it is no part of it"
        return [Finding("S03", severity, measured, "every instance of the series", remedy)]


class _Jobs:
    """The checks that have to be made, and those that an earlier run made of the same files."""

    def __init__(self, run: Run, series: Sequence[tuple[Header, ...]]) -> None:
        self.run = run
        self.series = series
        self.marks: dict[int, str] = {}
        self.results: dict[int, Checked | DicomError] = {}

    def key(self, number: int) -> str:
        return f"check {self.run.id_of(self.series[number][0])}"

    def __iter__(self) -> Iterator[CheckJob]:
        strict = self.run.options.strict
        for number, headers in enumerate(self.series):
            try:
                self.marks[number] = fingerprint([header.source for header in headers], [len(headers), strict])
            except DicomError as error:
                self.results[number] = error
                continue
            known = self.run.journal.outcome(self.key(number), self.marks[number])
            if known is not None:
                self.results[number] = Checked.from_dict(known, len(headers))
            else:
                yield CheckJob(number, headers, strict)

    def keep(self, number: int, result: Checked | DicomError) -> None:
        self.results[number] = result
        if isinstance(result, Checked):
            self.run.journal.keep_outcome(
                self.key(number), self.marks[number], result.as_dict(len(self.series[number])), {}
            )


def check_all(run: Run, series: Sequence[tuple[Header, ...]], bad_files: Sequence[BadFile]) -> Passed:
    """Check every series; those that fail, or volumes of them, are listed as refused.

    Args:
        run: the ingest under way.
        series: headers of each series, label objects left out.
        bad_files: instances that cannot be used.
    """
    jobs = _Jobs(run, series)
    for job, result in run.progress(run.workers.run(check_series, jobs), "checking series", len(series)):
        jobs.keep(job.number, result)
    context = _Context(run, series, bad_files)
    volumes: list[Candidate] = []
    planar: list[SeriesOf] = []
    mosaics: list[SeriesOf] = []
    for number, headers in enumerate(series):
        result = jobs.results[number]
        if isinstance(result, DicomError):
            run.refuse((number, 0), run.id_of(headers[0]), headers[0], [from_error(result)])
            continue
        first = _representative(headers)
        about = _other_modality(first, run.options.modality) or [
            *context.about(number),
            *_allowed(run, result.findings),
        ]
        if result.stacks and not refuses(about):
            volumes += _volumes(context, number, result, about)
        elif _convertible(about):
            mosaics.append(SeriesOf(number, headers, tuple(_converted(finding) for finding in about)))
        elif refuses(about):
            own = result.stacks[0].findings if len(result.stacks) == 1 else ()
            slices = [header for header in headers if route(header) in _SHOWN_ROUTES]
            run.refuse((number, 0), run.id_of(first), first, [*about, *own], slices=slices)
        else:
            images = tuple(header for header in headers if route(header) in PLANAR_ROUTES)
            planar.append(SeriesOf(number, images, tuple(about)))
    return Passed(volumes, planar, mosaics)


def _representative(headers: Sequence[Header]) -> Header:
    """A header that stands for the series: a slice, if there is any, else an image."""
    by_route = {route(header): header for header in reversed(headers)}
    return next((by_route[name] for name in ("stack", *PLANAR_ROUTES) if name in by_route), headers[0])


def _allowed(run: Run, findings: Sequence[Finding]) -> list[Finding]:
    """Findings as the user wants them taken."""
    if not run.options.keep_burned_in:
        return list(findings)
    return [replace(found, severity=WARNING) if found.code == "P01" else found for found in findings]


def _volumes(context: _Context, number: int, checked: Checked, about: Sequence[Finding]) -> Iterator[Candidate]:
    run, headers = context.run, context.series[number]
    several = len(checked.stacks) > 1
    for index, found in enumerate(checked.stacks):
        stack = Stack(tuple(headers[i] for i in found.members), run.options.strict)
        volume_id = run.id_of(stack.first, index if several else None)
        findings = [*about, *found.findings]
        if refuses(findings):
            gap = fills_a_gap(stack, context.neighbours(number)) if "G01" in codes(findings) else []
            run.refuse((number, index), volume_id, stack.first, [*findings, *gap], slices=stack.members)
        else:
            time_point = (index + 1, len(checked.stacks)) if several else None
            yield Candidate((number, index), volume_id, stack, findings, time_point)
