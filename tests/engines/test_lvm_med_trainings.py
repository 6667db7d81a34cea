"""Real short trainings of LVM-Med: a healthy one raises no alarm, one with a fault raises the fault's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_lvm_med
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lvmmed_monai.engines import Pretrainer

IMAGES_ONLY = {"loss_options": {"patch_graphs": 0}}
LINEAR = {"projector": "linear", **IMAGES_ONLY}


class FewDraws(Dataset):
    """Four draws of each picture, made once."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.made: dict[tuple[int, int], dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        key = (key[0] // len(self) % 4, key[1])
        if key not in self.made:
            self.made[key] = self.dataset[key]
        return self.made[key]


class OtherPictures(Dataset):
    """The second view is one of another picture."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        other = self.dataset[(key[0], (key[1] + 1 + key[0] % 31) % len(self))]
        return {**self.dataset[key], "view2": other["view2"], "location2": other["location2"]}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lvm_med.write_pictures(tmp_path_factory.mktemp("pictures"), training=64)


@pytest.fixture(scope="module")
def draws(datalist: Path) -> FewDraws:
    return FewDraws(tiny_lvm_med.build(datalist).data_loader.dataset)


@pytest.fixture(scope="module")
def healthy(datalist: Path, draws: FewDraws) -> Pretrainer:
    return train(datalist, draws, lambda weights: torch.optim.AdamW(weights, lr=3e-3))


def train(
    datalist: Path,
    data: Dataset,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    lvm_med: dict[str, Any] | None = None,
    start: dict[str, Tensor] | None = None,
    **options: Any,
) -> Pretrainer:
    engine = tiny_lvm_med.build(
        datalist,
        steps=60,
        batch_size=16,
        optimizer=optimizer,
        lvm_med=lvm_med or IMAGES_ONLY,
        wrap=lambda dataset: data,
        **options,
    )
    if start is not None:
        engine.inner_network.load_state_dict(start)
    engine.run()
    return engine


def sgd(rate: float, decay: float = 0.0) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda weights: torch.optim.SGD(weights, lr=rate, weight_decay=decay)


def alarms(engine: Pretrainer) -> str:
    return "\n".join(sentence for _, _, sentence in engine.history["alarms"])


def test_a_healthy_run_raises_none_and_logs_its_numbers(healthy: Pretrainer) -> None:
    assert healthy.history["alarms"] == []
    curves = {name: [value for _, value in points] for name, points in healthy.history["curves"].items()}
    assert sum(curves["loss"][-10:]) < 0.9 * sum(curves["loss"][:10])
    assert all(value > 0 for value in curves["gradient_norm"])
    assert all(0 < value < 1 for value in curves["matching_share"] + curves["embedding_spread"])
    assert curves["objective_ratio"][-1] < curves["objective_ratio"][0]
    # 32 views of 16 pictures, each of which can meet 31 others.
    assert healthy.method.chance["matching_accuracy_in_training"] == pytest.approx(1 / 31)


def test_a_rate_far_too_low(datalist: Path, draws: FewDraws) -> None:
    assert "the loss is flat" in alarms(train(datalist, draws, sgd(1e-9)))


def test_views_of_different_pictures(datalist: Path, draws: FewDraws) -> None:
    found = alarms(train(datalist, OtherPictures(draws), torch.optim.AdamW))
    assert "matching is at chance" in found
    assert "flat" not in found


def test_a_step_of_the_matching_layer_that_changes_nothing(datalist: Path, draws: FewDraws) -> None:
    options = {"loss_options": {"patch_graphs": 0, "lam": 1e-6}}
    assert "the gradient is zero" in alarms(train(datalist, draws, torch.optim.AdamW, options))


def test_features_that_collapse(datalist: Path, draws: FewDraws) -> None:
    assert "the features collapse: pictures of a batch" in alarms(train(datalist, draws, sgd(0.5, 1.0), LINEAR))


def test_weights_that_shrink_make_the_gradient_explode(datalist: Path, draws: FewDraws) -> None:
    engine = train(datalist, draws, sgd(0.2, 1.0), clip_norm=1e-3)
    assert "the gradient explodes" in alarms(engine)
    # What is logged is the norm before clipping.
    assert engine.history["curves"]["gradient_norm"][-1][1] > 1e-2


def test_a_good_encoder_that_unlearns(datalist: Path, draws: FewDraws, healthy: Pretrainer) -> None:
    start = {name: value.clone() for name, value in healthy.inner_network.state_dict().items()}
    assert "the solver's matching beats the true one" in alarms(train(datalist, draws, sgd(0.1, 0.5), start=start))


def test_few_pictures(tmp_path: Path) -> None:
    engine = tiny_lvm_med.build(tiny_lvm_med.write_pictures(tmp_path, training=24), steps=2)
    engine.run()
    assert engine.history["alarms"][0][:2] == [1, 2]
    assert alarms(engine).startswith("few pictures: 24 for batches of 8")
