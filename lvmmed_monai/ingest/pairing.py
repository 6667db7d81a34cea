"""Labels find their volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.checking import Candidate
from lvmmed_monai.ingest.checks import masks as mask_checks
from lvmmed_monai.ingest.checks.files import from_error
from lvmmed_monai.ingest.findings import refuses, run_checks
from lvmmed_monai.ingest.jobs import read_label
from lvmmed_monai.ingest.labels import LabelObject, label_table, pair_labels
from lvmmed_monai.ingest.run import Place, Run

__all__ = ["pair_with_volumes"]


def _read_labels(run: Run, headers: Sequence[Header], first_place: int) -> list[tuple[Place, LabelObject]]:
    """Label objects without their pixels, in the order of ``headers``; broken ones are listed as refused."""
    place = {header: (first_place + index, 0) for index, header in enumerate(headers)}
    labels: list[tuple[Place, LabelObject]] = []
    for header, found in run.workers.run(read_label, headers):
        if isinstance(found, DicomError):
            run.refuse(place[header], run.id_of(header), header, [from_error(found)])
        else:
            labels.append((place[header], found))
    return sorted(labels, key=lambda label: label[0])


def pair_with_volumes(
    run: Run,
    headers: Sequence[Header],
    candidates: Sequence[Candidate],
    names: Mapping[str, str] | None,
    first_place: int,
) -> None:
    """Give each candidate its usable label objects, and settle the table of label names.

    Objects that belong to no candidate are listed as refused, from ``first_place`` on.
    """
    labels = _read_labels(run, headers, first_place)
    of_stack = {id(candidate): candidate for candidate in candidates}
    for (place, label), pairing in zip(labels, pair_labels([label for _, label in labels], candidates), strict=True):
        if pairing.stack is None:
            run.refuse(place, run.id_of(label.header), label.header, run_checks(mask_checks.CHECKS, pairing))
        else:
            of_stack[id(pairing.stack)].pairings.append(pairing)
    for candidate in candidates:
        found = [finding for pairing in candidate.pairings for finding in run_checks(mask_checks.CHECKS, pairing)]
        candidate.findings += found
        if refuses(found):
            # One object of several that cannot be used would leave its structures as background: then none is.
            candidate.pairings = []
    run.table = label_table([pairing.label for candidate in candidates for pairing in candidate.pairings], names)
