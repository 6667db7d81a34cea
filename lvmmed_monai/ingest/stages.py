"""The stages of one ingest under way: which series pass, which labels belong to them, and their files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.privacy import pseudonym
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.sources import write_sources
from lvmmed_monai.ingest.checks import SERIES_CHECKS
from lvmmed_monai.ingest.checks import masks as mask_checks
from lvmmed_monai.ingest.checks import values as value_checks
from lvmmed_monai.ingest.checks.files import from_error
from lvmmed_monai.ingest.findings import ERROR, Finding, codes, refuses, run_checks
from lvmmed_monai.ingest.inventory import Progress
from lvmmed_monai.ingest.journal import Journal, fingerprint
from lvmmed_monai.ingest.labels import LabelObject, Pairing, draw_labels, pair_labels, read_label_object
from lvmmed_monai.ingest.outputs import VolumeEntry
from lvmmed_monai.ingest.routes import DATALIST_MODALITIES, known_modality
from lvmmed_monai.ingest.series import Series
from lvmmed_monai.ingest.volumes import decode_volume
from lvmmed_monai.ingest.writer import VolumePaths, write_volume

__all__ = ["Run", "SeriesLabels", "check_series", "make_volume", "pair_with_series", "read_labels"]

SeriesLabels = list[tuple[list[Pairing], list[Finding]]]
"""For each accepted series: its usable label objects, and what was found about its labels."""
_log = logging.getLogger(__name__)


@dataclass
class Run:
    """One ingest under way.

    Attributes:
        src, out: source and output folder.
        key: the site's secret key.
        modality: the only one to accept, as the datalist calls it, or None.
        progress: shows how far a stage is.
        reader: of the source files.
        entries: series of ``qc.json``.
        volumes: accepted volumes.
        timings: seconds of each stage.
        table: index of each label name.
        written: number of volumes made in this run.
    """

    src: Path
    out: Path
    key: bytes
    modality: str | None
    progress: Progress
    reader: SourceReader
    entries: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[VolumeEntry] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    table: dict[str, int] = field(default_factory=dict)
    written: int = 0

    def id_of(self, header: Header) -> str:
        """Pseudonym of a header's series; where de-identification emptied its UID, an instance stands for it."""
        series = header.series_uid or header.sop_uid or repr(header.source)
        return pseudonym(self.key, "series", "\0".join((header.patient, header.study_uid, series)))

    def refuse(self, header: Header, findings: Sequence[Finding]) -> None:
        """List a series as refused."""
        self.entries.append(_entry(self.id_of(header), header, findings))
        _log.debug("series %s refused: %s", self.entries[-1]["id"], ", ".join(codes(findings)))


def _entry(volume_id: str, header: Header, findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "id": volume_id,
        "modality": known_modality(header),
        "accepted": False,
        "shape": None,
        "spacing_mm": None,
        "value_range": None,
        "labels": None,
        "preview": None,
        "findings": [finding.as_dict() for finding in findings],
    }


def _other_modality(series: Series, wanted: str | None) -> list[Finding]:
    found = known_modality(series.first)
    if wanted is None or found == wanted:
        return []
    return [Finding("R06", ERROR, f"modality {found}", f"modality {wanted}", "ingest it without --modality")]


def check_series(run: Run, series_list: Sequence[Series]) -> list[tuple[Series, list[Finding]]]:
    """Series that pass all checks on headers, with their warnings; the others are listed as refused."""
    accepted = []
    for series in run.progress(series_list, "checking series", len(series_list)):
        findings = _other_modality(series, run.modality) or run_checks(SERIES_CHECKS, series)
        if refuses(findings):
            run.refuse(series.first, findings)
        else:
            accepted.append((series, findings))
    return accepted


def read_labels(run: Run, headers: Sequence[Header]) -> list[LabelObject]:
    """Segmentation objects without their pixels; broken ones are listed as refused."""
    labels = []
    for header in headers:
        try:
            labels.append(read_label_object(header, run.reader))
        except DicomError as error:
            run.refuse(header, [from_error(error)])
    return labels


def pair_with_series(run: Run, labels: Sequence[LabelObject], accepted: Sequence[Series]) -> SeriesLabels:
    """Usable label objects of each accepted series, and findings about its labels; in the order of ``accepted``.

    Objects that belong to no accepted series are listed as refused.
    """
    by_series: dict[int, list[Pairing]] = {id(series): [] for series in accepted}
    for pairing in pair_labels(labels, accepted):
        if pairing.series is None:
            run.refuse(pairing.label.header, run_checks(mask_checks.CHECKS, pairing))
        else:
            by_series[id(pairing.series)].append(pairing)
    found: SeriesLabels = []
    for own in by_series.values():
        findings = [finding for pairing in own for finding in run_checks(mask_checks.CHECKS, pairing)]
        # One object of several that cannot be used would leave its structures as background: then none is.
        found.append(([] if refuses(findings) else own, findings))
    return found


def _make(run: Run, series: Series, pairings: Sequence[Pairing], paths: VolumePaths) -> dict[str, Any]:
    """Decode and write one volume.

    Raises:
        DicomError: its pixels cannot be decoded; nothing was written.
    """
    volume = decode_volume(series, run.reader)
    findings = run_checks(value_checks.CHECKS, volume)
    labels = None
    if pairings:
        labels, about_labels = draw_labels(pairings, volume.grid, run.table, run.reader)
        findings += about_labels
    write_volume(paths, volume, labels)
    present = set(labels.ravel().tolist()) if labels is not None else set()
    return {
        "shape": list(volume.grid.shape),
        "spacing_mm": [round(step, 6) for step in volume.grid.spacing_mm],
        "value_range": [float(volume.values.min()), float(volume.values.max())],
        "labels": [name for name, index in run.table.items() if index in present] if labels is not None else None,
        "findings": [finding.as_dict() for finding in findings],
    }


def make_volume(
    run: Run, journal: Journal, series: Series, findings: list[Finding], pairings: Sequence[Pairing]
) -> None:
    """Make one volume, or take it over from an earlier run, and list it."""
    first = series.first
    volume_id = run.id_of(first)
    paths = VolumePaths(run.out, volume_id)
    sources = [header.source for header in series.slices]
    label_sources = [pairing.label.header.source for pairing in pairings]
    try:
        mark = fingerprint([*sources, *label_sources], [len(sources), run.table if pairings else None])
        made = journal.find(volume_id, mark)
        if made is None or not paths.complete(made["labels"] is not None):
            journal.remove(volume_id)
            made = _make(run, series, pairings, paths)
            write_sources(journal.path, volume_id, [(source.path, source.member) for source in sources])
            journal.put(volume_id, mark, made)
            run.written += 1
    except DicomError as error:
        run.refuse(first, [*findings, from_error(error)])
        return
    entry = _entry(volume_id, first, findings)
    about = entry["findings"] + made["findings"]
    run.entries.append({**entry, **made, "accepted": True, "preview": f"previews/{volume_id}.png", "findings": about})
    subject = pseudonym(run.key, "patient", first.patient or first.study_uid or volume_id)
    study = pseudonym(run.key, "study", "\0".join((first.patient, first.study_uid)))
    labelled = made["labels"] is not None
    run.volumes.append(VolumeEntry(volume_id, subject, study, DATALIST_MODALITIES[first.modality], labelled))
