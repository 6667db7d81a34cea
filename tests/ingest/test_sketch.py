"""Pictures of what was refused: drawn from what can be decoded, never of what may hold a name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from synthetic_dicom import COLUMNS, ROWS, save, series

from lvmmed_monai.errors import DataError
from lvmmed_monai.ingest.pipeline import ingest


@pytest.fixture
def refused(tmp_path):
    """Ingest data sets of one series that is refused; its entry of ``qc.json``, and its picture or None."""

    def run(datasets, damage=None):
        paths = save(datasets, tmp_path / "src")
        if damage:
            damage(paths)
        with pytest.raises(DataError, match="no series"):
            ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "key", workers=0)
        (entry,) = json.loads((tmp_path / "out" / "qc.json").read_text())["series"]
        picture = Image.open(tmp_path / "out" / entry["preview"]) if entry["preview"] else None
        return entry, picture

    return run


def test_a_gap_is_shown_in_three_planes(refused):
    slices = series(8)
    _, picture = refused(slices[:3] + slices[4:])
    assert picture is not None
    assert picture.height == 256
    assert picture.width > 256 * COLUMNS * 0.5 / (ROWS * 0.8)
    assert np.asarray(picture).std() > 10


def test_slices_that_cannot_be_decoded_are_left_out(refused):
    def cut(paths):
        paths[2].write_bytes(paths[2].read_bytes()[:-40])

    entry, picture = refused(series(6), cut)
    assert [finding["code"] for finding in entry["findings"] if finding["severity"] == "error"] == ["F04"]
    assert picture is not None


def test_two_slices_and_no_positions_are_shown_side_by_side(refused):
    _, picture = refused(series(2))
    assert picture is not None


def test_a_series_without_positions_is_shown_by_its_numbers(refused):
    datasets = series(6)
    for dataset in datasets:
        del dataset.ImagePositionPatient
    _, picture = refused(datasets)
    assert picture is not None


def test_text_in_the_pixels_is_not_shown(refused):
    datasets = series(6)
    datasets[0].BurnedInAnnotation = "YES"
    entry, picture = refused(datasets)
    assert entry["findings"][0]["code"] == "P01"
    assert picture is None


def test_a_capture_is_not_shown(refused):
    datasets = series(4)
    for dataset in datasets:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    _, picture = refused(datasets)
    assert picture is None
