"""Prepared volumes: presets of body parts, and volumes that cannot be used."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.methods._preparation import VolumePreparation, prepared_volumes
from lvmmed_monai.methods.voco import VoCo
from lvmmed_monai.transforms.body_parts import BODY_PART_PRESETS, preset_of_body_part

SMALL: dict[str, Any] = {
    "encoder_options": {"init_filters": 8},
    "crop_size": 8,
    "projector": (32, 16),
    "monitor_blocks": 4,
}
BODY = np.linspace(-170, 240, 24 * 24 * 8).reshape(24, 24, 8)


def save(path: Path, values: np.ndarray, spacing: float = 2.0) -> str:
    nib.save(nib.Nifti1Image(values, np.diag([spacing, spacing, spacing, 1.0])), path)
    return str(path)


@pytest.fixture
def datalist(tmp_path: Path) -> Callable[..., Path]:
    def make(items: list[dict[str, Any]], *, name: str = "set", modality: str = "CT") -> Path:
        numbered = [{"subject": f"{name}{number}", **item} for number, item in enumerate(items)]
        content = {"format": "lvmmed-datalist/1", "name": name, "task": "unlabelled", "modality": modality}
        sections = {"labels": {}, "flip_safe": True, "training": numbered, "validation": [], "test": []}
        write_datalist(tmp_path / f"{name}.json", {**content, **sections})
        return tmp_path / f"{name}.json"

    return make


def ramp(axis: int, shape: tuple[int, int, int], spacing: float, low: float, per_mm: float) -> np.ndarray:
    places = [1, 1, 1]
    places[axis] = shape[axis]
    values = low + per_mm * spacing * np.arange(shape[axis])
    return np.broadcast_to(values.reshape(places), shape).astype(np.float32)


class TestPresets:
    def test_point_18_table(self) -> None:
        table = {name: (one.spacing_mm, one.ct_window, one.fit) for name, one in BODY_PART_PRESETS.items()}
        assert table == {
            "abdomen": ((1.5, 1.5, 1.5), (-175, 250), "window"),
            "abdomen_resized": ((1.5, 1.5, 1.5), (-175, 250), "resize"),
            "chest": ((1.25, 1.25, 5.0), (-1000, 500), "window"),
            "head_neck": ((1.5, 1.5, 1.5), (-175, 250), "resize"),
        }

    @pytest.mark.parametrize(
        ("preset", "extent_mm", "low", "per_mm"),
        [("abdomen", (288, 288, 96), -175, 1), ("chest", (240, 240, 320), -1000, 3)],
    )
    def test_point_18_blocks_cover_the_published_millimetres(
        self, preset: str, extent_mm: tuple[int, int, int], low: float, per_mm: float, datalist: Any, tmp_path: Path
    ) -> None:
        """The grey values count millimetres along one axis, so that a block says how far it reaches."""
        spacing = 5.0
        shape = tuple(int(extent / spacing) + 4 for extent in extent_mm)
        width = BODY_PART_PRESETS[preset].ct_window[1] - low
        items = []
        for axis in range(3):
            slope = min(per_mm, width / (shape[axis] * spacing))
            values = ramp(axis, shape, spacing, low + 1, slope)
            items.append({"image": save(tmp_path / f"{axis}.nii.gz", values, spacing), "slope": slope / width})
        method = VoCo(**{**SMALL, "crop_size": 64}, preset=preset)
        listed = datalist([{"image": item["image"]} for item in items])
        dataset = method.dataset([listed], "training", tmp_path / "cache", 0)
        assert dataset.block_size == (192, 192, 64)
        for axis, item in enumerate(items):
            block, mask = dataset.block(np.random.default_rng(0), axis, dataset.block_size, cells=(3, 3), augment=False)
            assert mask.all()
            line = block[0].movedim(axis, 0).flatten(1).mean(1)
            # Away from the borders, where the window clips and the resampling repeats the last voxel.
            count = len(line)
            step_mm = float(line[count * 7 // 8] - line[count // 8]) / (count * 7 // 8 - count // 8) / item["slope"]
            assert step_mm * count == pytest.approx(extent_mm[axis], rel=0.02)

    def test_point_18_window_and_spacing(self, tmp_path: Path) -> None:
        values = np.full((20, 20, 20), -100, np.int16)
        values[:, :, 10:] = 300
        values[0, 0, 0] = -900
        item = {"image": save(tmp_path / "one.nii.gz", values, 3.0), "modality": "CT"}
        for name, size, level in (("abdomen", (40, 40, 40), 75 / 425), ("chest", (48, 48, 12), 900 / 1500)):
            array = VolumePreparation((9.0, 9.0, 9.0), 1, preset=name)(item)
            assert np.abs(np.subtract(array.shape[1:], size)).max() <= 1
            assert array[0, 20, 20, 2] == pytest.approx(level, abs=1e-4)

    def test_point_18_resized_to_the_block(self, tmp_path: Path) -> None:
        values = np.full((40, 40, 40), -1000, np.float32)
        values[10:30, 8:20, 5:35] = ramp(0, (20, 12, 30), 1.0, -150, 15)
        item = {"image": save(tmp_path / "one.nii.gz", values, 1.5), "modality": "CT"}
        prepare = VolumePreparation((9.0, 9.0, 9.0), 1, preset="head_neck", block_size=(30, 24, 8))
        array = prepare(item)
        assert array.shape == (1, 30, 24, 8)
        body = torch.from_numpy((values[10:30, 8:20, 5:35] + 175) / 425)[None, None]
        expected = torch.nn.functional.interpolate(body, (30, 24, 8), mode="trilinear", align_corners=False)[0]
        np.testing.assert_allclose(array, expected, atol=1e-4)
        assert prepare.expected_voxels(item) == array.size
        assert VoCo(**{**SMALL, "crop_size": 64}, preset="head_neck").preparation.block_size == (192, 192, 64)

    def test_each_volume_by_its_own_body_part(self, datalist: Any, tmp_path: Path) -> None:
        values = np.full((20, 20, 20), -100, np.int16)
        items = [
            {"image": save(tmp_path / f"{part}.nii.gz", values, 3.0), **({"body_part": part} if part else {})}
            for part in ("CHEST", "abdomen", "Head and Neck", "FOOT", "")
        ]
        method = VoCo(**SMALL, preset="by_body_part", spacing_mm=6.0, ct_window=(-500, 400))
        dataset = method.dataset([datalist(items)], "training", tmp_path / "cache", 0)
        shapes = [dataset.cache.shape(index) for index in range(5)]
        for found, expected in zip(
            shapes, [(48, 48, 12), (40, 40, 40), (24, 24, 8), (10, 10, 10), (10, 10, 10)], strict=True
        ):
            assert np.abs(np.subtract(found, expected)).max() <= 1
        levels = [dataset.cache.read_window(index, (4, 4, 4), (1, 1, 1)).item() for index in range(5)]
        assert levels == pytest.approx([900 / 1500, 75 / 425, 75 / 425, 400 / 900, 400 / 900], abs=3e-3)
        # A body part that was corrected asks for another preparation.
        items[3]["body_part"] = "ABDOMEN"
        assert method.dataset([datalist(items)], "training", tmp_path / "cache", 0).cache.built == 1

    def test_names_of_body_parts(self) -> None:
        assert preset_of_body_part("HEAD_NECK") is preset_of_body_part("headneck") is BODY_PART_PRESETS["head_neck"]
        assert preset_of_body_part("Thorax") is BODY_PART_PRESETS["chest"]
        assert preset_of_body_part(None) is preset_of_body_part("KNEE") is None

    def test_refuses_what_it_does_not_know(self) -> None:
        with pytest.raises(UserError, match="unknown preset 'leg'"):
            VolumePreparation((1.0, 1.0, 1.0), 1, preset="leg")
        for preset in ("head_neck", "by_body_part"):
            with pytest.raises(UserError, match="give block_size"):
                VolumePreparation((1.0, 1.0, 1.0), 1, preset=preset)


def test_expected_voxels(tmp_path: Path) -> None:
    item = {"image": save(tmp_path / "one.nii.gz", np.full((20, 21, 22), 40, np.int16), 3.0), "modality": "MR"}
    assert VolumePreparation((2.0, 2.0, 6.0), 1).expected_voxels(item) == pytest.approx(20 * 21 * 22 * 27 / 24)
    with pytest.raises(DataError, match="cannot be read"):
        VolumePreparation((2.0, 2.0, 6.0), 1).expected_voxels({"image": str(tmp_path / "none.nii.gz")})


class TestBadVolumes:
    """Point 31 and what else a pool of thousands holds."""

    def rejected(self, values: np.ndarray, datalist: Any, tmp_path: Path, modality: str = "CT") -> str | None:
        good = {"image": save(tmp_path / "good.nii.gz", BODY.astype(np.float32))}
        bad = {"image": save(tmp_path / "bad.nii.gz", values)}
        preparation = VolumePreparation((2.0, 2.0, 2.0), 1)
        pool = [datalist([good, bad], modality=modality)]
        _, cache = prepared_volumes(pool, "training", tmp_path / "cache", preparation)
        assert 0 not in cache.rejected
        return cache.rejected.get(1)

    @pytest.mark.parametrize("value", [-40000.0, 45_154_304.0])
    def test_point_31_corrupt_intensities_are_reported(
        self, value: float, datalist: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        values = BODY.astype(np.float32)
        values[3, 4, 5] = value
        with caplog.at_level("WARNING"):
            assert "are no HU" in str(self.rejected(values, datalist, tmp_path))
        assert "1 of 2 volumes cannot be used (bad.nii.gz: values from" in caplog.text

    def test_point_31_values_that_are_no_numbers(self, datalist: Any, tmp_path: Path) -> None:
        values = BODY.astype(np.float32)
        values[:12] = np.nan
        assert self.rejected(values, datalist, tmp_path) == "50.0 % of its values are not finite"
        values = BODY.astype(np.float32)
        values[0, 0, :2] = np.nan, np.inf
        assert self.rejected(values, datalist, tmp_path) is None

    def test_sane_floats_are_taken(self, datalist: Any, tmp_path: Path) -> None:
        assert self.rejected(BODY.astype(np.float64) * 1.01, datalist, tmp_path) is None
        # Only HU have a range: MR and PET reach millions.
        assert self.rejected(BODY.astype(np.float32) * 1e6, datalist, tmp_path, "MR") is None

    def test_the_rest_of_the_pool_trains(self, datalist: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        files = {
            "truncated": BODY.astype(np.int16),
            "four": np.zeros((24, 24, 8, 3), np.int16),
            "corrupt": BODY.astype(np.float32) * 1000,
            "air": np.full((24, 24, 8), -1000, np.int16),
            "good": BODY.astype(np.int16),
        }
        for name, values in files.items():
            save(tmp_path / f"{name}.nii.gz", values)
        whole = (tmp_path / "truncated.nii.gz").read_bytes()
        (tmp_path / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
        items = [{"image": f"{name}.nii.gz"} for name in (*files, "missing")]
        with caplog.at_level("WARNING"):
            dataset = VoCo(**SMALL).dataset([datalist(items)], "training", tmp_path / "cache", 0)
        assert [Path(item["image"]).name for item in dataset.data] == ["good.nii.gz"]
        assert dataset.skipped == 1
        for words in ("4 of 6 volumes", "truncated.nii.gz: cannot be read", "four.nii.gz: has shape", "missing.nii.gz"):
            assert words in caplog.text
        assert str(tmp_path / "truncated") not in caplog.text
        assert torch.isfinite(dataset[(0, 0)]["crops"]).all()

    def test_nothing_but_air_and_bad_volumes(self, datalist: Any, tmp_path: Path) -> None:
        save(tmp_path / "air.nii.gz", np.full((24, 24, 8), -1000, np.int16))
        listed = datalist([{"image": "air.nii.gz"}, {"image": "missing.nii.gz"}])
        with pytest.raises(DataError, match="no volume"):
            VoCo(**SMALL).dataset([listed], "training", tmp_path / "cache", 0)

    def test_point_17_images_only_and_a_missing_set_is_skipped(
        self, datalist: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save(tmp_path / "good.nii.gz", BODY.astype(np.int16))
        here = datalist([{"image": "good.nii.gz"}], name="here")
        away = datalist([{"image": f"away{number}.nii.gz"} for number in range(3)], name="away")
        with caplog.at_level("WARNING"):
            dataset = VoCo(**SMALL).dataset([here, away], "training", tmp_path / "cache", 0)
        assert len(dataset) == 1
        assert "data set away is skipped: none of its 3 images can be used" in caplog.text
        # A name that is mistyped must not train on less than was asked for.
        with pytest.raises(UserError, match="datalist not found"):
            VoCo(**SMALL).dataset([here, tmp_path / "mistyped.json"], "training", tmp_path / "cache", 0)


def test_point_17_no_file_is_read_at_import() -> None:
    opened: list[str] = []
    watching = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes | Path):
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    try:
        for name in ("methods.voco", "methods._voco_data", "methods._volumes", "data.volume_cache", "data.datalist"):
            spec = importlib.util.find_spec(f"lvmmed_monai.{name}")
            assert spec is not None
            assert spec.loader is not None
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    finally:
        watching.clear()
    assert opened
    assert all(name.endswith((".py", ".pyc")) or ".pyc." in name for name in opened)
