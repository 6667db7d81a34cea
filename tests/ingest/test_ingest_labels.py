"""Label objects: their series, their names, and why one is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from synthetic_dicom import COLUMNS, ROWS, save, segmentation, series, uid

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.headers import header_from_dataset
from lvmmed_monai.dicom.seg_reader import read_segmentation
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.labels import LabelObject, label_table, segment_names
from lvmmed_monai.ingest.pipeline import ingest

COUNT = 4


def mask(*rows: int) -> np.ndarray:
    drawn = np.zeros((COUNT, ROWS, COLUMNS), dtype=bool)
    drawn[1:3, list(rows), 2:6] = True
    return drawn


def label_object(labels: dict[int, str], patient: str = "PATIENT-7") -> LabelObject:
    dataset = segmentation(series(COUNT, patient=patient), {number: mask(number) for number in labels}, labels)
    return LabelObject(header_from_dataset(dataset, Source("x")), read_segmentation(dataset))


def ingested(tmp_path: Path, sources: list[list[Dataset]], objects: list[Dataset], **options) -> dict:
    for index, source in enumerate(sources):
        save(source, tmp_path / "src" / f"series{index}")
    save(objects, tmp_path / "src" / "labels")
    ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "site.key", **options)
    record: dict = json.loads((tmp_path / "out" / "qc.json").read_text())
    return record


def found_codes(entry: dict) -> list[str]:
    return [finding["code"] for finding in entry["findings"]]


def values_of(tmp_path: Path) -> list[int]:
    (path,) = (tmp_path / "out" / "labels").iterdir()
    return np.unique(np.asarray(nib.load(path).dataobj)).tolist()


def test_numbers_stay_where_they_agree_everywhere():
    objects = [label_object({1: "Liver", 2: "Spleen"}), label_object({2: "spleen", 3: "Left  Kidney"})]
    assert label_table(objects) == {"liver": 1, "spleen": 2, "left_kidney": 3}


@pytest.mark.parametrize(
    "second", [{1: "Spleen"}, {2: "Liver"}, {3: "Spleen"}], ids=["number twice", "name twice", "gap"]
)
def test_names_are_sorted_where_numbers_disagree(second):
    table = label_table([label_object({1: "Liver"}), label_object(second)])
    assert table == {name: index for index, name in enumerate(sorted(table), start=1)}


def test_own_table_decides():
    objects = [label_object({1: "Spleen", 2: "Liver"})]
    assert label_table(objects, {"0": "background", "1": "liver", "2": "Left kidney"}) == {"liver": 1, "left_kidney": 2}
    for bad in (
        {},
        {"1": "liver", "3": "spleen"},
        {"one": "liver"},
        {"1": "liver", "2": "Liver"},
        {"1": 5},
        {"1": []},
        {"1": ["liver", 5]},
        {"1": ["liver", "hepar"], "2": "Hepar"},
        {"1": "  "},
    ):
        with pytest.raises(UserError, match="numbered from 1 without gaps"):
            label_table(objects, bad)


def test_own_table_may_give_several_names_for_one_label():
    table = label_table([], {"1": ["liver", "Hepar", "leber"], "2": "spleen"})
    assert table == {"liver": 1, "spleen": 2}
    assert [table.index_of(name) for name in ("liver", "hepar", "leber", "spleen", "aorta")] == [1, 1, 1, 2, None]
    again = pickle.loads(pickle.dumps(table))
    assert (again, again.aliases) == (table, {"hepar": "liver", "leber": "liver"})


def test_words_of_the_patient_do_not_pass_unless_they_are_coded_terms():
    labels = label_object({1: "Liver of Planted", 2: "Spleen"})
    assert segment_names(labels) == {1: "segment_1", 2: "spleen"}
    dataset = segmentation(series(COUNT, patient="LIVER-01"), {1: mask(1)}, {1: "Liver"})
    header = header_from_dataset(dataset, Source("x"))
    assert segment_names(LabelObject(header, read_segmentation(dataset))) == {1: "segment_1"}
    code = Dataset()
    code.CodeMeaning = "Liver"
    dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence = Sequence([code])
    assert segment_names(LabelObject(header, read_segmentation(dataset))) == {1: "liver"}


def test_several_objects_of_one_series_are_joined(tmp_path):
    source = series(COUNT)
    objects = [segmentation(source, {1: mask(1)}, {1: "Liver"}), segmentation(source, {2: mask(5)}, {2: "Spleen"})]
    record = ingested(tmp_path, [source], objects)
    assert [entry["labels"] for entry in record["series"]] == [["liver", "spleen"]]
    assert values_of(tmp_path) == [0, 1, 2]


def test_overlapping_labels_become_channels(tmp_path):
    source = series(COUNT)
    masks = {"Spleen": mask(2, 3), "Liver": mask(1, 2)}
    objects = [
        segmentation(source, {1: masks["Liver"]}, {1: "Liver"}),
        segmentation(source, {2: masks["Spleen"]}, {2: "Spleen"}),
    ]
    (entry,) = ingested(tmp_path, [source], objects)["series"]
    assert (entry["accepted"], entry["labels"], entry["label_channels"]) == (True, None, ["liver", "spleen"])
    assert [(found["code"], found["severity"]) for found in entry["findings"]] == [("M05", "warning")]
    out = tmp_path / "out"
    assert [path.name for path in (out / "labels").iterdir()] == [f"{entry['id']}_channels.nii.gz"]
    channels = nib.load(out / "labels" / f"{entry['id']}_channels.nii.gz")
    image = nib.load(out / "images" / f"{entry['id']}.nii.gz")
    values = np.asarray(channels.dataobj)
    assert (values.shape, values.dtype) == ((COLUMNS, ROWS, COUNT, 2), np.uint8)
    assert np.array_equal(channels.affine, image.affine)
    for number, name in enumerate(("Liver", "Spleen")):
        assert np.array_equal(values[..., number], masks[name].transpose(2, 1, 0))
    datalist = json.loads((out / "datalist.json").read_text())
    (item,) = [item for section in ("training", "validation", "test") for item in datalist[section]]
    assert (datalist["task"], "label" in item) == ("unlabelled", False)


def test_label_without_its_images_is_listed(tmp_path):
    other = segmentation(series(COUNT, patient="PATIENT-9"), {1: mask(1)}, {1: "Liver"})
    record = ingested(tmp_path, [series(COUNT)], [other])
    image, label = sorted(record["series"], key=lambda entry: entry["modality"])
    assert (image["accepted"], image["labels"]) == (True, None)
    assert (label["modality"], label["accepted"], found_codes(label)) == ("SEG", False, ["M02"])


def test_label_is_found_by_its_geometry(tmp_path):
    source = series(COUNT)
    elsewhere = series(COUNT, series="second", origin=(-3.0, 4.0, 500.0))
    record = ingested(
        tmp_path, [source, elsewhere], [segmentation(source, {1: mask(1)}, {1: "Liver"}, reference=False)]
    )
    assert sorted(str(entry["labels"]) for entry in record["series"]) == ["None", "['liver']"]
    assert all(found_codes(entry) == [] for entry in record["series"])


def test_two_series_on_the_same_planes_are_not_guessed_between(tmp_path):
    sources = [series(COUNT), series(COUNT, series="second")]
    record = ingested(tmp_path, sources, [segmentation(sources[0], {1: mask(1)}, {1: "Liver"}, reference=False)])
    assert [found_codes(entry) for entry in record["series"] if not entry["accepted"]] == [["M02"]]


def test_label_that_names_other_images_is_placed_with_a_warning(tmp_path):
    source = series(COUNT)
    label = segmentation(source, {1: mask(1)}, {1: "Liver"})
    label.ReferencedSeriesSequence[0].SeriesInstanceUID = uid("gone")
    (entry,) = ingested(tmp_path, [source], [label])["series"]
    assert (entry["labels"], found_codes(entry)) == (["liver"], ["M02"])


def test_another_frame_of_reference_refuses_the_label(tmp_path):
    source = series(COUNT)
    label = segmentation(source, {1: mask(1)}, {1: "Liver"})
    label.FrameOfReferenceUID = uid("other space")
    (entry,) = ingested(tmp_path, [source], [label])["series"]
    assert (entry["labels"], found_codes(entry)) == (None, ["M01"])


def test_broken_label_is_listed_and_short_one_refused(tmp_path):
    source = series(COUNT)
    short, broken = (segmentation(source, {n: mask(n)}, {n: name}) for n, name in ((1, "Liver"), (2, "Spleen")))
    short.PixelData = short.PixelData[:4]
    del broken.SegmentationType
    record = ingested(tmp_path, [source], [short, broken])
    assert [(entry["labels"], found_codes(entry)) for entry in record["series"] if entry["accepted"]] == [
        (None, ["F04"])
    ]
    assert [found_codes(entry) for entry in record["series"] if not entry["accepted"]] == [["F03"]]


def test_names_outside_the_own_table_stay_out_and_are_reported(tmp_path):
    source = series(COUNT)
    label = segmentation(source, {1: mask(1), 2: mask(5)}, {1: "Liver", 2: "Spleen"})
    (entry,) = ingested(tmp_path, [source], [label], label_names={"1": "spleen"})["series"]
    assert (entry["labels"], found_codes(entry)) == (["spleen"], ["M06"])
    assert values_of(tmp_path) == [0, 1]


def test_changed_table_makes_the_labels_anew(tmp_path):
    source = series(COUNT)
    save(source, tmp_path / "src")
    save([segmentation(source, {1: mask(1)}, {1: "Liver"})], tmp_path / "src" / "labels")
    for names, expected in (({"1": "liver"}, [0, 1]), ({"1": "spleen", "2": "liver"}, [0, 2])):
        ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "site.key", label_names=names)
        assert values_of(tmp_path) == expected
