"""Held-out measures of a pre-training, from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lvmmed_monai.engines.monitoring import MonitorEvaluator
from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers.checkpoint import write_state
from lvmmed_monai.results import read_results


class Weight:
    """A method whose measure is its only weight."""

    name = "weight"
    metric_directions = {"height": True}  # noqa: RUF012
    chance = {"height": 0.25}  # noqa: RUF012

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.module.weight, 0.5)

    def network(self) -> nn.Module:
        return self.module

    def monitors(self, dataset: Any) -> dict[str, float]:
        return {"height": float(self.module.weight), "broken": float("nan")}


def evaluator(tmp_path: Path, checkpoint: Path | None, dataset: Any = (1, 2, 3)) -> MonitorEvaluator:
    method: Any = Weight()
    return MonitorEvaluator(
        method, dataset, method.network(), checkpoint, tmp_path / "results.json", name="test", seed=4
    )


def test_trained_untrained_and_chance_stand_side_by_side(tmp_path: Path) -> None:
    trained = nn.Linear(1, 1, bias=False)
    nn.init.constant_(trained.weight, 0.875)
    write_state(tmp_path / "checkpoint.pt", {}, {"network": trained.state_dict()})
    assert evaluator(tmp_path, tmp_path / "checkpoint.pt").run()["height"] == 0.875
    record = read_results(tmp_path / "results.json")
    values = {name: metric["value"] for name, metric in record["metrics"].items()}
    assert values == {
        "height": 0.875,
        "height_untrained": 0.5,
        "height_chance": 0.25,
        "broken": None,
        "broken_untrained": None,
    }
    assert record["metrics"]["height"]["n"] == 3
    assert record["metrics"]["height"]["higher_is_better"] is True
    assert record["seed"] == 4


def test_without_checkpoint_only_the_untrained_network_is_measured(tmp_path: Path) -> None:
    assert evaluator(tmp_path, None).run()["height"] == 0.5
    assert "height" not in read_results(tmp_path / "results.json")["metrics"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out images"):
        evaluator(tmp_path, None, dataset=None)
    with pytest.raises(UserError, match="no checkpoint"):
        evaluator(tmp_path, tmp_path / "checkpoint.pt").run()
    write_state(tmp_path / "checkpoint.pt", {}, {"network": nn.Linear(2, 1).state_dict()})
    with pytest.raises(UserError, match="does not fit the network"):
        evaluator(tmp_path, tmp_path / "checkpoint.pt").run()
    torch.save([1], tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="does not fit the network"):
        evaluator(tmp_path, tmp_path / "checkpoint.pt").run()
    assert not (tmp_path / "results.json").exists()
