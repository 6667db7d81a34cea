"""A supervised MONAI training that continues after an interruption as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanSquaredError, ValidationHandler, from_engine
from monai.transforms import Compose, EnsureTyped, RandGaussianNoised
from monai.utils import set_determinism

from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers import BestModelSaver, ResultsWriter, TrainingState
from lvmmed_monai.results import read_results

DATA = [{"image": torch.full((1, 4, 4), index / 10), "label": torch.full((1, 4, 4), index / 5)} for index in range(8)]


class Stop:
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), self._stop)

    def _stop(self) -> None:
        raise KeyboardInterrupt


def train(
    folder: Path, *, stop: int | None = None, epochs: int = 4, workers: int = 0, seen: list[torch.Tensor] | None = None
) -> Any:
    """The wiring of our segmentation bundles in small; gives the trainer, the evaluator and the network."""
    torch.manual_seed(11)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Dropout(0.3), torch.nn.Conv2d(4, 1, 1))
    transform = Compose([EnsureTyped(["image", "label"]), RandGaussianNoised("image", prob=1.0)])
    loader = DataLoader(CacheDataset(DATA, transform, progress=False), batch_size=2, shuffle=True, num_workers=workers)
    held_out = DataLoader(CacheDataset(DATA[:3], EnsureTyped(["image", "label"]), progress=False))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=held_out,
        network=network,
        key_val_metric={"error": MeanSquaredError(output_transform=from_engine(["pred", "label"]))},
        metric_cmp_fn=lambda now, best: now < best,
        val_handlers=[BestModelSaver(folder / "model.pt", network)],
    )
    objects = {"network": network, "optimizer": optimizer, "lr_scheduler": schedule}
    # First in the list, as in the bundles: what it stores must not depend on the order.
    handlers: list[Any] = [
        TrainingState(folder / "state.pt", 5, objects, evaluator),
        LrScheduleHandler(schedule, print_lr=False),
        ValidationHandler(interval=1, validator=evaluator),
        ResultsWriter(folder / "results.json", "training", "tiny", seed=5, validator=evaluator),
    ]
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        train_handlers=handlers + ([Stop(stop)] if stop else []),
    )
    if seen is not None:
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, lambda: seen.append(trainer.state.batch["image"].clone()))
    if stop is None:
        trainer.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    return trainer, evaluator, network


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize(("stop", "workers"), [(9, 0), (15, 0), (10, 2)])
def test_resumed_training_equals_the_uninterrupted_one(tmp_path: Path, stop: int, workers: int) -> None:
    """Four iterations an epoch: the cut is in epoch 3 or 4."""
    _, evaluator, whole = train(tmp_path / "whole", workers=workers)
    train(tmp_path / "cut", stop=stop, workers=workers)
    assert (tmp_path / "cut" / "state.pt").exists()
    _, resumed_evaluator, resumed = train(tmp_path / "cut", workers=workers)
    assert same(whole, resumed)
    curves = [read_results(tmp_path / run / "results.json")["curves"] for run in ("whole", "cut")]
    assert curves[0] == curves[1]
    assert [epoch for epoch, _ in curves[0]["loss"]] == [1, 2, 3, 4]
    assert len(curves[0]["validation/error"]) == 4
    assert resumed_evaluator.state.best_metric == evaluator.state.best_metric
    best = [torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("whole", "cut")]
    assert all(torch.equal(value, best[1][key]) for key, value in best[0].items())


def test_items_and_epochs_differ_in_augmentation_and_order(tmp_path: Path) -> None:
    """The traps: after set_determinism, and after a resume, draws must not repeat."""
    set_determinism(0)
    try:
        seen: list[torch.Tensor] = []
        train(tmp_path / "run", epochs=2, seen=seen)
    finally:
        set_determinism(None)
    noise = [image - image.mean() for image in torch.cat(seen)]
    assert len(noise) == 16
    assert all(not torch.allclose(a, b) for number, a in enumerate(noise) for b in noise[:number])
    levels = [round(float(image.mean()), 3) for image in torch.cat(seen)]
    assert levels[:8] != levels[8:]


def test_finished_training_trains_again(tmp_path: Path) -> None:
    _, _, first = train(tmp_path, epochs=2)
    assert not (tmp_path / "state.pt").exists()
    trainer, _, second = train(tmp_path, epochs=2)
    assert trainer.state.iteration == 8
    assert same(first, second)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    train(tmp_path, stop=6)
    with pytest.raises(UserError, match=r"other settings \(max_epochs\).*remove it or use another output_dir"):
        train(tmp_path, epochs=7)


def test_best_model_survives_a_worse_first_epoch_after_the_resume(tmp_path: Path) -> None:
    train(tmp_path, stop=9)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["state"]["best"] = [-1.0, 2]  # better than any error can be
    torch.save(state, tmp_path / "state.pt")
    before = (tmp_path / "model.pt").read_bytes()
    train(tmp_path)
    assert (tmp_path / "model.pt").read_bytes() == before


def test_results_hold_the_best_metric(tmp_path: Path) -> None:
    _, evaluator, _ = train(tmp_path)
    record = read_results(tmp_path / "results.json")
    assert record["kind"] == "training"
    metric = record["metrics"]["validation/error"]
    assert metric["value"] == pytest.approx(evaluator.state.best_metric)
    assert metric["value"] == pytest.approx(min(value for _, value in record["curves"]["validation/error"]))
    assert record["timings"]["training"] > 0
