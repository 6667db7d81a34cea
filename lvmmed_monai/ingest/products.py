"""What an ingest makes: volumes, converted mosaics, pictures; each knows its job, its files and its entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lvmmed_monai.dicom.headers import Header
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.checking import Candidate, SeriesOf
from lvmmed_monai.ingest.checks.files import from_error
from lvmmed_monai.ingest.jobs import PlanarJob, VolumeJob
from lvmmed_monai.ingest.journal import fingerprint
from lvmmed_monai.ingest.mosaic import CONVERTER, MosaicJob, converter
from lvmmed_monai.ingest.outputs import ImageEntry
from lvmmed_monai.ingest.planar import PlanarResult, planar_modality
from lvmmed_monai.ingest.routes import DATALIST_MODALITIES
from lvmmed_monai.ingest.run import Place, Run, entry
from lvmmed_monai.ingest.sketch import SketchJob
from lvmmed_monai.ingest.writer import VolumePaths

__all__ = ["MosaicProduct", "PlanarProduct", "Product", "SketchProduct", "VolumeProduct"]

Made = Mapping[str, Any]
"""What a job gives, as the journal keeps it."""


class Product(Protocol):
    """Something that one job makes."""

    @property
    def key(self) -> str:
        """Its key in the journal."""

    def mark(self) -> str:
        """Changes when a source file or a setting does.

        Raises:
            DicomError: a source file is gone.
        """

    def job(self) -> Any:
        """What a worker is given."""

    def complete(self, made: Made) -> bool:
        """Whether all its files are there."""

    def sources(self, made: Made) -> dict[str, list[tuple[str, str]]]:
        """Path and archive member of the sources of each volume or picture."""

    def accept(self, made: Made) -> None:
        """List it."""

    def refuse(self, error: DicomError) -> None:
        """List it as refused."""


def _paths(headers: Sequence[Header]) -> list[tuple[str, str]]:
    return [(header.source.path, header.source.member) for header in headers]


def _list_volume(run: Run, place: Place, about: dict[str, Any], made: Made, headers: Sequence[Header]) -> None:
    first = headers[0]
    image = ImageEntry(
        id=about["id"],
        **run.pseudonyms(first),
        modality=DATALIST_MODALITIES[first.modality],
        images=(f"images/{about['id']}.nii.gz",),
        labelled=made["labels"] is not None,
    )
    run.accept(place, about, made, image, headers)


@dataclass(frozen=True)
class VolumeProduct:
    """A volume with its labels."""

    run: Run
    candidate: Candidate

    @property
    def key(self) -> str:
        """See `Product`."""
        return self.candidate.volume_id

    def mark(self) -> str:
        """See `Product`."""
        candidate = self.candidate
        labels = [pairing.label.header.source for pairing in candidate.pairings]
        sources = [header.source for header in candidate.slices]
        table = [self.run.table, self.run.table.aliases] if candidate.pairings else None
        return fingerprint([*sources, *labels], [len(sources), table])

    def job(self) -> VolumeJob:
        """See `Product`."""
        # Workers need no more of a pairing than the label object.
        pairings = tuple(replace(pairing, stack=None) for pairing in self.candidate.pairings)
        return VolumeJob(self.key, self.candidate.stack.members, pairings, self.run.table, self.run.out)

    def complete(self, made: Made) -> bool:
        """See `Product`."""
        return VolumePaths(self.run.out, self.key).complete(made)

    def sources(self, made: Made) -> dict[str, list[tuple[str, str]]]:
        """See `Product`."""
        return {self.key: _paths(self.candidate.slices)}

    def accept(self, made: Made) -> None:
        """See `Product`."""
        first = self.candidate.first
        about = entry(self.key, first, self.candidate.findings, **self.candidate.time)
        labels = [pairing.label.header for pairing in self.candidate.pairings]
        _list_volume(self.run, self.candidate.place, about, made, [*self.candidate.slices, *labels])

    def refuse(self, error: DicomError) -> None:
        """See `Product`."""
        candidate = self.candidate
        findings = [*candidate.findings, from_error(error)]
        self.run.refuse(candidate.place, self.key, candidate.first, findings, slices=candidate.slices)


@dataclass(frozen=True)
class SketchProduct:
    """A picture of what was refused, as far as its slices can be decoded."""

    run: Run
    place: Place

    @property
    def key(self) -> str:
        """See `Product`."""
        return f"sketch {self._id}"

    @property
    def _id(self) -> str:
        return str(self.run.entries[self.place]["id"])

    @property
    def _path(self) -> str:
        return f"previews/{self._id}.png"

    def mark(self) -> str:
        """See `Product`."""
        return fingerprint([header.source for header in self.run.to_show[self.place]], "sketch")

    def job(self) -> SketchJob:
        """See `Product`."""
        return SketchJob(tuple(self.run.to_show[self.place]), self.run.out / self._path)

    def complete(self, made: Made) -> bool:
        """See `Product`."""
        return not made["drawn"] or (self.run.out / self._path).is_file()

    def sources(self, made: Made) -> dict[str, list[tuple[str, str]]]:
        """See `Product`; it stands for no image."""
        return {}

    def accept(self, made: Made) -> None:
        """See `Product`."""
        if made["drawn"]:
            self.run.entries[self.place]["preview"] = self._path

    def refuse(self, error: DicomError) -> None:
        """See `Product`; the entry says already why the series is refused."""


@dataclass(frozen=True)
class MosaicProduct:
    """The volumes of a series of mosaics."""

    run: Run
    series: SeriesOf

    @property
    def _ids(self) -> tuple[str, ...]:
        headers = self.series.headers
        several = len(headers) > 1
        return tuple(self.run.id_of(headers[0], index if several else None) for index in range(len(headers)))

    @property
    def key(self) -> str:
        """See `Product`."""
        return f"mosaic {self._ids[0]}"

    def mark(self) -> str:
        """See `Product`."""
        return fingerprint([header.source for header in self.series.headers], [CONVERTER, len(self._ids)])

    def job(self) -> MosaicJob:
        """See `Product`."""
        return MosaicJob(self.series.headers, self._ids, self.run.out, converter() or CONVERTER)

    def complete(self, made: Made) -> bool:
        """See `Product`."""
        pairs = zip(self._ids, made["volumes"], strict=True)
        return all(VolumePaths(self.run.out, volume_id).complete(one) for volume_id, one in pairs)

    def sources(self, made: Made) -> dict[str, list[tuple[str, str]]]:
        """See `Product`."""
        return {volume_id: [path] for volume_id, path in zip(self._ids, _paths(self.series.headers), strict=True)}

    def accept(self, made: Made) -> None:
        """See `Product`."""
        first, count = self.series.headers[0], len(made["volumes"])
        for index, (volume_id, one) in enumerate(zip(self._ids, made["volumes"], strict=True)):
            time = {"time_point": index + 1, "time_points": count} if count > 1 else {}
            about = entry(volume_id, first, self.series.findings, **time)
            _list_volume(self.run, (self.series.number, index), about, one, [self.series.headers[index]])

    def refuse(self, error: DicomError) -> None:
        """See `Product`."""
        findings = [*self.series.findings, from_error(error)]
        self.run.refuse((self.series.number, 0), self._ids[0], self.series.headers[0], findings)


@dataclass(frozen=True)
class PlanarProduct:
    """The pictures and clips of a series."""

    run: Run
    series: SeriesOf

    @property
    def key(self) -> str:
        """See `Product`."""
        return f"images {self.run.id_of(self.series.headers[0])}"

    def mark(self) -> str:
        """See `Product`."""
        return fingerprint([header.source for header in self.series.headers], len(self.series.headers))

    def job(self) -> PlanarJob:
        """See `Product`."""
        ids = tuple(self.run.instance_id(header) for header in self.series.headers)
        return PlanarJob(self.series.headers, ids, self.run.out)

    def complete(self, made: Made) -> bool:
        """See `Product`."""
        return all((self.run.out / path).is_file() for result in made["images"] for path in result["paths"])

    def sources(self, made: Made) -> dict[str, list[tuple[str, str]]]:
        """See `Product`."""
        paths = _paths(self.series.headers)
        return {result["id"]: [paths[result["index"]]] for result in made["images"] if result["paths"]}

    def accept(self, made: Made) -> None:
        """See `Product`."""
        for index, result in enumerate(PlanarResult.from_dict(record) for record in made["images"]):
            self._list((self.series.number, index), result)

    def _list(self, place: Place, result: PlanarResult) -> None:
        header = self.series.headers[result.index]
        if not result.accepted:
            self.run.refuse(place, result.id, header, [*self.series.findings, *result.findings], kind="image")
            return
        about = entry(result.id, header, self.series.findings, kind="image")
        made = {**result.facts, "findings": [finding.as_dict() for finding in result.findings]}
        image = ImageEntry(
            id=result.id,
            **self.run.pseudonyms(header),
            modality=planar_modality(header),
            images=result.paths,
            labelled=False,
        )
        self.run.accept(place, about, made, image, [header])

    def refuse(self, error: DicomError) -> None:
        """See `Product`."""
        first = self.series.headers[0]
        findings = [*self.series.findings, from_error(error)]
        self.run.refuse((self.series.number, 0), self.run.id_of(first), first, findings, kind="image")
