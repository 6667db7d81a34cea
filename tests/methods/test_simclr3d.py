"""SimCLR of places: views, NT-Xent, monitors, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import ContrastiveLoss
from volume_material import collated, small_method, smooth_volume, write_pool

from lvmmed_monai.errors import UserError
from lvmmed_monai.methods import _volume_features, build_method
from lvmmed_monai.methods._volume_features import effective_rank, grey_histograms
from lvmmed_monai.methods.simclr3d import retrieval
from lvmmed_monai.transforms.crops_3d import BlockAugmentation, CropAugmentation


class TestViews:
    def test_shapes(self, tmp_path: Path) -> None:
        method = small_method("simclr3d")
        dataset = method.dataset([write_pool(tmp_path, [smooth_volume(0)])], "training", tmp_path / "cache", 0)
        sample = dataset[(4, 0)]
        assert sample["views"].shape == (2, 3, 1, 8, 8, 8)
        assert sample["views"].dtype == torch.float32
        assert sample["shows_body"].tolist() == [True] * 3
        assert len({sample["views"][side, place].sum().item() for side in range(2) for place in range(3)}) == 6

    def test_the_views_of_a_place_lie_within_a_quarter_edge_of_each_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without augmentation a view is a window of the volume: where each lies can be found in it."""
        from lvmmed_monai.methods import _volumes, simclr3d

        monkeypatch.setattr(_volumes, "draw_block_augmentation", lambda *_, **__: BlockAugmentation())
        monkeypatch.setattr(simclr3d, "draw_block_augmentation", lambda *_, **__: BlockAugmentation())
        monkeypatch.setattr(simclr3d, "draw_crop_augmentation", lambda *_, **__: CropAugmentation())
        pool = write_pool(tmp_path, [np.random.default_rng(0).integers(-400, 390, (24, 24, 24))])
        dataset = small_method("simclr3d").dataset([pool], "training", tmp_path / "cache", 0)
        volume = torch.from_numpy(dataset.cache.read_window(0, (0, 0, 0), (24, 24, 24)))[0]
        distances = []
        for draw in range(12):
            for place in dataset[(draw, 0)]["views"].transpose(0, 1):
                starts = [self._find(volume, view[0]) for view in place]
                distances.append((starts[0] - starts[1]).abs().max())
        assert max(distances) == 2
        assert min(distances) < 2

    @staticmethod
    def _find(volume: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        windows = volume.unfold(0, 8, 1).unfold(1, 8, 1).unfold(2, 8, 1)
        [place] = (windows == view).all(-1).all(-1).all(-1).nonzero()
        return place

    def test_grey_values_of_the_two_views_differ(self, tmp_path: Path) -> None:
        values = np.full((24, 24, 24), -50.0)
        values[0, 0] = -400.0
        pool = write_pool(tmp_path, [values])
        dataset = small_method("simclr3d").dataset([pool], "training", tmp_path / "cache", 0)
        levels = torch.stack([dataset[(draw, 0)]["views"].flatten(2).median(-1).values for draw in range(5)])
        assert ((levels[:, 0] - levels[:, 1]).abs() > 1e-3).float().mean() > 0.9


class TestLoss:
    def test_monai_s_loss_is_the_published_one(self) -> None:
        """Equation 1 of the paper, in loops, with its gradient."""
        torch.manual_seed(0)
        first, second = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
        views = torch.cat((first, second)).requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for i in range(10):
            partner = (i + 5) % 10
            cosine = [views[i] @ views[k] / views[i].norm() / views[k].norm() for k in range(10)]
            others = sum(math.e ** (cosine[k] / 0.2) for k in range(10) if k != i)
            total = total - torch.log(math.e ** (cosine[partner] / 0.2) / others) / 10
        total.backward()
        again = views.detach().clone().requires_grad_()
        found = ContrastiveLoss(0.2)(*again.chunk(2))
        found.backward()
        assert float(found.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
        torch.testing.assert_close(again.grad, views.grad, rtol=1e-6, atol=1e-8)

    def test_step_leaves_out_places_in_air(self, tmp_path: Path) -> None:
        method = small_method("simclr3d")
        dataset = method.dataset([write_pool(tmp_path, [smooth_volume(0)])], "training", tmp_path / "cache", 0)
        batch = collated(dataset, [(0, 0), (1, 0)])
        batch["shows_body"][0, 1] = False
        network = method.network().eval()
        kept = [place for place in range(6) if place != 1]
        views = batch["views"].transpose(0, 1).flatten(1, 2)[:, kept].flatten(0, 1)
        expected = ContrastiveLoss(0.2)(*network(views, torch.ones(10, dtype=torch.bool)).chunk(2))
        changed = {**batch, "views": batch["views"].clone()}
        changed["views"][0, :, 1] = torch.rand(2, 1, 8, 8, 8)
        for one in (batch, changed):
            found = method.step(one, network)
            torch.testing.assert_close(found["loss"], expected)
            assert 0 <= found["retrieval_at_1"] <= 1

    @pytest.mark.parametrize("left", [0, 1])
    def test_less_than_two_places_give_nothing_to_learn(self, tmp_path: Path, left: int) -> None:
        method = small_method("simclr3d")
        dataset = method.dataset([write_pool(tmp_path, [smooth_volume(0)])], "training", tmp_path / "cache", 0)
        batch = collated(dataset, [(0, 0)])
        batch["shows_body"][:] = False
        batch["shows_body"][0, :left] = True
        loss = method.step(batch, method.network())["loss"]
        loss.backward()
        assert float(loss.detach()) == 0
        gradients = [weight.grad for weight in method.network().parameters() if weight.grad is not None]
        assert all(torch.equal(one, torch.zeros_like(one)) for one in gradients)


class TestMonitors:
    def test_retrieval(self) -> None:
        first = torch.eye(4)
        assert retrieval(first, 3 * first) == 1.0
        assert retrieval(first, first[[1, 0, 2, 3]]) == 0.5
        assert math.isnan(retrieval(first[:0], first[:0]))

    def test_histograms(self) -> None:
        crops = torch.rand(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        found = grey_histograms(crops)
        for number, crop in enumerate(crops):
            counts = [np.histogram(channel, bins=32, range=(0, 1))[0] / 64 / 2 for channel in crop.numpy()]
            np.testing.assert_allclose(found[number], np.sqrt(np.concatenate(counts)), rtol=1e-6)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))

    def test_effective_rank(self) -> None:
        random = torch.Generator().manual_seed(0)
        directions = torch.randn(200, 5, generator=random)
        directions = torch.linalg.qr(directions - directions.mean(0)).Q * 200**0.5
        # Neither the scale nor the mean of a feature matters, and features that say the same count once.
        assert effective_rank(directions * torch.tensor([1.0, 2, 30, 4, 5]) + 7) == pytest.approx(5.0, rel=1e-3)
        assert effective_rank(directions[:, :1] * torch.tensor([1.0, -2, 3])) == pytest.approx(1.0, rel=1e-3)
        # Four features along one direction and one along another: shares .8 and .2 of the variance.
        two = torch.cat((directions[:, :1].repeat(1, 4), directions[:, 1:2]), 1)
        assert effective_rank(two) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)), rel=1e-3)
        assert effective_rank(torch.full((200, 5), 3.0)) == 1.0

    def test_of_a_collapsed_network(self, tmp_path: Path) -> None:
        method = small_method("simclr3d")
        dataset = method.dataset([write_pool(tmp_path, [smooth_volume(0)])], "training", tmp_path / "cache", 0)
        before = method.monitors(dataset)
        for weight in method.encoder().parameters():
            torch.nn.init.zeros_(weight)
        after = method.monitors(dataset)
        assert after["effective_rank"] <= 1 < before["effective_rank"]
        assert after["retrieval_at_1"] == pytest.approx(method.chance["retrieval_at_1"])
        assert after["histogram_retrieval_at_1"] == before["histogram_retrieval_at_1"]


def history(step: int, **values: float) -> dict[str, Any]:
    return {"curves": {}, "monitors": [[0, {}], [step, values]]}


def test_alarms() -> None:
    method = small_method("simclr3d")
    good = {"retrieval_at_1": 0.6, "histogram_retrieval_at_1": 0.3, "effective_rank": 5.0}
    assert method.alarms(history(1000, **good)) == []
    [blind] = method.alarms(history(1000, **{**good, "retrieval_at_1": 0.25}))
    assert "0.25" in blind
    assert "histogram" in blind
    [collapsed] = method.alarms(history(1000, **{**good, "effective_rank": 1.0}))
    assert "same answer" in collapsed
    assert method.alarms(history(10, **{**good, "retrieval_at_1": 0.0})) == []
    assert _volume_features.collapse_alarm(float("inf")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"places_per_volume": 0}, "places_per_volume"),
        ({"temperature": 0}, "temperature"),
        ({"projector": (8,)}, "projector"),
        ({"views": 2}, "does not take"),
    ],
)
def test_refuses_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method("simclr3d", {"simclr3d": options})


@pytest.mark.slow
def test_learns_places(tmp_path: Path) -> None:
    """Places of smooth noise are found again far more often than by grey values."""
    method = small_method("simclr3d", places_per_volume=2, projector=(64, 32))
    network = method.network().train()
    volumes = [smooth_volume(seed, (40, 40, 40), sigma=2.0) for seed in range(8)]
    dataset = method.dataset([write_pool(tmp_path, volumes)], "training", tmp_path / "cache", 0)
    # One turn for each volume: places of one volume that overlap could not be told apart.
    method.monitor_blocks = 8
    before = method.monitors(dataset)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(90):
        loss = method.step(collated(dataset, [(8 * step + k, k) for k in range(8)]), network)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = method.monitors(dataset)
    assert after["retrieval_at_1"] > max(before["retrieval_at_1"], after["histogram_retrieval_at_1"]) + 0.1
