"""Runs in a local MLflow database."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events, State

from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers import ExperimentTracker

SETTINGS = {"method": "lvm_med", "method options": {"labelled": "/data/ward 3/a.json", "preset": "paper"}, "seed": 3}


def run(tracker: ExperimentTracker, *, first: int = 0, last: int = 8, total: int = 8, writer: bool = True) -> None:
    """Steps ``first`` to ``last`` of a run of ``total``; the loss of step n is n."""

    def step(engine: Any, batch: int) -> dict[str, float]:
        if engine.state.iteration == last:
            engine.terminate()
        return {"loss": float(engine.state.iteration), "gradient_norm": 0.5}

    engine: Any = Engine(step)
    engine.settings, engine.total_steps, engine.is_writer = SETTINGS, total, writer
    engine.state = State(iteration=0, epoch=0, max_epochs=total // 4, epoch_length=4, output=None, metrics={})

    def resume(engine: Any) -> None:
        engine.state.iteration, engine.state.epoch = first, first // 4

    engine.add_event_handler(Events.STARTED, resume)
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=4), lambda: engine.state.metrics.update(rank=first + 1.0))
    engine.add_event_handler(Events.COMPLETED, lambda: engine.state.metrics.update(rank=9.0))
    tracker.attach(engine)
    engine.run([0] * 4, max_epochs=total // 4)


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def runs_of(uri: str) -> list[Any]:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lvmmed_pretrain")
    found = client.search_runs(experiment.experiment_id)
    for one in found:
        names = ("loss", "gradient_norm", "rank")
        points = {name: client.get_metric_history(one.info.run_id, name) for name in names}
        one.points = {name: [(point.step, point.value) for point in points[name]] for name in names}
    return found


def test_a_continued_run_is_one_run_in_a_database_of_the_output_folder(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    run(ExperimentTracker("mlflow", tmp_path, "lvmmed_pretrain"), last=5)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (stopped,) = runs_of(uri)
    assert stopped.info.status == "RUNNING"
    run(ExperimentTracker("mlflow", tmp_path, "lvmmed_pretrain"), first=4)
    (one,) = runs_of(uri)
    assert one.info.status == "FINISHED"
    assert set(one.points["loss"]) == {(step, float(step)) for step in range(1, 9)}
    # Monitors at the ends of epochs, and after the last step.
    assert (4, 1.0) in one.points["rank"]
    assert one.points["rank"][-1] == (8, 9.0)
    assert one.data.params["seed"] == "3"
    assert "ward" not in str(one.data.params)
    assert "preset" in one.data.params["method options"]


def test_nothing_is_tracked_unless_asked_for(tmp_path: Path) -> None:
    run(ExperimentTracker("none", tmp_path, "lvmmed_pretrain"))
    run(ExperimentTracker("mlflow", tmp_path, "lvmmed_pretrain"), writer=False)
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_sends_at_most_500_points(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    run(ExperimentTracker("mlflow", tmp_path, "lvmmed_pretrain"), last=8, total=1000)
    (one,) = runs_of(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [step for step, _ in one.points["loss"]] == [2, 4, 6, 8]


def test_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"unknown tracking 'wandb'.*none, mlflow"):
        ExperimentTracker("wandb", tmp_path, "lvmmed_pretrain")
    with pytest.raises(UserError, match="does not take this tracking_uri"):
        run(ExperimentTracker("mlflow", tmp_path, "lvmmed_pretrain", uri=str(tmp_path)))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="mlflow is not installed"):
        run(ExperimentTracker("mlflow", tmp_path, "lvmmed_pretrain"))
