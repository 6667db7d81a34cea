"""VoCo as a whole: data, network, step, teacher, monitors, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.handlers.examples import write_examples
from lvmmed_monai.losses.volume_contrast import mask_overlap, overlap_similarity
from lvmmed_monai.methods import build_method
from lvmmed_monai.methods._preparation import VolumePreparation
from lvmmed_monai.methods._voco_data import VolumeCropDataset
from lvmmed_monai.methods._voco_monitors import position_scores
from lvmmed_monai.methods._voco_network import Projector, standardise
from lvmmed_monai.methods.voco import VoCo
from lvmmed_monai.results import new_results, validate_results
from lvmmed_monai.transforms.crops_3d import overlap_labels

SMALL: dict[str, Any] = {
    "encoder_options": {"init_filters": 8},
    "crop_size": 8,
    "spacing_mm": 2.0,
    "projector": (32, 16),
    "monitor_blocks": 4,
}
SHAPE = (32, 31, 30)


def body(seed: int) -> np.ndarray:
    """HU that vary smoothly and differ from place to place; no air."""
    random = np.random.default_rng(seed)
    noise = gaussian_filter(random.standard_normal(SHAPE), 2)
    return (60 * noise / noise.std() + 20 * np.arange(SHAPE[0])[:, None, None] - 300).clip(-400, 390)


def write_volume(path: Path, values: np.ndarray, spacing: float = 2.0, codes: str = "RAS") -> None:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    image = nib.Nifti1Image(values.astype(np.int16), affine)
    orientation = nib.orientations.axcodes2ornt(tuple(codes))
    nib.save(image.as_reoriented(orientation), path)


@pytest.fixture
def make_datalist(tmp_path: Path) -> Callable[..., Path]:
    def make(volumes: list[np.ndarray], *, name: str = "set", flip_safe: bool = True, modality: str = "CT") -> Path:
        items = []
        for number, values in enumerate(volumes):
            path = tmp_path / f"{name}_{number}.nii.gz"
            write_volume(path, values)
            items.append({"image": path.name, "subject": f"{name}{number}"})
        content = {
            "format": "lvmmed-datalist/1",
            "name": name,
            "task": "unlabelled",
            "modality": modality,
            "labels": {},
            "flip_safe": flip_safe,
            "training": items,
            "validation": [],
            "test": [],
        }
        write_datalist(tmp_path / f"{name}.json", content)
        return tmp_path / f"{name}.json"

    return make


@pytest.fixture
def datalist(make_datalist: Callable[..., Path]) -> Path:
    return make_datalist([body(seed) for seed in range(4)])


def batch_of(dataset: Any, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([dataset[key] for key in keys])


class TestPreparation:
    def test_is_the_same_for_every_stored_orientation(self, tmp_path: Path) -> None:
        prepare = VolumePreparation((2.0, 2.0, 2.0), 1)
        values = body(0)
        found = []
        for codes in ("RAS", "LPS", "SRA"):
            write_volume(tmp_path / "one.nii.gz", values, codes=codes)
            found.append(prepare({"image": str(tmp_path / "one.nii.gz"), "modality": "CT"}))
        expected = (values.astype(np.int16).astype(np.float32) + 500) / 900
        np.testing.assert_allclose(found[0][0], expected, atol=1e-5)
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], atol=1e-5)

    def test_resamples_to_the_spacing(self, tmp_path: Path) -> None:
        write_volume(tmp_path / "one.nii.gz", np.full((20, 20, 20), 40.0), spacing=3.0)
        array = VolumePreparation((2.0, 2.0, 6.0), 1)({"image": str(tmp_path / "one.nii.gz"), "modality": "OTHER"})
        assert array.size == 0
        values = np.full((20, 20, 20), 40.0)
        values[0, 0, 0] = -10
        write_volume(tmp_path / "one.nii.gz", values, spacing=3.0)
        array = VolumePreparation((2.0, 2.0, 6.0), 1)({"image": str(tmp_path / "one.nii.gz"), "modality": "CT"})
        assert abs(array.shape[1] - 30) <= 1
        assert abs(array.shape[3] - 10) <= 1
        assert 0 <= array.min() <= array.max() <= 1

    def test_padding_far_below_air_does_not_bleed(self, tmp_path: Path) -> None:
        values = np.full((12, 12, 12), 40.0)
        values[:6] = -3024
        write_volume(tmp_path / "one.nii.gz", values, spacing=3.0)
        array = VolumePreparation((2.0, 2.0, 2.0), 1)({"image": str(tmp_path / "one.nii.gz"), "modality": "CT"})
        # Between padding (0) and tissue (.6) there is nothing but their mixtures, one voxel wide.
        profile = array[0, :, 3, 3]
        assert (np.diff(profile) >= -1e-6).all()
        assert (profile > 0.59).sum() >= array.shape[1] - 2

    def test_refuses_a_truncated_file(self, tmp_path: Path) -> None:
        write_volume(tmp_path / "one.nii.gz", body(0))
        content = (tmp_path / "one.nii.gz").read_bytes()
        (tmp_path / "one.nii.gz").write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match="cannot be read"):
            VolumePreparation((2.0, 2.0, 2.0), 1)({"image": str(tmp_path / "one.nii.gz"), "modality": "CT"})

    def test_refuses_the_wrong_channels(self, tmp_path: Path) -> None:
        write_volume(tmp_path / "one.nii.gz", body(0))
        with pytest.raises(DataError, match="2 channel"):
            VolumePreparation((2.0, 2.0, 2.0), 2)({"image": str(tmp_path / "one.nii.gz"), "modality": "CT"})


class TestDataset:
    def test_shapes_and_labels(self, datalist: Path, tmp_path: Path) -> None:
        dataset = VoCo(**SMALL, crops_per_volume=3).dataset([datalist], "training", tmp_path / "cache", 0)
        assert len(dataset) == len(dataset.data) == 4
        sample = dataset[(5, 1)]
        assert sample["crops"].shape == (9 + 3, 1, 8, 8, 8)
        assert sample["crops"].dtype == torch.float32
        assert sample["overlap"].shape == (3, 9)
        torch.testing.assert_close(sample["overlap"].sum(-1), torch.ones(3))
        assert sample["base_mask"].dtype == torch.bool

    def test_point_15_a_sample_depends_on_its_key_and_nothing_else(self, datalist: Path, tmp_path: Path) -> None:
        dataset = VoCo(**SMALL).dataset([datalist], "training", tmp_path / "cache", 3)
        first = dataset[(7, 2)]
        np.random.rand(5)
        torch.rand(5)
        again = VoCo(**SMALL).dataset([datalist], "training", tmp_path / "cache", 3)[(7, 2)]
        assert all(torch.equal(first[key], again[key]) for key in first)
        other = VoCo(**SMALL).dataset([datalist], "training", tmp_path / "cache", 4)[(7, 2)]
        assert not torch.equal(first["crops"], other["crops"])

    def test_point_15_determinism_does_not_repeat_crops_or_augmentations(self, datalist: Path, tmp_path: Path) -> None:
        dataset = VoCo(**SMALL).dataset([datalist], "training", tmp_path / "cache", 0)
        monai.utils.set_determinism(0)
        try:
            loader = torch.utils.data.DataLoader(dataset, sampler=[(0, 0), (1, 0), (2, 1), (3, 1)], num_workers=2)
            samples = list(loader)
        finally:
            monai.utils.set_determinism(None)
        for one in range(4):
            for two in range(one):
                assert not torch.equal(samples[one]["overlap"], samples[two]["overlap"])
                assert not torch.equal(samples[one]["crops"], samples[two]["crops"])

    def test_point_15_workers_do_not_change_the_samples(self, datalist: Path, tmp_path: Path) -> None:
        dataset = VoCo(**SMALL).dataset([datalist], "training", tmp_path / "cache", 0)
        keys = [(draw, draw % 4) for draw in range(6)]
        loader = torch.utils.data.DataLoader(dataset, sampler=keys, batch_size=None, num_workers=2)
        for key, sample in zip(keys, loader, strict=True):
            assert torch.equal(sample["crops"], dataset[key]["crops"])

    def test_point_16_the_cache_holds_deterministic_steps_only(self, datalist: Path, tmp_path: Path) -> None:
        dataset = VoCo(**SMALL).dataset([datalist], "training", tmp_path / "cache", 0)
        stored = [path.read_bytes() for path in sorted((tmp_path / "cache").rglob("*.vol"))]
        first, second = dataset[(0, 0)], dataset[(4, 0)]
        assert not torch.equal(first["crops"], second["crops"])
        other = VoCo(**SMALL).dataset([datalist], "training", tmp_path / "cache", 99)
        assert other.cache.built == 0
        assert [path.read_bytes() for path in sorted((tmp_path / "cache").rglob("*.vol"))] == stored

    def test_point_03_without_augmentation_bases_are_windows_of_the_volume(
        self, make_datalist: Callable[..., Path], tmp_path: Path
    ) -> None:
        values = np.arange(24 * 24 * 8, dtype=float).reshape(24, 24, 8) % 700 - 300
        method = VoCo(**SMALL)
        dataset = method.dataset([make_datalist([values])], "training", tmp_path / "cache", 0)
        plain = dataset.sample(np.random.default_rng(0), 0, augment_block=False, augment_crops=False)
        stored = torch.from_numpy(dataset.cache.read_window(0, (0, 0, 0), (24, 24, 8)))
        for i in range(3):
            for j in range(3):
                expected = stored[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
                assert torch.equal(plain["crops"][3 * i + j], expected)

    def test_point_19_bases_in_padding_are_masked(self, make_datalist: Callable[..., Path], tmp_path: Path) -> None:
        narrow = body(0)[:, :9, :8]
        dataset = VoCo(**SMALL).dataset([make_datalist([narrow])], "training", tmp_path / "cache", 0)
        plain = dataset.sample(np.random.default_rng(0), 0, augment_block=False, augment_crops=False)
        shares = (plain["crops"][:9] > 0.02).float().mean((1, 2, 3, 4))
        assert torch.equal(plain["base_mask"], shares >= 0.25)
        assert 3 <= int(plain["base_mask"].sum()) <= 6
        labels, valid = mask_overlap(plain["overlap"][None], plain["base_mask"][None])
        assert not labels[..., ~plain["base_mask"]].any()
        torch.testing.assert_close(labels.sum(-1)[valid.any(-1)], torch.ones(int(valid.any(-1).sum())))
        method = VoCo(**SMALL)
        terms = method.step(batch_of(dataset, [(0, 0), (1, 0)]), method.network())
        assert torch.isfinite(terms["loss"])

    def test_point_19_volumes_of_air_are_skipped_and_counted(
        self, make_datalist: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        air = np.full(SHAPE, -1000.0)
        with caplog.at_level("WARNING"):
            dataset = VoCo(**SMALL).dataset([make_datalist([air, body(0), body(1)])], "training", tmp_path / "cache", 0)
        assert (dataset.skipped, len(dataset)) == (1, 2)
        assert "1 of 3 volumes show only air" in caplog.text
        assert dataset.data[0]["image"].endswith("set_1.nii.gz")
        with pytest.raises(DataError, match="no volumes"):
            VoCo(**SMALL).dataset([make_datalist([body(0)])], "validation", tmp_path / "cache", 0)
        with pytest.raises(DataError, match="anything but air"):
            VoCo(**SMALL).dataset([make_datalist([air], name="air")], "training", tmp_path / "cache", 0)

    def test_volumes_that_are_not_flip_safe_are_never_mirrored(
        self, make_datalist: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lvmmed_monai.methods import _voco_data, _volumes

        asked: list[bool] = []
        for module, name in ((_volumes, "draw_block_augmentation"), (_voco_data, "draw_crop_augmentation")):
            original = getattr(module, name)

            def spy(*args: Any, mirror: bool, original: Any = original, **options: Any) -> Any:
                asked.append(mirror)
                return original(*args, mirror=mirror, **options)

            monkeypatch.setattr(module, name, spy)
        pool = [make_datalist([body(0)], name="safe"), make_datalist([body(1)], name="sided", flip_safe=False)]
        dataset = VoCo(**SMALL).dataset(pool, "training", tmp_path / "cache", 0)
        dataset[(0, 0)]
        assert all(asked)
        asked.clear()
        dataset[(0, 1)]
        assert asked
        assert not any(asked)


def grey(item: dict[str, Any]) -> np.ndarray:
    x, y, z = np.meshgrid(np.arange(40), np.arange(36), np.arange(20), indexing="ij")
    return ((7 * x + 11 * y + 13 * z + item["number"] * x * y) % 101 + 20).astype(np.float32) / 120


class TestCropOptions:
    @pytest.fixture
    def items(self, tmp_path: Path) -> list[dict[str, Any]]:
        items = []
        for number, modality in ((1, "CT"), (2, "MR")):
            (tmp_path / str(number)).write_text(str(number))
            about = {"modality": modality, "flip_safe": number == 1, "number": number}
            items.append({"image": str(tmp_path / str(number)), **about})
        return items

    def dataset(self, items: list[dict[str, Any]], tmp_path: Path, **options: Any) -> VolumeCropDataset:
        cache = VolumeCache(items, grey, tmp_path / "cache", settings={})
        about: dict[str, Any] = {"grid": (3, 3), "edge": 8, "crops_per_volume": 3, "seed": 5, **options}
        return VolumeCropDataset(items, cache, **about)

    def test_defaults_give_what_they_gave_before_there_were_options(
        self, items: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        """Numbers written down from the code as it was with axial grids only."""
        dataset = self.dataset(items, tmp_path)
        plain = dataset.sample(np.random.default_rng([5, 3, 1]), 1, augment_block=False)
        assert plain.keys() == {"crops", "overlap", "base_mask"}
        joined = b"".join(plain[key].numpy().tobytes() for key in ("crops", "overlap", "base_mask"))
        assert sha256(joined).hexdigest() == "a296d210a6242156d6bf0823fd12bfba3efc0ebd81696b9e86f81dfad3fd1b33"
        sample = dataset[(3, 1)]
        assert float(sample["crops"].double().sum()) == pytest.approx(3111.376261, abs=1e-3)
        assert float(sample["crops"][-1, 0, 3, 4, 5]) == pytest.approx(0.6096727, abs=1e-6)
        assert sample["overlap"][0].tolist() == [0.046875, 0.078125, 0, 0.328125, 0.546875, 0, 0, 0, 0]
        sample = self.dataset(items, tmp_path, grid=(2, 3))[(4, 0)]
        assert float(sample["crops"].double().sum()) == pytest.approx(2662.387083, abs=1e-3)
        assert sample["overlap"][0].tolist() == [0, 0.125, 0.125, 0, 0.375, 0.375]

    def test_layers_carry_their_depth(self, items: list[dict[str, Any]], tmp_path: Path) -> None:
        dataset = self.dataset(items, tmp_path, grid=(3, 2, 2), crops_per_volume=40)
        assert dataset.block_size == (24, 16, 16)
        sample = dataset.sample(np.random.default_rng(0), 0, augment_block=False, augment_crops=False)
        assert sample["crops"].shape == (12 + 40, 1, 8, 8, 8)
        assert (sample["overlap"].shape, sample["depth"].shape) == ((40, 6), (40, 2))
        assert sample["base_mask"].shape == (12,)
        torch.testing.assert_close(sample["depth"].sum(-1), torch.ones(40))
        block = torch.cat([torch.cat([torch.cat(list(sample["crops"][4 * i + 2 * j :][:2]), 3) for j in range(2)], 2)
                           for i in range(3)], 1)  # fmt: skip
        # Where a random crop lies is found by looking for it in the block that the bases make.
        windows = block[0].unfold(0, 8, 1).unfold(1, 8, 1).unfold(2, 8, 1)
        for crop, overlap, depth in zip(sample["crops"][12:], sample["overlap"], sample["depth"], strict=True):
            places = (windows == crop[0]).flatten(3).all(-1).nonzero()
            assert len(places) == 1
            center = places[0] + 4
            expected = overlap_labels(center, (3, 2, 2), 8)
            torch.testing.assert_close((overlap[:, None] * depth).flatten(), expected)
        terms = torch.utils.data.default_collate([dataset[(0, 0)], dataset[(1, 1)]])
        assert terms["depth"].shape == (2, 40, 2)

    def test_offset_moves_random_crops_along_z_and_not_their_labels(
        self, items: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        dataset = self.dataset(items, tmp_path, z_offset=4, crops_per_volume=60, grid=(2, 2))
        assert dataset.block_size == (16, 16, 16)
        random = np.random.default_rng(1)
        sample = dataset.sample(random, 0, augment_block=False, augment_crops=False)
        assert "depth" not in sample
        stored = torch.from_numpy(dataset.cache.read_window(0, (0, 0, 0), (40, 36, 20)))[0]

        def places(crop: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
            windows = inside.unfold(0, 8, 1).unfold(1, 8, 1).unfold(2, 8, 1)
            return (windows == crop[0]).flatten(3).all(-1).nonzero()[0]

        x, y, z = places(sample["crops"][0], stored).tolist()
        assert (places(sample["crops"][3], stored) - torch.tensor([x, y, z])).tolist() == [8, 8, 0]
        near = stored[x : x + 16, y : y + 16, z - 4 : z + 12]
        found = torch.stack([places(crop, near) for crop in sample["crops"][4:]])
        assert set((found[:, 2] - 4).tolist()) == set(range(-4, 5))
        torch.testing.assert_close(overlap_labels(found[:, :2] + 4, 2, 8), sample["overlap"])

    def test_scaled_crops(self, items: list[dict[str, Any]], tmp_path: Path) -> None:
        dataset = self.dataset(items, tmp_path, crop_scale=(0.5, 1.5), crops_per_volume=50)
        assert dataset.block_size == (24, 24, 12)
        sample = dataset[(0, 0)]
        assert sample["crops"].shape == (59, 1, 8, 8, 8)
        torch.testing.assert_close(sample["overlap"].sum(-1), torch.ones(50))
        # A crop half as long can lie in one base from more places than one as long; a longer one never can.
        assert float((sample["overlap"].amax(-1) == 1).float().mean()) > 0.1
        assert float(sample["overlap"].amax(-1).min()) < 0.3
        assert torch.equal(sample["crops"], dataset[(0, 0)]["crops"])


class TestNetwork:
    def test_standardise_equals_batch_norm_of_one_volume(self) -> None:
        features = torch.randn(3, 11, 5)
        counted = torch.ones(3, 11, dtype=torch.bool)
        counted[1, 6:] = False
        found = standardise(features, counted)
        norm = torch.nn.BatchNorm1d(5, affine=False, track_running_stats=False)
        torch.testing.assert_close(found[0], norm(features[0]))
        torch.testing.assert_close(found[1, :6], norm(features[1, :6]))

    def test_an_embedding_does_not_depend_on_the_other_volumes(self) -> None:
        projector = Projector(5, 8, 4)
        features, counted = torch.randn(3, 11, 5), torch.ones(3, 11, dtype=torch.bool)
        torch.testing.assert_close(projector(features, counted)[:1], projector(features[:1], counted[:1]))

    def test_point_20_dropout_is_off_in_eval_and_never_takes_a_whole_row(self) -> None:
        torch.manual_seed(0)
        network = VoCo(**SMALL).network()
        rows = network.train().dropout(torch.ones(1000, 1, 112))
        assert (rows.sum(-1) > 0).all()
        assert float((rows == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
        crops, counted = torch.rand(1, 11, 1, 8, 8, 8), torch.ones(1, 11, dtype=torch.bool)
        network.eval()
        assert torch.equal(network(crops, counted)[0], network(crops, counted)[0])

    def test_pools_mean_and_spread_of_each_map(self) -> None:
        network = VoCo(**SMALL).network()
        crops = torch.rand(2, 3, 1, 8, 8, 8)
        found = network.pooled(crops)
        for b in range(2):
            for k in range(3):
                maps = [one[0].double().flatten(1).detach().numpy() for one in network.encoder(crops[b, k][None])]
                expected = np.concatenate([part for flat in maps for part in (flat.mean(1), flat.std(1))])
                np.testing.assert_allclose(found[b, k].detach().numpy(), expected, atol=1.01e-3)
        with pytest.raises(UserError, match="pooling must be of mean, std"):
            VoCo(**SMALL, pooling=["max"])

    def test_point_08_pooled_width_of_a_swin_encoder(self) -> None:
        method = VoCo(encoder_name="swinunetr_tiny", crop_size=16, projector=(16, 8), pooling=["mean"])
        student, teacher = method.network()(torch.rand(1, 4, 1, 16, 16, 16), torch.ones(1, 4, dtype=torch.bool))
        assert student.shape == teacher.shape == (1, 4, 8)
        assert method.network().projector.layers[0].in_features == sum(method.encoder().channels)


class TestTeacher:
    def test_point_21_starts_as_a_copy_without_gradient(self) -> None:
        network = VoCo(**SMALL).network()
        for slow, fast in zip(network.teacher.parameters(), network.projector.parameters(), strict=True):
            assert torch.equal(slow, fast)
            assert slow.data_ptr() != fast.data_ptr()
            assert not slow.requires_grad

    def test_point_21_moving_average(self) -> None:
        method = VoCo(**SMALL)
        network = method.network()
        for slow, fast in zip(network.teacher.parameters(), network.projector.parameters(), strict=True):
            slow.zero_()
            fast.data.fill_(1.0)
        for expected in (0.1, 0.19, 0.271, 0.3439, 0.40951):
            method.after_step(network)
            assert all(torch.allclose(slow, torch.tensor(expected)) for slow in network.teacher.parameters())

    def test_point_21_a_whole_encoder_may_be_taught(self, datalist: Path, tmp_path: Path) -> None:
        method = VoCo(**SMALL, encoder_ema=0.75, dropout=0.0)
        network = method.network()
        assert not method.base_gradient
        own = dict(network.teacher_encoder.named_parameters())
        assert all(torch.equal(own[name], value) for name, value in method.encoder().named_parameters())
        assert not any(value.requires_grad for value in own.values())
        assert {f"teacher_encoder.{name}" for name in own} <= network.state_dict().keys()
        dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
        batch = batch_of(dataset, [(0, 0), (1, 1)])
        student, teacher = network(batch["crops"], torch.ones(2, 25, dtype=torch.bool))
        torch.testing.assert_close(student, teacher)
        before = {name: value.clone() for name, value in own.items()}
        optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], lr=0.1)
        method.step(batch, network)["loss"].backward()
        optimizer.step()
        assert all(value.grad is None and torch.equal(value, before[name]) for name, value in own.items())
        method.after_step(network)
        for name, value in method.encoder().named_parameters():
            torch.testing.assert_close(own[name], 0.75 * before[name] + 0.25 * value)
        _, teacher = network(batch["crops"], torch.ones(2, 25, dtype=torch.bool))
        assert not torch.allclose(student, teacher)
        assert method.monitors(dataset)["embedding_rank"] > 1

    @pytest.mark.parametrize("mode", ["fixed", "v2", "v1", "paper"])
    def test_point_21_takes_no_gradient_and_stays_in_a_step(self, mode: Any, datalist: Path, tmp_path: Path) -> None:
        method = VoCo(**SMALL, loss_mode=mode)
        network = method.network()
        dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
        before = [parameter.clone() for parameter in network.teacher.parameters()]
        terms = method.step(batch_of(dataset, [(0, 0), (1, 1)]), network)
        assert {"loss", "intra", "inter", "base", "argmax_accuracy", "teacher_distance"} <= terms.keys()
        terms["loss"].backward()
        assert all(parameter.grad is None for parameter in network.teacher.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, network.teacher.parameters(), strict=True))
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name

    def test_gradient_through_the_bases_is_an_option(self, datalist: Path, tmp_path: Path) -> None:
        gradients = []
        for through in (True, False):
            torch.manual_seed(0)
            method = VoCo(**SMALL, base_gradient=through, dropout=0.0)
            dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
            method.step(batch_of(dataset, [(0, 0), (1, 1)]), method.network())["loss"].backward()
            gradients.append(next(method.encoder().parameters()).grad)
        assert not torch.allclose(*gradients)


@pytest.mark.parametrize(("volumes", "crops"), [(1, 4), (2, 1), (1, 1)])
def test_point_22_one_volume_or_one_crop(volumes: int, crops: int, datalist: Path, tmp_path: Path) -> None:
    """With one volume there is no other one to compare with: the inter term is 0 and the rest is learnt."""
    method = VoCo(**SMALL, crops_per_volume=crops)
    dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
    terms = method.step(batch_of(dataset, [(number, number) for number in range(volumes)]), method.network())
    assert (float(terms["inter"]) == 0) == (volumes == 1)
    assert float(terms["intra"]) > 0
    terms["loss"].backward()
    gradient = next(method.encoder().parameters()).grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    assert all(np.isfinite(float(value)) for value in terms.values())


class TestMonitors:
    def test_names_ranges_and_repeatability(self, datalist: Path, tmp_path: Path) -> None:
        method = VoCo(**SMALL)
        network = method.network().train()
        dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        state = torch.get_rng_state()
        found = method.monitors(dataset)
        assert found == method.monitors(dataset)
        assert torch.equal(state, torch.get_rng_state())
        assert network.training
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert found.keys() == method.metric_directions.keys()
        assert {"argmax_accuracy_aug", "argmax_accuracy_aug_features", "histogram_argmax_accuracy_aug"} <= found.keys()
        assert all(np.isfinite(value) for value in found.values())
        assert all(0 <= value <= 1 for name, value in found.items() if "accuracy" in name)
        assert method.chance == {"argmax_accuracy_clean": 0.25, "argmax_accuracy_aug": 0.25}
        other = VoCo(**SMALL).monitors(dataset)
        assert other["histogram_loss_aug"] == found["histogram_loss_aug"]

    def test_scores(self) -> None:
        target = torch.tensor([[[0.6, 0.4, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75]]])
        every = torch.ones(1, 4, dtype=torch.bool)
        perfect = position_scores(target, target, every)
        assert perfect["correlation"] == pytest.approx(1.0)
        assert perfect["argmax_accuracy"] == 1.0
        assert perfect["loss"] == pytest.approx(-2e-6, abs=1e-6)
        # A tie of labels counts for either base; the third crop points at the wrong one.
        wrong = torch.tensor([[[0.9, 0, 0, 0], [0, 0.9, 0, 0], [0.9, 0, 0, 0.5]]])
        assert position_scores(target, wrong, every)["argmax_accuracy"] == pytest.approx(2 / 3)
        # Without its base the third crop's label moves to the one that is left; what base 3 says is not looked at.
        masked = position_scores(
            target, torch.tensor([[[0.9, 0, 0, 0], [0, 0.9, 0, 0], [0, 0, 0.5, 1]]]), every.clone()
        )
        assert masked["argmax_accuracy"] == 1.0
        mask = torch.tensor([[True, True, True, False]])
        assert (
            position_scores(target, torch.tensor([[[0.9, 0, 0, 0], [0, 0.9, 0, 0], [0, 0, 0.5, 1]]]), mask)[
                "argmax_accuracy"
            ]
            == 1.0
        )
        assert position_scores(target, torch.zeros_like(target), every)["correlation"] == 0.0


class TestExamples:
    def test_what_the_picture_shows_is_what_the_dataset_and_the_network_say(
        self, make_datalist: Callable[..., Path], tmp_path: Path
    ) -> None:
        method = VoCo(**SMALL)
        # A volume of exactly one block: its middle slice is known.
        dataset = method.dataset([make_datalist([body(0)[:24, :24, :8]])], "training", tmp_path / "cache", 0)
        (example,) = method.examples(dataset)
        assert example == {**method.examples(dataset)[0], "slice": example["slice"]}
        expected = dataset.cache.read_window(0, (0, 0, 0), (24, 24, 8))[0, :, :, 4]
        np.testing.assert_allclose(example["slice"], expected * 255, atol=1.01)
        assert len(example["crops"]) == 3
        for crop in example["crops"]:
            x, y = crop["center"]
            along = [[max(0.0, 1 - abs(spot - 0.5 - cell)) for cell in range(3)] for spot in (x, y)]
            np.testing.assert_allclose(crop["true"], np.outer(*along).ravel(), atol=1e-6)
            assert len(crop["predicted"]) == 9
            assert all(0 <= value <= 1 + 1e-6 for value in crop["predicted"])

    def test_they_are_written_beside_the_results(self, datalist: Path, tmp_path: Path) -> None:
        method = VoCo(**SMALL)
        dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
        written = write_examples(method, dataset, tmp_path)
        assert [example["picture"] for example in written] == ["examples/1.png", "examples/2.png"]
        drawn = method.examples(dataset)[0]["slice"]
        shown = np.asarray(Image.open(tmp_path / "examples" / "1.png"))
        # Patient's right (the last x of RAS+ is left on the picture), anterior (the last y) at the top.
        assert shown[0, 0] == drawn[-1, -1]
        assert shown[-1, 0] == drawn[-1, 0]
        record = {**new_results("pretraining", "voco_pretrain", seed=0), "examples": written}
        assert validate_results(record) == []
        record["examples"][0]["crops"][0]["true"] = [1.0]
        assert "examples.held-out volume 1" in validate_results(record)[0]
        assert write_examples(method, None, tmp_path) == []


class TestContract:
    def test_built_by_name(self) -> None:
        method = build_method("voco", **SMALL)
        assert method.name == "voco"
        assert method.network() is method.network()
        assert method.network().encoder is method.encoder()
        spec = method.input_spec()
        assert (spec["spatial_dims"], spec["in_channels"], spec["spacing_mm"]) == (3, 1, [2.0, 2.0, 2.0])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"grid": 1}, "grid"),
            ({"grid": (2, 2, 2, 2)}, "grid"),
            ({"crop_scale": (1.0, 4.0)}, "crop_scale"),
            ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
            ({"z_offset": -1}, "z_offset"),
            ({"z_offset": 2, "grid": (2, 2, 2)}, "z_offset"),
            ({"preset": "foot"}, "unknown preset"),
            ({"base_gradient": "maybe"}, "true or false"),
            ({"crop_size": 9}, "crop_size"),
            ({"crops_per_volume": 0}, "crops_per_volume"),
            ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm"),
            ({"ct_window": (400, -500)}, "ct_window"),
            ({"momentum": 1.5}, "momentum"),
            ({"dropout": 7}, "dropout must lie between 0 and 1"),
            ({"encoder_ema": -0.1}, "encoder_ema"),
            ({"encoder_ema": 0.9, "base_gradient": True}, "encoder of its own"),
            ({"projector": (8,)}, "projector"),
            ({"loss_mode": "v3"}, "unknown form"),
            ({"encoder_name": "resnet18"}, "not 3D"),
            ({"loss_mode": "v1", "base_gradient": True}, "v1"),
        ],
    )
    def test_refuses_impossible_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            VoCo(**{**SMALL, "encoder_options": None, **options})


@pytest.mark.slow
def test_point_27_learns_positions(make_datalist: Callable[..., Path], tmp_path: Path) -> None:
    """Four volumes of distinct structure, no augmentation: far below what answers without looking reach (.50)."""
    torch.manual_seed(0)
    volumes = []
    for seed in range(4):
        noise = gaussian_filter(np.random.default_rng(seed).standard_normal((26, 26, 10)), 3)
        volumes.append((180 * noise / noise.std() - 50).clip(-450, 390))
    method = VoCo(**SMALL, dropout=0.0)
    network = method.network().train()
    dataset = method.dataset([make_datalist(volumes)], "training", tmp_path / "cache", 0)
    before = method.monitors(dataset)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    intra = []
    for step in range(120):
        samples = [
            dataset.sample(np.random.default_rng([step, index]), index, augment_block=False, augment_crops=False)
            for index in range(4)
        ]
        terms = method.step(torch.utils.data.default_collate(samples), network)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        method.after_step(network)
        intra.append(float(terms["intra"].detach()))
    after = method.monitors(dataset)
    assert np.mean(intra[-20:]) < 0.30
    assert after["argmax_accuracy_clean"] > before["argmax_accuracy_clean"] + 0.1
    assert after["loss_clean"] < before["loss_clean"]


def test_similarity_of_the_monitors_is_the_one_that_is_trained() -> None:
    crops, bases = torch.randn(2, 3, 4), torch.randn(2, 9, 4)
    expected = torch.nn.functional.cosine_similarity(crops[:, :, None], bases[:, None], dim=-1).clamp_min(0)
    torch.testing.assert_close(overlap_similarity(crops, bases), expected)
