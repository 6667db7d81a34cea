"""Label objects of both kinds: whose images they are, what the checks say, and what is drawn."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from synthetic_dicom import COLUMNS, CT, MR, ROWS, save, segmentation, series, uid
from synthetic_rtstruct import contour, structure_set

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.geometry import SliceGrid
from lvmmed_monai.dicom.headers import Header, header_from_dataset
from lvmmed_monai.ingest.checks.masks import CHECKS
from lvmmed_monai.ingest.findings import run_checks
from lvmmed_monai.ingest.labels import (
    DrawnLabels,
    LabelObject,
    Pairing,
    draw_labels,
    label_table,
    pair_labels,
    read_label_object,
)

COUNT = 6


@dataclass(frozen=True, eq=False)
class Images:
    """An accepted volume, as far as labels see it."""

    slices: tuple[Header, ...]

    @property
    def first(self) -> Header:
        return self.slices[0]

    @property
    def grid(self) -> SliceGrid:
        positions = np.array([header.position for header in self.slices])
        return SliceGrid(COLUMNS, ROWS, np.array(self.first.orientation), (0.8, 0.5), positions)


def images(datasets: Sequence[Dataset]) -> Images:
    return Images(tuple(header_from_dataset(dataset, Source("x")) for dataset in datasets))


def mask(*rows: int, columns: slice = slice(2, 6)) -> np.ndarray:
    drawn = np.zeros((COUNT, ROWS, COLUMNS), dtype=bool)
    drawn[1:3, list(rows), columns] = True
    return drawn


def box(low: tuple[float, float], high: tuple[float, float], k: float, kind: str = "CLOSED_PLANAR") -> Dataset:
    """A rectangle from ``low`` to ``high`` (column, row) in the plane of slice ``k`` of `series`."""
    corners = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    return contour(np.column_stack([-3 + 0.5 * corners[:, 0], 4 + 0.8 * corners[:, 1], np.full(4, 7 + 2.0 * k)]), kind)


def rows_of(row: int, planes: Sequence[float] = (1, 2)) -> list[Dataset]:
    """Contours round what ``mask(row)`` holds."""
    return [box((1.5, row - 0.5), (5.5, row + 0.5), k) for k in planes]


@pytest.fixture
def reader():
    with SourceReader() as reader:
        yield reader


@pytest.fixture
def label_of(tmp_path, reader):
    """``label_of(dataset)`` saves a label object and reads it as the pipeline does."""
    count = iter(range(100))

    def read(dataset: Dataset) -> LabelObject:
        (path,) = save([dataset], tmp_path / str(next(count)))
        return read_label_object(header_from_dataset(dataset, Source(str(path))), reader)

    return read


def found(label: LabelObject, candidates: Sequence[Images]) -> tuple[int | None, bool]:
    (pairing,) = pair_labels([label], candidates)
    place = None if pairing.stack is None else [*map(id, candidates)].index(id(pairing.stack))
    return place, pairing.by_reference


def findings_of(label: LabelObject, stack: Images | None, by_reference: bool = True) -> list[tuple[str, str]]:
    return [(finding.code, finding.severity) for finding in run_checks(CHECKS, Pairing(label, stack, by_reference))]


class TestPairing:
    def both_kinds(self, label_of, source: Sequence[Dataset], reference: bool = True) -> list[LabelObject]:
        return [
            label_of(segmentation(source, {1: mask(3)}, {1: "Liver"}, reference=reference)),
            label_of(structure_set(source, {"Liver": rows_of(3)}, reference=reference)),
        ]

    def test_the_series_that_is_named(self, label_of):
        source, other = series(COUNT), series(COUNT, series="other")
        for label in self.both_kinds(label_of, source):
            assert found(label, [images(other), images(source)]) == (1, True)

    def test_named_instances_choose_the_time_point(self, label_of):
        """Two volumes of one series at the same planes: only instances tell them apart."""
        phases = [series(COUNT), series(COUNT)]
        for dataset in phases[1]:
            dataset.SOPInstanceUID = uid(f"second {dataset.SOPInstanceUID}")
        volumes = [images(phase) for phase in phases]
        seg, structures = self.both_kinds(label_of, phases[1])
        assert found(structures, volumes) == (1, True)
        assert found(seg, volumes) == (None, True)
        assert findings_of(seg, None) == [("M02", "error")]

    def test_geometry_chooses_among_the_volumes_of_a_named_series(self, label_of):
        here, there = series(COUNT), series(COUNT, origin=(-3.0, 4.0, 307.0))
        for dataset in there:
            dataset.SOPInstanceUID = uid(f"second {dataset.SOPInstanceUID}")
        label = label_of(segmentation(there, {1: mask(3)}, {1: "Liver"}))
        assert found(label, [images(here), images(there)]) == (1, True)

    def test_geometry_decides_where_nothing_is_named(self, label_of):
        here, there = series(COUNT), series(COUNT, series="there", origin=(-3.0, 4.0, 307.0))
        twin, another_space = series(COUNT, series="twin"), series(COUNT, study="another")
        for label in self.both_kinds(label_of, here, reference=False):
            assert found(label, [images(there), images(here)]) == (1, False)
            assert findings_of(label, images(here), by_reference=False) == []
            assert found(label, [images(twin), images(here)]) == (None, False)
            assert found(label, [images(another_space)]) == (None, False)

    def test_the_class_of_absent_images_chooses_the_modality(self, label_of):
        """Cropped or rewritten series: all that is named is gone, and CT and MR share their planes."""
        ct, mr = series(COUNT, series="ct"), series(COUNT, series="mr", modality="MR")
        assert (ct[0].SOPClassUID, mr[0].SOPClassUID) == (CT, MR)
        label = label_of(structure_set(series(COUNT, series="gone", modality="MR"), {"Liver": rows_of(3)}))
        assert found(label, [images(ct), images(mr)]) == (1, False)
        assert findings_of(label, images(mr), by_reference=False) == [("M02", "warning")]


class TestChecks:
    def test_another_space(self, label_of):
        label = label_of(structure_set(series(COUNT), {"Liver": rows_of(3)}))
        stack = images(series(COUNT))
        moved = Images(tuple(replace(header, frame_of_reference=uid("other")) for header in stack.slices))
        assert findings_of(label, stack) == []
        assert findings_of(label, moved) == [("M01", "error")]

    def test_contours_beside_the_slices(self, label_of):
        stack = images(series(COUNT))
        several = [contour for row in range(1, 11) for contour in rows_of(row)]
        few = label_of(structure_set(series(COUNT), {"Liver": [*several, box((1, 1), (4, 4), 7)]}))
        (finding,) = run_checks(CHECKS, Pairing(few, stack, True))
        assert (finding.code, finding.severity) == ("M03", "warning")
        assert finding.measured == "1 of 21 contours beside the slices, up to 4.00 mm from the nearest"
        many = label_of(structure_set(series(COUNT), {"Liver": rows_of(3, (1, 2, 7))}))
        assert findings_of(many, stack) == [("M03", "error")]

    def test_contours_denser_than_slices(self, label_of):
        label = label_of(structure_set(series(COUNT), {"Liver": rows_of(3, (1, 1.5, 2, 2.5))}))
        (finding,) = run_checks(CHECKS, Pairing(label, images(series(COUNT)), True))
        assert (finding.code, finding.severity) == ("M03", "warning")
        assert finding.measured == "2 of 4 contours left out for nearer ones of the same structure"

    def test_open_contours(self, label_of):
        open_one = box((1, 1), (4, 4), 2, "OPEN_PLANAR")
        label = label_of(structure_set(series(COUNT), {"Liver": [*rows_of(3), open_one]}))
        (finding,) = run_checks(CHECKS, Pairing(label, images(series(COUNT)), True))
        assert (finding.code, finding.severity, finding.measured) == ("M04", "warning", "1 of 3 contours not closed")

    def test_frames_beside_the_slices(self, label_of):
        label = label_of(segmentation(series(COUNT), {1: mask(3)}, {1: "Liver"}))
        assert findings_of(label, images(series(COUNT, step=2.5))) == [("M02", "error")]

    def test_label_objects_cross_processes_and_are_small(self, label_of):
        source = series(COUNT)
        for label in (
            label_of(segmentation(source, {1: mask(3)}, {1: "Liver"})),
            label_of(structure_set(source, {"Liver": rows_of(3)})),
        ):
            copy = pickle.loads(pickle.dumps(label))
            assert copy.header == label.header
            assert copy.content.segments == label.content.segments
            assert findings_of(copy, images(source)) == []
            assert len(pickle.dumps(label)) < 6000


class TestDrawing:
    def draw(self, reader, labels: Sequence[LabelObject], names: dict | None = None) -> DrawnLabels:
        stack = images(series(COUNT))
        table = label_table(labels, names)
        return draw_labels([Pairing(label, stack, True) for label in labels], stack.grid, table, reader)

    def test_both_kinds_make_one_map(self, label_of, reader):
        source = series(COUNT)
        seg = label_of(segmentation(source, {1: mask(3)}, {1: "Liver"}))
        structures = label_of(structure_set(source, {"Spleen": rows_of(5)}))
        drawn = self.draw(reader, [seg, structures])
        assert (drawn.channels, drawn.names, drawn.findings) == (None, (), ())
        expected = (mask(3) * 1 + mask(5) * 2).transpose(2, 1, 0)
        assert drawn.map is not None
        assert drawn.map.dtype == np.uint8
        assert np.array_equal(drawn.map, expected)

    @pytest.mark.parametrize("kind", ["segmentation", "structures"])
    def test_overlapping_structures_become_channels(self, kind, label_of, reader):
        source, masks = series(COUNT), {1: mask(2, 3), 2: mask(3, 4), 3: mask(3)}
        names = {1: "Outer", 2: "Middle", 3: "Inner"}
        if kind == "segmentation":
            label = label_of(segmentation(source, masks, names))
        else:
            boxes = {"Outer": (1.5, 3.5), "Middle": (2.5, 4.5), "Inner": (2.5, 3.5)}
            planes = {n: [box((1.5, low), (5.5, high), k) for k in (1, 2)] for n, (low, high) in boxes.items()}
            label = label_of(structure_set(source, planes))
        drawn = self.draw(reader, [label])
        assert (drawn.map, drawn.names) == (None, ("outer", "middle", "inner"))
        assert drawn.channels is not None
        assert (drawn.channels.shape, drawn.channels.dtype) == ((COLUMNS, ROWS, COUNT, 3), np.uint8)
        for index, own in enumerate(masks.values()):
            assert np.array_equal(drawn.channels[..., index], own.transpose(2, 1, 0))
        (finding,) = drawn.findings
        voxels = int((sum(own.astype(int) for own in masks.values()) > 1).sum())
        assert (finding.code, finding.severity) == ("M05", "warning")
        assert finding.measured == f"{voxels} voxels with more than one label; written as one channel for each label"

    def test_one_label_twice_is_no_overlap(self, label_of, reader):
        source = series(COUNT)
        objects = [label_of(segmentation(source, {1: mask(row, 3)}, {1: "Liver"})) for row in (2, 4)]
        drawn = self.draw(reader, objects)
        assert drawn.map is not None
        assert np.array_equal(drawn.map, mask(2, 3, 4).transpose(2, 1, 0))

    def test_names_of_the_own_table(self, label_of, reader):
        label = label_of(structure_set(series(COUNT), {"Hepar": rows_of(3), "Spleen": rows_of(3)}))
        drawn = self.draw(reader, [label], {"1": "aorta", "2": ["liver", "hepar"]})
        assert drawn.map is not None
        assert np.array_equal(drawn.map, 2 * mask(3).transpose(2, 1, 0))
        assert [finding.code for finding in drawn.findings] == ["M06"]

    def test_a_structure_on_every_second_slice_refuses_the_label(self, label_of, reader):
        structures = {"Liver": rows_of(3, (1, 3, 5)), "Spleen": rows_of(5, range(6))}
        label = label_of(structure_set(series(COUNT), structures))
        drawn = self.draw(reader, [label])
        assert (drawn.map, drawn.channels) == (None, None)
        (finding,) = drawn.findings
        assert (finding.code, finding.severity) == ("M07", "error")
        assert finding.measured == "1 of 2 structures drawn on every 2. slice or so"
        assert self.draw(reader, [label], {"1": "spleen"}).map is not None

    def test_one_object_of_no_use_leaves_nothing(self, label_of, reader):
        source = series(COUNT)
        good = label_of(structure_set(source, {"Spleen": rows_of(5)}))
        broken = segmentation(source, {1: mask(3)}, {1: "Liver"})
        broken.PixelData = broken.PixelData[:4]
        drawn = self.draw(reader, [good, label_of(broken)])
        assert (drawn.map, drawn.channels, drawn.names) == (None, None, ())
        assert [(finding.code, finding.severity) for finding in drawn.findings] == [("F04", "error")]

    def test_findings_name_nobody(self, label_of, reader, tmp_path: Path):
        """Names of structures, patients and folders stay out of every text."""
        structures = {"Planted secret": [*rows_of(3, (1, 3, 5)), box((1, 1), (4, 4), 2, "POINT")]}
        label = label_of(structure_set(series(COUNT, patient="HIDDEN-9"), structures))
        stack = images(series(COUNT, study="other"))
        findings = [*run_checks(CHECKS, Pairing(label, stack, False)), *self.draw(reader, [label]).findings]
        assert {finding.code for finding in findings} >= {"M01", "M02", "M04", "M07"}
        text = repr(findings).lower()
        assert not [word for word in ("secret", "planted", "hidden", str(tmp_path).lower(), "1.2.") if word in text]
