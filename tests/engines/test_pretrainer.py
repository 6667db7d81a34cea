"""The training loop: outputs, determinism, errors, resume in one process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader
from monai.engines import Trainer
from monai.handlers import TensorBoardStatsHandler
from tiny_method import TinyData, TinyMethod, build, weights

from lvmmed_monai.data import write_datalist
from lvmmed_monai.engines import Pretrainer, warmup_halving
from lvmmed_monai.engines.steps import autocast_dtype, split_batch, step_errors_as_user_errors, step_seed, to_device
from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers import ResumableCheckpoint
from lvmmed_monai.networks import FeatureExtractor, build_encoder, read_encoder_file
from lvmmed_monai.results import read_results


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def trained(**options: Any) -> dict[str, torch.Tensor]:
    method = TinyMethod()
    build(method, **options).run()
    return method.network().state_dict()


class TestRun:
    def test_it_is_a_monai_trainer_and_learns(self) -> None:
        method = TinyMethod()
        engine = build(method, epochs=5)
        assert isinstance(engine, Trainer)
        engine.run()
        (first, untrained), (last, final) = engine.history["monitors"]
        assert (first, last) == (0, 50)
        assert final["error"] < 0.8 * untrained["error"]
        assert engine.state.metrics["error"] == final["error"]

    def test_monitor_interval(self) -> None:
        engine = build(TinyMethod(), monitor_interval=8)
        engine.run()
        assert [step for step, _ in engine.history["monitors"]] == [0, 8, 16, 20]

    def test_curves_and_seconds(self) -> None:
        engine = build(TinyMethod())
        engine.run()
        assert [step for step, _ in engine.history["curves"]["loss"]] == list(range(1, 21))
        assert engine.history["curves"].keys() == {"loss", "level", "learning_rate", "gradient_norm"}
        rates = [rate for _, rate in engine.history["curves"]["learning_rate"]]
        assert rates[:3] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
        assert rates[-1] < 1e-3
        assert all(seconds > 0 for seconds in engine.history["seconds"].values())

    def test_an_alarm_is_logged_once_and_kept_with_its_steps(self, caplog: pytest.LogCaptureFixture) -> None:
        method = TinyMethod()
        method.flat_from = 8
        with caplog.at_level(logging.WARNING):
            engine = build(method)
            engine.run()
        assert engine.history["alarms"] == [[8, 12, "the level is flat at step 12"]]
        assert [record.message for record in caplog.records if "flat" in record.message] == [
            "alarm at step 8: the level is flat at step 8"
        ]

    def test_outputs(self, tmp_path: Path) -> None:
        method = TinyMethod()
        item = {"image": "a.nii.gz", "subject": "s1"}
        (tmp_path / "a.nii.gz").touch()
        datalist = {"format": "lvmmed-datalist/1", "name": "set", "task": "unlabelled", "modality": "CT"}
        write_datalist(tmp_path / "datalist.json", {**datalist, "training": [item], "validation": [], "test": []})
        paths = {"encoder_path": tmp_path / "models" / "encoder.pt", "model_path": tmp_path / "models" / "model.pt"}
        build(method, datalists=[tmp_path / "datalist.json"], **paths).run()
        content = read_encoder_file(tmp_path / "models" / "encoder.pt")
        assert equal(content["state_dict"], method.encoder().state_dict())
        about = content["provenance"]
        assert (about["method"], about["steps"], about["seed"]) == ("tiny", 20, 3)
        assert about["datalists"][0]["name"] == "set"
        assert len(about["subjects"][0]) == 16
        assert "s1" not in about["subjects"]
        state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
        assert state.keys() == {f"encoder.{key}" for key in method.encoder().state_dict()}

    def test_model_file_loads_strictly_into_the_feature_extractor(self, tmp_path: Path) -> None:
        class ResNetMethod(TinyMethod):
            def encoder(self):
                return build_encoder("resnet18", width=4)

        build(ResNetMethod(), model_path=tmp_path / "model.pt", epochs=1, epoch_length=1).run()
        network = FeatureExtractor("resnet18", 1, {"width": 4})
        network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)

    def test_tensorboard_of_monai(self, tmp_path: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        handler = TensorBoardStatsHandler(log_dir=str(tmp_path), output_transform=lambda output: output)
        build(TinyMethod(), handlers=[handler], epochs=1).run()
        handler.close()
        events = EventAccumulator(str(tmp_path)).Reload()
        assert {"loss", "level", "learning_rate", "error"} <= set(events.Tags()["scalars"])
        assert len(events.Scalars("loss")) == 10


class TestDeterminism:
    def test_same_seed_same_weights_whatever_happens_to_the_generators(self) -> None:
        first = trained()
        torch.manual_seed(99)
        torch.rand(3)
        assert equal(first, trained())

    def test_workers_make_no_difference(self) -> None:
        assert equal(trained(epochs=1), trained(epochs=1, workers=2))

    def test_another_seed_other_weights(self) -> None:
        assert not equal(trained(epochs=1), trained(epochs=1, seed=4))

    def test_monitoring_makes_no_difference(self) -> None:
        assert equal(trained(epochs=1, monitor_interval=2), trained(epochs=1, held_out=None))

    def test_step_seeds_differ_between_steps_and_ranks(self) -> None:
        seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
        assert len(seeds) == 600
        assert all(0 <= seed < 2**63 for seed in seeds)


class TestAccumulation:
    def run(self, accumulate: int, **options: Any) -> Pretrainer:
        engine = build(TinyMethod(noise=0.0, batch_norm=False), accumulate=accumulate, **options)
        engine.run()
        return engine

    @pytest.mark.parametrize("parts", [2, 4])
    def test_point_21_parts_of_a_batch_are_one_step(self, parts: int) -> None:
        whole, cut = self.run(1), self.run(parts)
        assert cut.method._steps == parts * whole.method._steps == parts * 20
        # The moving average of after_step is a buffer among these.
        for name, value in whole.network.state_dict().items():
            torch.testing.assert_close(cut.network.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
        for name in ("loss", "level", "learning_rate"):
            pairs = zip(cut.history["curves"][name], whole.history["curves"][name], strict=True)
            assert all(one == pytest.approx(two, rel=1e-3) for one, two in pairs)

    def test_resumes_exactly(self, tmp_path: Path) -> None:
        whole = self.run(2)
        path = tmp_path / "checkpoint.pt"
        cut = build(
            TinyMethod(noise=0.0, batch_norm=False), accumulate=2, handlers=[ResumableCheckpoint(path, 3), Stop(8)]
        )
        with pytest.raises(KeyboardInterrupt):
            cut.run()
        resumed = self.run(2, handlers=[ResumableCheckpoint(path, 3)])
        assert equal(whole.network.state_dict(), resumed.network.state_dict())

    def test_a_batch_that_does_not_divide(self) -> None:
        with pytest.raises(UserError, match="a batch of 4 cannot be cut into 3 equal parts"):
            self.run(3)

    def test_split_batch(self) -> None:
        batch = {"a": torch.arange(4), "b": [torch.arange(8).reshape(4, 2), "name"], "c": (torch.arange(4),)}
        one, two = split_batch(batch, 2)
        assert torch.equal(two["a"], torch.tensor([2, 3]))
        assert torch.equal(one["b"][0], torch.tensor([[0, 1], [2, 3]]))
        assert (one["b"][1], type(one["c"])) == ("name", tuple)


class TestPoint23:
    def moved(self, *, clip_norm: float | None, scale: float | None = None) -> float:
        """How far one step of gradient descent with rate 1 moves the weights."""
        method = TinyMethod(noise=0.0, batch_norm=False)
        engine = build(method, epochs=1, epoch_length=1, clip_norm=clip_norm)
        engine.optimizer = torch.optim.SGD(method.network().parameters(), lr=1.0)
        engine.lr_scheduler = None
        if scale is not None:
            engine.grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        before = [one.clone() for one in method.network().parameters()]
        engine.run()
        after = method.network().parameters()
        return float(sum((a - b).square().sum() for a, b in zip(after, before, strict=True)).sqrt())

    def test_point_23_gradients_are_clipped_after_unscaling(self) -> None:
        free = self.moved(clip_norm=None)
        assert free > 0.02
        assert self.moved(clip_norm=0.01) == pytest.approx(0.01, rel=1e-3)
        assert self.moved(clip_norm=0.01, scale=1024.0) == pytest.approx(0.01, rel=1e-3)
        assert self.moved(clip_norm=10 * free, scale=1024.0) == pytest.approx(free, rel=1e-4)


class TestTimeLimit:
    def test_stops_cleanly_and_continues_to_the_same_end(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path, encoder = tmp_path / "checkpoint.pt", tmp_path / "encoder.pt"
        expected = trained()
        with caplog.at_level(logging.WARNING):
            slow = TinyMethod(step_seconds=0.05)
            build(slow, max_hours=0.3 / 3600, handlers=[ResumableCheckpoint(path)], encoder_path=encoder).run()
        step = torch.load(path, weights_only=True)["state"]["step"]
        assert 0 < step < 20
        assert f"stopped after 0.0 hours at step {step} of 20; run the same command again to continue" in caplog.text
        assert read_encoder_file(encoder)["provenance"]["steps"] == step
        method = TinyMethod()
        build(method, max_hours=1, handlers=[ResumableCheckpoint(path)], encoder_path=encoder).run()
        assert method._steps == 20 - step
        assert equal(method.network().state_dict(), expected)
        assert read_encoder_file(encoder)["provenance"]["steps"] == 20

    def test_hours_out_of_range(self) -> None:
        with pytest.raises(UserError, match="max_hours must be above 0, got 0"):
            build(TinyMethod(), max_hours=0)


class Stop:
    """Ends a run like a power cut at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def attach(self, engine: Pretrainer) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.step), self._stop)

    def _stop(self) -> None:
        raise KeyboardInterrupt


class TestResume:
    def run(self, folder: Path, stop: int | None = None, **options: Any) -> Pretrainer:
        handlers: list[Any] = [ResumableCheckpoint(folder / "checkpoint.pt", interval_steps=4)]
        engine = build(TinyMethod(), handlers=handlers + ([Stop(stop)] if stop else []), **options)
        if stop is None:
            engine.run()
        else:
            with pytest.raises(KeyboardInterrupt):
                engine.run()
        return engine

    @pytest.mark.parametrize("stop", [5, 8, 10, 13])
    def test_point_24_interrupted_run_ends_with_the_same_weights(self, tmp_path: Path, stop: int) -> None:
        whole = self.run(tmp_path / "whole")
        self.run(tmp_path / "cut", stop)
        assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["state"]["step"] == stop // 4 * 4
        resumed = self.run(tmp_path / "cut")
        assert equal(weights(tmp_path / "whole" / "checkpoint.pt"), weights(tmp_path / "cut" / "checkpoint.pt"))
        assert resumed.history["curves"] == whole.history["curves"]
        assert resumed.history["monitors"] == whole.history["monitors"]

    def test_interrupted_before_the_first_save_starts_again(self, tmp_path: Path) -> None:
        self.run(tmp_path, 3)
        assert not (tmp_path / "checkpoint.pt").exists()
        assert len(self.run(tmp_path).history["curves"]["loss"]) == 20

    def test_finished_run_only_writes_its_outputs_again(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        first = self.run(tmp_path, encoder_path=tmp_path / "encoder.pt")
        (tmp_path / "encoder.pt").unlink()
        with caplog.at_level(logging.INFO):
            again = self.run(tmp_path, encoder_path=tmp_path / "encoder.pt")
        assert "already finished" in caplog.text
        assert again.method._steps == 0
        assert again.history == first.history
        stored = read_encoder_file(tmp_path / "encoder.pt")["state_dict"]
        assert equal(stored, first.method.encoder().state_dict())

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"seed": 4}, "seed"),
            ({"lr": 1e-3}, "optimizer"),
            ({"batch_size": 2}, "batch size"),
            ({"epochs": 3}, "total"),
            ({"schedule": warmup_halving}, "schedule"),
        ],
    )
    def test_other_settings_are_refused_by_name(self, tmp_path: Path, options: dict[str, Any], named: str) -> None:
        self.run(tmp_path, 5)
        with pytest.raises(
            UserError, match=rf"other settings \({named}.*checkpoint.pt; remove it or use another output"
        ):
            self.run(tmp_path, **options)

    def test_other_method_options_are_refused(self, tmp_path: Path) -> None:
        self.run(tmp_path, 5)
        engine = build(TinyMethod(noise=0.2), handlers=[ResumableCheckpoint(tmp_path / "checkpoint.pt")])
        with pytest.raises(UserError, match="method options"):
            engine.run()

    def test_damaged_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 half a file")
        with pytest.raises(UserError, match=r"cannot be read.*remove it"):
            self.run(tmp_path)

    def test_interval_must_be_positive(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="at least 1, got 0"):
            ResumableCheckpoint(tmp_path / "checkpoint.pt", interval_steps=0)


class TestErrors:
    def test_loss_that_is_not_finite(self, tmp_path: Path) -> None:
        method = TinyMethod()
        method.poison_at = 4
        engine = build(method, encoder_path=tmp_path / "encoder.pt")
        with pytest.raises(UserError, match=r"the loss is nan at step 3.*lower learning rate"):
            engine.run()
        assert not (tmp_path / "encoder.pt").exists()
        assert all(torch.isfinite(value).all() for value in method.network().state_dict().values())

    def test_out_of_memory_names_the_batch_size(self) -> None:
        for error in (
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ):
            with pytest.raises(UserError, match=r"at batch size 4;.*smaller batch size"), step_errors_as_user_errors(4):
                raise error
        with pytest.raises(RuntimeError, match="shapes"), step_errors_as_user_errors(4):
            raise RuntimeError("shapes differ")

    def test_loader_without_step_sampler(self) -> None:
        method = TinyMethod()
        optimizer = torch.optim.SGD(method.network().parameters(), lr=1)
        with pytest.raises(UserError, match="must be a StepBatchSampler"):
            Pretrainer(method, DataLoader(TinyData(4), batch_size=2), 1, optimizer, epoch_length=1)

    def test_output_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="output folder"):
            build(TinyMethod(), output_dir=tmp_path / "file" / "below")


def test_point_26_amp_may_be_a_word() -> None:
    assert build(TinyMethod(), amp="false").amp_requested is False
    assert build(TinyMethod(), amp="True").amp_requested is True


def test_no_reduced_precision_on_a_cpu() -> None:
    assert autocast_dtype(True, torch.device("cpu")) is None
    assert autocast_dtype(False, torch.device("cuda")) is None


def test_to_device_reaches_nested_tensors() -> None:
    batch = {"views": [torch.zeros(2), (torch.ones(1), "name")], "number": 3}
    moved = to_device(batch, torch.device("meta"))
    assert moved["views"][0].device.type == moved["views"][1][0].device.type == "meta"
    assert (moved["views"][1][1], moved["number"]) == ("name", 3)


def test_results_of_a_pretraining(tmp_path: Path) -> None:
    from lvmmed_monai.handlers import ResultsWriter

    writer = ResultsWriter(tmp_path / "results.json", "pretraining", "tiny_pretrain", seed=3)
    build(TinyMethod(), handlers=[writer]).run()
    record = read_results(tmp_path / "results.json")
    assert (record["kind"], record["name"], record["seed"]) == ("pretraining", "tiny_pretrain", 3)
    assert record["metrics"].keys() == {"error", "error_untrained", "error_chance"}
    assert record["metrics"]["error"] == {
        "value": pytest.approx(record["curves"]["error"][-1][1]),
        "n": 4,
        "interval": None,
        "higher_is_better": False,
    }
    assert record["metrics"]["error_untrained"]["value"] == record["curves"]["error"][0][1]
    assert record["metrics"]["error_chance"]["value"] == 1.0
    assert record["timings"].keys() == {"training", "waiting_for_data", "monitors"}
    assert record["peak_memory_mb"] > 10
