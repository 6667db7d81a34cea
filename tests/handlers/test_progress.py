"""Progress in plain lines, on a terminal, and not at all."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine, Events, State
from rich.console import Console

from lvmmed_monai.handlers import ProgressReporter
from lvmmed_monai.handlers import progress as module


def run(reporter: ProgressReporter, *, first: int = 0, decollated: bool = False) -> None:
    def step(engine: Engine, batch: dict[str, torch.Tensor]) -> object:
        output = {"loss": torch.tensor(0.5)}
        if decollated:
            engine.state.batch = [batch] * 3
            return [output] * 3
        return output

    engine = Engine(step)
    engine.state = State(rank=0, iteration=0, epoch=0, max_epochs=2, epoch_length=4, output=None, batch=None)

    def resume(engine: Engine) -> None:
        engine.state.iteration, engine.state.epoch = first, first // 4

    engine.add_event_handler(Events.STARTED, resume)
    reporter.attach(engine)
    engine.run([{"image": torch.zeros(3, 1, 2, 2)}] * 4, max_epochs=2)


@pytest.mark.parametrize("decollated", [False, True])
def test_plain_lines(caplog: pytest.LogCaptureFixture, decollated: bool) -> None:
    with caplog.at_level(logging.INFO):
        run(ProgressReporter(every_s=0, description="pre-training"), decollated=decollated)
    lines = [record.getMessage() for record in caplog.records if "pre-training" in record.getMessage()]
    assert len(lines) == 8
    assert lines[0].startswith("pre-training: step 1/8, epoch 1/2, loss 0.5000, ")
    assert lines[0].endswith(" s left")
    assert "images/s" in lines[0]


def test_few_lines_where_nothing_waits(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(ProgressReporter(every_s=1000))
    assert [record.getMessage()[:20] for record in caplog.records if "step" in record.getMessage()] == [
        "training: step 8/8, "
    ]


def test_a_resumed_run_begins_at_its_step(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(ProgressReporter(every_s=0), first=4)
    assert "step 5/8, epoch 2/2" in next(
        record.getMessage() for record in caplog.records if "step" in record.getMessage()
    )


def test_quiet(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(ProgressReporter(every_s=0, quiet=True))
    assert not [record for record in caplog.records if "step" in record.getMessage()]


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "Console", lambda **options: Console(**options, force_terminal=True, width=140))
    run(ProgressReporter(description="pre-training"))
    shown = capsys.readouterr().err
    assert "pre-training" in shown
    assert "8/8" in shown
    assert "loss 0.5000" in shown
