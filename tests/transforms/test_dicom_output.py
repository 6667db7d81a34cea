"""SaveDicomSegd: from a prediction with metadata to a DICOM SEG of its source series."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from lvmmed_monai.dicom.sources import write_sources
from lvmmed_monai.errors import UserError
from lvmmed_monai.phantom.dicom_series import series_of
from lvmmed_monai.phantom.volume import PhantomVolume, lps_affine
from lvmmed_monai.transforms.dicom_output import SaveDicomSegd

LABELS = {"0": "background", "1": "liver", "2": "spleen"}
SHAPE = (14, 12, 6)


@pytest.fixture
def volume(tmp_path: Path) -> PhantomVolume:
    """A tiny series on disk, in the journal as volume ``a1``."""
    affine = lps_affine(np.eye(3), (2.0, 2.0, 4.0), np.array([-14.0, -12.0, 30.0]))
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    volume = PhantomVolume(np.zeros(SHAPE, np.int16), labels, affine, {1: "liver", 2: "spleen"}, "CT", {"KVP": "120"})
    rows = []
    for instance in series_of(volume, patient_id="PHANTOM-CT-0", date="20200101", identity=("test",)):
        path = tmp_path / f"{instance.InstanceNumber}.dcm"
        instance.save_as(path, enforce_file_format=True)
        rows.append((str(path), ""))
    write_sources(tmp_path / "journal.sqlite", "a1", rows)
    return volume


def prediction(volume: PhantomVolume, name: str = "a1") -> MetaTensor:
    return MetaTensor(
        torch.from_numpy(volume.labels[None].astype(np.float32)),
        affine=torch.from_numpy(volume.affine),
        meta={"filename_or_obj": f"/elsewhere/images/{name}.nii.gz"},
    )


def transform(tmp_path: Path) -> SaveDicomSegd:
    return SaveDicomSegd("pred", tmp_path / "out", tmp_path / "journal.sqlite", LABELS)


def test_written_object_equals_the_prediction(tmp_path: Path, volume: PhantomVolume) -> None:
    data = {"pred": prediction(volume), "other": 1}
    assert transform(tmp_path)(data) == data
    segmentation = highdicom.seg.segread(tmp_path / "out" / "a1.dcm")
    frames = segmentation.get_volume(combine_segments=True)
    # highdicom gives (slice, row, column), in its own order of slices: compare through its affine.
    order = np.argsort([(frames.affine @ (k, 0, 0, 1))[2] for k in range(SHAPE[2])])
    np.testing.assert_array_equal(frames.array[order].transpose(2, 1, 0), volume.labels)


def test_empty_prediction_writes_no_file(
    tmp_path: Path, volume: PhantomVolume, caplog: pytest.LogCaptureFixture
) -> None:
    transform(tmp_path)({"pred": prediction(volume) * 0})
    assert not (tmp_path / "out").exists()
    assert "a1" in caplog.text


def test_unknown_volume_and_wrong_shapes(tmp_path: Path, volume: PhantomVolume) -> None:
    with pytest.raises(UserError, match="volume zz"):
        transform(tmp_path)({"pred": prediction(volume, "zz")})
    with pytest.raises(UserError, match=r"\(1, x, y, z\)"):
        transform(tmp_path)({"pred": prediction(volume)[0]})
    with pytest.raises(UserError, match="shape"):
        transform(tmp_path)({"pred": prediction(volume)[:, :-1]})
    with pytest.raises(UserError, match="metadata"):
        transform(tmp_path)({"pred": torch.zeros(1, *SHAPE)})


def test_missing_key(tmp_path: Path, volume: PhantomVolume) -> None:
    with pytest.raises(KeyError):
        transform(tmp_path)({})
    tolerant = SaveDicomSegd("pred", tmp_path, tmp_path / "journal.sqlite", LABELS, allow_missing_keys=True)
    assert tolerant({}) == {}
