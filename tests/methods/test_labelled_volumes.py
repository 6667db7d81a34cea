"""Labelled volumes: datalists that must agree, preparation with the label map, crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from omni_material import LABELS, SHAPE, anatomy, write_set

from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.methods._labelled_volumes import (
    LabelledCrops,
    LabelledPreparation,
    labelled_pool,
    shared_labels,
    vary_grey,
)
from lvmmed_monai.methods._preparation import VolumePreparation


def crops_of(datalist: Path, cache: Path, **options: Any) -> LabelledCrops:
    items = labelled_pool([datalist], "training")
    preparation = LabelledPreparation(VolumePreparation((2.0, 2.0, 2.0), 1), 3)
    volumes = VolumeCache(items, preparation, cache, settings=preparation.settings)
    return LabelledCrops(items, volumes, **{"edge": 8, "crops": 4, "positive_share": 0.9, "seed": 0, **options})


def test_labels_of_all_datalists_must_agree(tmp_path: Path) -> None:
    first = write_set(tmp_path, "first", {"training": [0]})
    other = write_set(tmp_path, "other", {"training": [1]}, labels={"0": "background", "1": "dark", "2": "bright"})
    assert shared_labels([first, first]) == LABELS
    with pytest.raises(UserError, match=r"labels of other\.json differ from those of first\.json"):
        shared_labels([first, other])
    with pytest.raises(UserError, match="no labelled datalist"):
        shared_labels([])
    plain = write_set(tmp_path, "plain", {"training": [2]}, labels=None)
    with pytest.raises(UserError, match="labels are needed"):
        shared_labels([plain])
    with pytest.raises(UserError, match="datalist is for unlabelled"):
        labelled_pool([plain], "training")


class TestPreparation:
    def test_image_is_that_of_unlabelled_volumes_and_labels_come_back_exactly(self, tmp_path: Path) -> None:
        datalist = write_set(tmp_path, "set", {"training": [0, 1]})
        crops = crops_of(datalist, tmp_path / "cache")
        for index in range(2):
            image, label = crops.volume(index)
            plain = VolumePreparation((2.0, 2.0, 2.0), 1)
            expected = plain({"image": str(tmp_path / f"set_{index}.nii.gz"), "modality": "CT"})
            np.testing.assert_allclose(image.numpy(), expected, atol=0.5 / 255 + 1e-6)
            assert torch.equal(label, torch.from_numpy(anatomy(index)[1]))

    def test_follows_the_image_through_orientation_spacing_and_crop(self, tmp_path: Path) -> None:
        """Where the label says 1, the resampled image is bright; where 2, dark: also at 1.5 mm, stored as LPS."""
        write_set(tmp_path, "set", {"training": [3]})
        for name in ("set_3", "set_3_label"):
            stored = nib.load(tmp_path / f"{name}.nii.gz")
            turned = stored.as_reoriented(nib.orientations.axcodes2ornt(("L", "P", "S")))
            nib.save(turned, tmp_path / f"{name}.nii.gz")
        image = nib.load(tmp_path / "set_3.nii.gz")
        values = image.get_fdata()
        # Air beside the body, which the crop takes away from both.
        values[:5] = -1000
        nib.save(nib.Nifti1Image(values.astype(np.int16), image.affine), tmp_path / "set_3.nii.gz")
        item = labelled_pool([tmp_path / "set.json"], "training")[0]
        prepared = LabelledPreparation(VolumePreparation((1.5, 2.0, 2.5), 1), 3)(item)
        assert prepared.shape[1] < SHAPE[0] * 2 / 1.5 - 5
        grey, label = prepared[0], np.rint(prepared[1] * 255)
        assert set(np.unique(label)) == {0, 1, 2}
        assert np.median(grey[label == 1]) == pytest.approx(750 / 900, abs=0.02)
        assert np.median(grey[label == 2]) == pytest.approx(150 / 900, abs=0.02)
        volume = 4 / 3 * np.pi * 6**3 * 8
        assert (label == 1).sum() * 1.5 * 2 * 2.5 == pytest.approx(volume, rel=0.1)

    def test_a_changed_label_map_is_prepared_again(self, tmp_path: Path) -> None:
        datalist = write_set(tmp_path, "set", {"training": [0, 1]})
        crops_of(datalist, tmp_path / "cache")
        label = np.zeros(SHAPE, np.uint8)
        label[:3] = 2
        nib.save(nib.Nifti1Image(label, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "set_1_label.nii.gz")
        again = crops_of(datalist, tmp_path / "cache")
        assert again.cache.built == 1
        assert torch.equal(again.volume(1)[1], torch.from_numpy(label))

    @pytest.mark.parametrize(("value", "message"), [(3, "holds 3"), (0.5, "holds 0.5")])
    def test_refuses_what_is_no_class(self, value: float, message: str, tmp_path: Path) -> None:
        datalist = write_set(tmp_path, "set", {"training": [0]})
        label = np.full(SHAPE, value, np.float32)
        nib.save(nib.Nifti1Image(label, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "set_0_label.nii.gz")
        with pytest.raises(DataError, match=message):
            crops_of(datalist, tmp_path / "cache")

    def test_refuses_a_label_map_on_another_grid_or_damaged(self, tmp_path: Path) -> None:
        datalist = write_set(tmp_path, "set", {"training": [0]})
        path = tmp_path / "set_0_label.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([3.0, 2.0, 2.0, 1.0])), path)
        with pytest.raises(DataError, match="another grid"):
            crops_of(datalist, tmp_path / "cache")
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(DataError, match="cannot be read"):
            LabelledPreparation(VolumePreparation((2.0, 2.0, 2.0), 1), 3)(
                {"image": [str(tmp_path / "set_0.nii.gz"), str(path)], "modality": "CT"}
            )

    def test_point_31_labelled_volumes_are_judged_as_unlabelled_ones(self, tmp_path: Path) -> None:
        """Values that are no HU: whatever the preparation of unlabelled volumes does with them, it does here."""
        write_set(tmp_path, "set", {"training": [0]})
        image = anatomy(0)[0].astype(np.float32)
        image[5, 5, 5] = 45_154_304
        nib.save(nib.Nifti1Image(image, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "set_0.nii.gz")
        item = labelled_pool([tmp_path / "set.json"], "training")[0]
        plain = VolumePreparation((2.0, 2.0, 2.0), 1)

        def outcome(prepare: Any, item: dict[str, Any]) -> Any:
            try:
                return prepare(item)[0].tolist()
            except DataError as error:
                return str(error)

        assert outcome(LabelledPreparation(plain, 3), item) == outcome(plain, {**item, "image": item["image"][0]})


class TestCrops:
    def test_sample(self, tmp_path: Path) -> None:
        crops = crops_of(write_set(tmp_path, "set", {"training": [0, 1]}), tmp_path / "cache")
        sample = crops[(3, 1)]
        assert sample["labelled"].shape == (4, 1, 8, 8, 8)
        assert sample["labelled"].dtype == torch.float32
        assert sample["label"].shape == (4, 8, 8, 8)
        assert sample["label"].dtype == torch.uint8
        again = crops_of(tmp_path / "set.json", tmp_path / "cache")[(3, 1)]
        assert all(torch.equal(sample[key], again[key]) for key in sample)
        assert not torch.equal(sample["labelled"], crops[(4, 1)]["labelled"])

    def test_image_and_label_stay_together(self, tmp_path: Path) -> None:
        crops = crops_of(write_set(tmp_path, "set", {"training": [0]}), tmp_path / "cache", crops=30)
        sample = crops[(0, 0)]
        means = [sample["labelled"][:, 0][sample["label"] == number].mean() for number in (1, 0, 2)]
        assert means[0] > means[1] + 0.2 > means[2] + 0.4

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_share_of_crops_with_a_structure_in_their_middle(self, share: float, tmp_path: Path) -> None:
        crops = crops_of(
            write_set(tmp_path, "set", {"training": [0]}), tmp_path / "cache", crops=200, edge=2, positive_share=share
        )
        label = anatomy(0)[1]
        found = (crops[(0, 0)]["label"].flatten(1) > 0).any(1).float().mean()
        # A crop of two voxels that lies anywhere meets a structure about as often as its dilated volume says.
        anywhere = float((np.maximum.reduce([np.roll(label, s, (0, 1, 2)) for s in np.ndindex(2, 2, 2)]) > 0).mean())
        assert float(found) == pytest.approx(share + (1 - share) * anywhere, abs=0.08)

    def test_a_volume_smaller_than_the_crop_lies_in_it(self, tmp_path: Path) -> None:
        crops = crops_of(write_set(tmp_path, "set", {"training": [0]}), tmp_path / "cache", edge=40, crops=2)
        sample = crops[(0, 0)]
        total = int((anatomy(0)[1] > 0).sum())
        assert [int((label > 0).sum()) for label in sample["label"]] == [total, total]

    def test_sides_are_kept_where_they_matter(self, tmp_path: Path) -> None:
        datalist = write_set(tmp_path, "set", {"training": [0]}, flip_safe=False)
        asked = [crops_of(datalist, tmp_path / "cache").may_mirror(0)]
        asked.append(crops_of(write_set(tmp_path, "set", {"training": [0]}), tmp_path / "cache").may_mirror(0))
        assert asked == [False, True]


def test_grey_values_vary_and_places_do_not() -> None:
    crop = torch.zeros(1, 12, 12, 12)
    crop[:, 3:9, 3:9, 3:9] = 0.6
    versions = [vary_grey(np.random.default_rng(seed), crop, "MR") for seed in range(20)]
    inside = torch.stack([version[:, 3:9, 3:9, 3:9].mean() for version in versions])
    outside = torch.stack([version[:, :3].mean() for version in versions])
    assert inside.std() > 0.05
    assert (inside > outside + 0.3).all()
    assert torch.equal(versions[3], vary_grey(np.random.default_rng(3), crop, "MR"))
