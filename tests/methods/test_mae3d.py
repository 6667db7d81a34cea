"""Masked autoencoding: masks, error, trivial answers, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from volume_material import SHAPE, collated, small_method, smooth_volume, write_pool

from lvmmed_monai.errors import UserError
from lvmmed_monai.methods import build_method
from lvmmed_monai.methods._mae3d_fill import fill_in, mean_of_visible
from lvmmed_monai.methods._mae3d_network import MaskedAutoencoder, to_voxels
from lvmmed_monai.methods.mae3d import MAE3D, draw_mask, patch_error, patches_with_body
from lvmmed_monai.networks import build_encoder


class TestMask:
    @pytest.mark.parametrize(("patches", "ratio", "hidden"), [(3, 0.6, 16), (4, 0.75, 48), (2, 0.01, 1), (2, 0.99, 7)])
    def test_hides_a_fixed_number_of_patches(self, patches: int, ratio: float, hidden: int) -> None:
        masks = [draw_mask(np.random.default_rng(seed), patches, ratio) for seed in range(5)]
        assert all(mask.shape == (patches,) * 3 and int(mask.sum()) == hidden for mask in masks)
        assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1

    def test_each_patch_is_hidden_equally_often(self) -> None:
        random = np.random.default_rng(0)
        often = torch.stack([draw_mask(random, 2, 0.5) for _ in range(4000)]).float().mean(0)
        torch.testing.assert_close(often, torch.full((2, 2, 2), 0.5), atol=0.04, rtol=0)

    def test_voxels_of_patches(self) -> None:
        mask = torch.rand(2, 3, 2, 4) < 0.5
        voxels = to_voxels(mask, 5)
        assert voxels.shape == (2, 1, 15, 10, 20)
        for place in [(0, 0, 0), (14, 9, 19), (7, 4, 11), (5, 5, 5)]:
            assert torch.equal(voxels[:, 0, place[0], place[1], place[2]], mask[:, *(one // 5 for one in place)])


class TestNetwork:
    @pytest.mark.parametrize(("name", "size"), [("segresnet_tiny", 16), ("segresnet_b", 16), ("swinunetr_tiny", 32)])
    def test_paints_an_image_and_never_sees_what_is_hidden(self, name: str, size: int) -> None:
        torch.manual_seed(0)
        network = MaskedAutoencoder(build_encoder(name, 2), patch=8, width=8).eval()
        image, masked = torch.rand(1, 2, size, size, size), torch.zeros((1,) + (size // 8,) * 3, dtype=torch.bool)
        masked[0, 0, 0, 0] = True
        hidden, shown = image.clone(), image.clone()
        hidden[:, :, :8, :8, :8] = torch.rand(1, 2, 8, 8, 8)
        shown[:, :, 8:, 8:, 8:] = torch.rand(1, 2, size - 8, size - 8, size - 8)
        with torch.no_grad():
            painted = network(image, masked)
            assert painted.shape == image.shape
            assert torch.equal(painted, network(hidden, masked))
            assert not torch.allclose(painted, network(shown, masked))


class TestError:
    def test_equals_a_loop_over_hidden_patches_with_body(self) -> None:
        random = torch.Generator().manual_seed(0)
        image = torch.rand(2, 2, 8, 8, 12, generator=random)
        image[:, :, :4, :4] = 0.0
        image[1, 1, 0, 0, :4] = 1.0
        painted = torch.rand(image.shape, generator=random)
        masked = torch.rand(2, 2, 2, 3, generator=random) < 0.7
        total, count = 0.0, 0
        for n, x, y, z in np.ndindex(2, 2, 2, 3):
            place = (n, slice(None), *(slice(4 * one, 4 * one + 4) for one in (x, y, z)))
            body = float((image[place].amax(0) > 0.02).float().mean()) >= 0.25
            if body and masked[n, x, y, z]:
                total += float((painted[place] - image[place]).square().mean())
                count += 1
        counted = masked & patches_with_body(image, 4)
        assert 0 < count == int(counted.sum()) < int(masked.sum())
        assert float(patch_error(painted, image, counted, 4)) == pytest.approx(total / count, rel=1e-5)

    def test_is_zero_with_a_gradient_where_nothing_counts(self) -> None:
        painted = torch.rand(1, 1, 8, 8, 8, requires_grad=True)
        error = patch_error(painted, torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 2, 2, 2, dtype=torch.bool), 4)
        error.backward()
        assert float(error.detach()) == 0
        assert torch.equal(painted.grad, torch.zeros_like(painted))

    def test_step_takes_it_of_the_network(self, tmp_path: Path) -> None:
        method = small_method("mae3d", windows_per_volume=2)
        dataset = method.dataset([write_pool(tmp_path, [smooth_volume(0)])], "training", tmp_path / "cache", 0)
        batch = collated(dataset, [(0, 0), (1, 0)])
        assert batch["image"].shape == (2, 2, 1, 16, 16, 16)
        assert batch["masked"].shape == (2, 2, 4, 4, 4)
        image, masked = batch["image"].flatten(0, 1), batch["masked"].flatten(0, 1)
        found = method.step(batch, lambda image, masked: torch.zeros_like(image))["loss"]
        counted = to_voxels(masked & patches_with_body(image, 4), 4)
        assert float(found) == pytest.approx(float(image[counted].square().mean()), rel=1e-5)


class TestTrivialAnswers:
    def test_fill_in_equals_a_weighted_mean_over_visible_voxels(self) -> None:
        random = np.random.default_rng(0)
        image = random.random((1, 1, 6, 5, 4))
        visible = random.random((1, 1, 6, 5, 4)) < 0.4
        found = fill_in(torch.from_numpy(image), torch.from_numpy(visible), 1.5).numpy()
        places = np.argwhere(visible[0, 0])
        for voxel in np.ndindex(6, 5, 4):
            weights = np.exp(-((places - voxel) ** 2).sum(1) / (2 * 1.5**2))
            expected = (weights * image[0, 0][visible[0, 0]]).sum() / weights.sum()
            assert found[0, 0][voxel] == pytest.approx(expected, abs=1e-6)

    def test_fill_in_far_from_everything_is_the_mean(self) -> None:
        image = torch.rand(1, 1, 64, 1, 1, dtype=torch.float64)
        visible = torch.zeros(1, 1, 64, 1, 1, dtype=torch.bool)
        visible[0, 0, :3] = True
        found = fill_in(image, visible, 2.0)[0, 0, :, 0, 0]
        assert float(found[63]) == pytest.approx(float(image[0, 0, :3].mean()))
        assert float(found[0]) != pytest.approx(float(image[0, 0, :3].mean()), abs=1e-6)

    def test_mean_of_visible(self) -> None:
        image = torch.rand(2, 2, 3, 3, 3)
        visible = torch.rand(2, 1, 3, 3, 3) < 0.5
        found = mean_of_visible(image, visible)
        assert found.shape == image.shape
        torch.testing.assert_close(found[1, 1, 2, 0, 1], image[1, 1][visible[1, 0]].mean())
        assert torch.equal(mean_of_visible(image, torch.zeros_like(visible)), torch.zeros_like(image))


class TestMonitors:
    def test_errors_are_means_over_the_same_hidden_patches(self, tmp_path: Path) -> None:
        """An untrained network that answers 0.5 everywhere, against the definition, voxel by voxel."""
        method = small_method("mae3d", windows_per_volume=3)
        dataset = method.dataset([write_pool(tmp_path, [smooth_volume(0)])], "training", tmp_path / "cache", 0)
        samples: list[dict[str, torch.Tensor]] = []
        original = dataset.sample

        def remember(*args: Any, **options: Any) -> dict[str, torch.Tensor]:
            samples.append(original(*args, **options))
            return samples[-1]

        dataset.sample = remember
        head = method.network().decoder.image
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, 0.5)
        found = method.monitors(dataset)
        voxels = []
        for sample in samples:
            counted = to_voxels(sample["masked"] & patches_with_body(sample["image"], 4), 4)
            voxels.append(sample["image"][counted])
        assert len(samples) == 4
        assert found["masked_error"] == pytest.approx(float((torch.cat(voxels) - 0.5).square().mean()), rel=1e-5)
        assert found["fill_in_error"] < found["mean_error"]

    def test_trivial_answers_do_not_depend_on_the_network(self, tmp_path: Path) -> None:
        pool = write_pool(tmp_path, [smooth_volume(0)])
        found = []
        for seed in (0, 1):
            method = small_method("mae3d", seed)
            dataset = method.dataset([pool], "training", tmp_path / "cache", 0)
            found.append([method.monitors(dataset), method.monitors(dataset)])
        assert found[0][0] == found[0][1]
        for name in ("fill_in_error", "mean_error"):
            assert found[0][0][name] == found[1][0][name]
        assert found[0][0]["masked_error"] != found[1][0]["masked_error"]


def history(step: int, **values: float) -> dict[str, Any]:
    return {"curves": {}, "monitors": [[0, {}], [step, values]]}


def test_alarms() -> None:
    method = small_method("mae3d")
    good = {"masked_error": 0.01, "fill_in_error": 0.02, "mean_error": 0.03, "effective_rank": 5.0}
    assert method.alarms(history(1000, **good)) == []
    [blind] = method.alarms(history(1000, **{**good, "masked_error": 0.025}))
    assert "0.0250" in blind
    assert "fill-in" in blind
    [collapsed] = method.alarms(history(1000, **{**good, "effective_rank": 1.0}))
    assert "1.00 directions" in collapsed
    assert method.alarms(history(10, **{**good, "masked_error": 1.0})) == []


def test_window_is_twice_the_crop_rounded_up() -> None:
    assert MAE3D(crop_size=24).window_size == 48
    assert MAE3D(crop_size=12).window_size == 24
    assert MAE3D(crop_size=10, patch_size=6).window_size == 24
    assert MAE3D(encoder_name="swinunetr_tiny", crop_size=12).window_size == 32
    assert MAE3D(window_size=32, patch_size=16).window_size == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"patch_size": 0}, "patch_size"),
        ({"windows_per_volume": 0}, "windows_per_volume"),
        ({"window_size": 20}, "multiple of 8"),
        ({"window_size": 8}, "single patch"),
        ({"mask_share": 0.5}, "does not take"),
    ],
)
def test_refuses_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method("mae3d", {"mae3d": options})


@pytest.mark.slow
def test_learns_what_is_hidden(tmp_path: Path) -> None:
    """Planes of two brightnesses, a fixed distance apart: what is hidden follows from what is seen, not smoothly."""
    volumes = []
    for seed in range(4):
        x = np.arange(SHAPE[0])[:, None, None] + np.random.default_rng(seed).integers(8)
        volumes.append(np.where(x // 4 % 2, 250.0, -150.0) + 0.2 * smooth_volume(seed))
    method = small_method("mae3d")
    network = method.network().train()
    dataset = method.dataset([write_pool(tmp_path, volumes)], "training", tmp_path / "cache", 0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(70):
        samples = [dataset.sample(np.random.default_rng([step, k]), k, augment=False) for k in range(4)]
        loss = method.step(torch.utils.data.default_collate(samples), network)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = method.monitors(dataset)
    assert found["masked_error"] < 0.5 * min(found["fill_in_error"], found["mean_error"])
