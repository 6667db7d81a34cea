"""One ingest under way: what the user asked for, and what was found so far."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.privacy import pseudonym
from lvmmed_monai.ingest.findings import Finding, codes
from lvmmed_monai.ingest.inventory import Progress
from lvmmed_monai.ingest.journal import Journal
from lvmmed_monai.ingest.labels import LabelTable
from lvmmed_monai.ingest.outputs import ImageEntry
from lvmmed_monai.ingest.routes import known_modality
from lvmmed_monai.ingest.workers import Workers

__all__ = ["Options", "Place", "Run", "entry"]

Place = tuple[int, int]
"""Number of a series, and of a volume in it: the order of all lists, whichever worker is done first."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        modality: the only one to accept, as the datalist calls it, or None.
        strict: smaller tolerances, and no repairs.
        keep_burned_in: accept images whose header says that text is burned in.
    """

    modality: str | None = None
    strict: bool = False
    keep_burned_in: bool = False


@dataclass
class Run:
    """One ingest under way.

    Attributes:
        out: output folder.
        key: the site's secret key; it never leaves this process.
        options: what the user asked for.
        progress: shows how far a stage is.
        workers: run the jobs.
        journal: what earlier runs did.
        expected: instances that the archive counts in a series that is here in part only, by SeriesInstanceUID.
        entries: series and volumes of ``qc.json``, by the number of the series and of the volume in it.
        images: accepted volumes and images, by the same.
        table: index of each label name.
        to_show: headers of refused series and volumes that a picture may be drawn of, by the same.
        used: sources of what was accepted, labels included.
        written: number of volumes and images made in this run.
    """

    out: Path
    key: bytes
    options: Options
    progress: Progress
    workers: Workers
    journal: Journal
    expected: Mapping[str, int] = field(default_factory=dict)
    entries: dict[Place, dict[str, Any]] = field(default_factory=dict)
    images: dict[Place, ImageEntry] = field(default_factory=dict)
    table: LabelTable = field(default_factory=LabelTable)
    to_show: dict[Place, Sequence[Header]] = field(default_factory=dict)
    used: list[Source] = field(default_factory=list)
    written: int = 0

    def id_of(self, header: Header, volume: int | None = None) -> str:
        """Pseudonym of a header's series, or of one of several volumes in it.

        Where de-identification emptied the UID, an instance stands for the series.
        """
        series = header.series_uid or header.sop_uid or repr(header.source)
        parts = (header.patient, header.study_uid, series, *(() if volume is None else (str(volume),)))
        return pseudonym(self.key, "series", "\0".join(parts))

    def refuse(
        self,
        place: Place,
        volume_id: str,
        header: Header,
        findings: Iterable[Finding],
        kind: str = "volume",
        slices: Sequence[Header] = (),
    ) -> None:
        """List a series, one volume of it, or an image as refused; ``slices`` may be shown in a picture."""
        found = list(findings)
        self.entries[place] = entry(volume_id, header, found, kind=kind)
        if slices and "P01" not in codes(found):
            self.to_show[place] = slices
        _log.debug("series %s refused: %s", volume_id, ", ".join(codes(found)))

    def accept(
        self,
        place: Place,
        about: dict[str, Any],
        made: Mapping[str, Any],
        image: ImageEntry,
        headers: Iterable[Header],
    ) -> None:
        """List a volume or an image: what the checks found about it, what its job said of it, what it was made of."""
        self.used += dict.fromkeys(header.source for header in headers)
        more = {"accepted": True, "preview": f"previews/{about['id']}.png"}
        self.entries[place] = {**about, **made, **more, "findings": [*about["findings"], *made["findings"]]}
        self.images[place] = image

    def instance_id(self, header: Header) -> str:
        """Pseudonym of one instance."""
        return pseudonym(self.key, "instance", header.sop_uid or repr(header.source))

    def pseudonyms(self, header: Header) -> dict[str, str]:
        """Those of its subject, study and series, as a datalist has them."""
        series = self.id_of(header)
        return {
            "subject": pseudonym(self.key, "patient", header.patient or header.study_uid or series),
            "study": pseudonym(self.key, "study", "\0".join((header.patient, header.study_uid))),
            "series": series,
        }


def entry(volume_id: str, header: Header, findings: Iterable[Finding], **facts: Any) -> dict[str, Any]:
    """An entry of ``qc.json`` for what was refused, or is not made yet."""
    return {
        "id": volume_id,
        "kind": "volume",
        "modality": known_modality(header),
        "accepted": False,
        "shape": None,
        "spacing_mm": None,
        "value_range": None,
        "labels": None,
        "preview": None,
        **facts,
        "findings": [finding.as_dict() for finding in findings],
    }
