"""Recomputing activations changes nothing, dropout included, and a run that does so resumes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_voco
import torch
from ignite.engine import Events
from torch import nn

from lvmmed_monai.engines import Pretrainer
from lvmmed_monai.handlers import ResumableCheckpoint


def swin_run(datalist: Path, *, recompute: bool, checkpoint: Path | None = None) -> Pretrainer:
    """A small Swin encoder with dropout in its blocks."""
    handlers = [] if checkpoint is None else [ResumableCheckpoint(checkpoint, interval_steps=2)]
    voco = {"encoder_name": "swinunetr_tiny", "encoder_options": {}, "crop_size": 10, "grid": (2, 2)}
    engine = tiny_voco.build(datalist, steps=4, batch_size=1, voco=voco, handlers=handlers)
    for module in engine.method.encoder().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
        if hasattr(module, "use_checkpoint"):
            module.use_checkpoint = recompute
    return engine


def test_same_weights_and_exact_resume(tmp_path: Path) -> None:
    datalist = tiny_voco.write_volumes(tmp_path)
    kept, recomputed = (swin_run(datalist, recompute=recompute) for recompute in (False, True))
    kept.run()
    recomputed.run()
    expected = recomputed.network.state_dict()
    for name, value in kept.network.state_dict().items():
        torch.testing.assert_close(expected[name], value, rtol=1e-3, atol=1e-5)

    cut = swin_run(datalist, recompute=True, checkpoint=tmp_path / "checkpoint.pt")

    def stop() -> None:
        raise KeyboardInterrupt

    cut.add_event_handler(Events.ITERATION_COMPLETED(once=3), stop)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    resumed = swin_run(datalist, recompute=True, checkpoint=tmp_path / "checkpoint.pt")
    resumed.run()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.network.state_dict().items())
