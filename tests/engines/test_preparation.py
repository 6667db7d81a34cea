"""Compiled encoders, synchronised batch normalisation, and what a run says that it writes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_lvm_med
import torch
from ignite.engine import Events
from tiny_method import TinyMethod, build
from torch import nn
from torch._dynamo.utils import counters

from lvmmed_monai.engines import disk
from lvmmed_monai.engines.preparation import compile_encoder, statistics_of_own_batch, synchronise_batch_norm
from lvmmed_monai.engines.steps import clip_gradients, step_errors_as_user_errors
from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers import ResumableCheckpoint
from lvmmed_monai.networks import read_encoder_file


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


class TestCompile:
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_same_weights_and_plain_names(self, backend: str, tmp_path: Path) -> None:
        datalist = tiny_lvm_med.write_pictures(tmp_path, training=16)
        graphs = []
        found = []
        for choice in (False, backend):
            path = tmp_path / f"{choice}.pt"
            engine = tiny_lvm_med.build(
                datalist, steps=3, monitored=True, compile=choice, handlers=[ResumableCheckpoint(path)],
                encoder_path=tmp_path / f"encoder_{choice}.pt",
            )  # fmt: skip
            engine.run()
            graphs.append(counters["stats"]["unique_graphs"])
            found.append(torch.load(path, weights_only=True)["state"]["network"])
        plain, compiled = found
        # With gradients for the steps and without for the monitors.
        assert graphs[0] == 0
        assert graphs[1] >= 2
        assert plain.keys() == compiled.keys()
        assert not any("_orig_mod" in name for name in compiled)
        for name, value in plain.items():
            torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6)
        files = [read_encoder_file(tmp_path / f"encoder_{choice}.pt")["state_dict"] for choice in (False, backend)]
        assert files[0].keys() == files[1].keys()

    def test_a_compiled_run_continues_one_that_was_not(self, tmp_path: Path) -> None:
        datalist = tiny_lvm_med.write_pictures(tmp_path, training=16)
        handlers = [ResumableCheckpoint(tmp_path / "checkpoint.pt")]
        first = tiny_lvm_med.build(datalist, steps=4, handlers=handlers)
        first.add_event_handler(Events.ITERATION_COMPLETED(once=2), first.terminate)
        first.run()
        engine = tiny_lvm_med.build(datalist, steps=4, handlers=handlers, compile="eager")
        engine.run()
        assert [step for step, _ in engine.history["curves"]["loss"]] == [1, 2, 3, 4]

    def test_wrong_use(self) -> None:
        with pytest.raises(UserError, match=r"compile = 'triton'.*aot_eager"):
            compile_encoder(nn.Linear(1, 1), "triton")

        def broken(graph: Any, inputs: Any) -> Any:
            raise RuntimeError("no compiler was found")

        network = tiny_lvm_med.PlainEncoder(3)
        network.compile(backend=broken)
        with pytest.raises(UserError, match=r"cannot be compiled.*aot_eager"), step_errors_as_user_errors(4):
            network(torch.ones(2, 3, 16, 16))


class TestBatchNorm:
    def test_names_and_weights_stay(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        before, weights = dict(network.state_dict()), list(network.parameters())
        changed = synchronise_batch_norm(network, torch.device("cuda"))
        assert isinstance(changed[1], nn.SyncBatchNorm)
        assert all(torch.equal(changed.state_dict()[name], value) for name, value in before.items())
        # The optimiser was made over these.
        assert all(new is old for new, old in zip(changed.parameters(), weights, strict=True))

    def test_needs_a_gpu(self) -> None:
        with pytest.raises(UserError, match="sync_batch_norm needs GPUs, the device is cpu"):
            synchronise_batch_norm(nn.BatchNorm2d(4), torch.device("cpu"))

    def test_one_process_alone_waits_for_nobody(self, tmp_path: Path) -> None:
        dist = torch.distributed
        dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
        try:
            layer = nn.SyncBatchNorm(4)
            with statistics_of_own_batch(nn.Sequential(layer)):
                assert layer.process_group is not dist.group.WORLD
                assert dist.get_world_size(layer.process_group) == 1
            assert layer.process_group is None
        finally:
            dist.destroy_process_group()


class TestGradientNorm:
    @pytest.mark.parametrize("largest", [None, 1.0, 100.0])
    def test_against_torch(self, largest: float | None) -> None:
        network, copy = nn.Linear(3, 2), nn.Linear(3, 2)
        for one in (network, copy):
            for number, weight in enumerate(one.parameters()):
                weight.grad = torch.full_like(weight, 2.0 + number)
        norm = clip_gradients(network, largest)
        assert float(norm) == pytest.approx((6 * 4 + 2 * 9) ** 0.5)
        if largest is not None:
            torch.nn.utils.clip_grad_norm_(copy.parameters(), largest)
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(network.parameters(), copy.parameters(), strict=True))

    def test_it_is_logged_without_clipping(self) -> None:
        engine = build(TinyMethod(), epochs=1, clip_norm=None)
        engine.run()
        assert all(value > 0 for _, value in engine.history["curves"]["gradient_norm"])


class TestDisk:
    def test_what_is_announced_is_what_is_written(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        network = nn.ModuleDict({"encoder": nn.Linear(500, 500), "head": nn.Linear(500, 500)})
        optimizer = torch.optim.AdamW(network.parameters())
        network["head"](network["encoder"](torch.ones(1, 500))).sum().backward()
        optimizer.step()
        torch.save([network.state_dict(), optimizer.state_dict()], tmp_path / "checkpoint.pt")
        torch.save(network["encoder"].state_dict(), tmp_path / "encoder.pt")
        sizes = [(tmp_path / name).stat().st_size / 1e6 for name in ("checkpoint.pt", "encoder.pt")]
        with caplog.at_level(logging.INFO):
            disk.announce_disk(network, optimizer, tmp_path, network["encoder"], [tmp_path / "a.pt", None])
        assert [round(size, 1) for size in sizes] == [6.0, 1.0]
        assert "a checkpoint of about 6.0 MB" in caplog.text
        assert "and 1 files of 1.0 MB" in caplog.text

    def test_too_little_space_is_found_before_the_first_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lvmmed_monai.files.shutil.disk_usage", lambda path: type("Disk", (), {"free": 100})())
        engine = build(TinyMethod(), output_dir=tmp_path, encoder_path=tmp_path / "encoder.pt")
        with pytest.raises(UserError, match="too little disk space"):
            engine.run()
        assert engine.state.iteration == 0
