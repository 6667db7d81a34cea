"""What every 3D method of the registry must do; methods are found by themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from run_material import Stop, equal
from torch import nn
from volume_material import VOLUME_METHODS, collated, small_method, smooth_volume, write_pool

from lvmmed_monai.data import StepBatchSampler
from lvmmed_monai.engines import Pretrainer, warmup_cosine
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.handlers import ResumableCheckpoint
from lvmmed_monai.methods import build_method
from lvmmed_monai.networks import build_encoder, load_encoder, read_encoder_file

STEPS = 3
each_method = pytest.mark.parametrize("name", VOLUME_METHODS)


@pytest.fixture
def datalist(tmp_path: Path) -> Path:
    return write_pool(tmp_path, [smooth_volume(seed) for seed in range(4)])


def trainer(name: str, datalist: Path, tmp_path: Path, *, init_seed: int = 0, **options: Any) -> Pretrainer:
    method = small_method(name, init_seed)
    data = method.dataset([datalist], "training", tmp_path / "cache", 5)
    loader = DataLoader(data, batch_sampler=StepBatchSampler(len(data), 2, STEPS, seed=5))
    weights = [weight for weight in method.network().parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1)
    schedule = warmup_cosine(optimizer, 1, STEPS)
    options = {"seed": 5, "clip_norm": 5.0, "held_out": data, **options}
    return Pretrainer(method, loader, 1, optimizer, epoch_length=STEPS, lr_scheduler=schedule, **options)


def test_there_are_a_method_and_its_baselines() -> None:
    assert {"voco", "mae3d", "simclr3d", "none"} <= set(VOLUME_METHODS)
    assert "lvm_med" not in VOLUME_METHODS


@each_method
def test_trains_monitors_and_writes_the_encoder(name: str, datalist: Path, tmp_path: Path) -> None:
    engine = trainer(name, datalist, tmp_path, encoder_path=tmp_path / "encoder.pt", datalists=[datalist])
    before = {key: value.clone() for key, value in engine.method.encoder().state_dict().items()}
    engine.run()
    assert all(np.isfinite(value) for _, value in engine.history["curves"]["loss"])
    assert [step for step, _ in engine.history["monitors"]] == [0, STEPS]
    for _, values in engine.history["monitors"]:
        assert values.keys() == set(engine.method.metric_directions)
        assert all(np.isfinite(value) for value in values.values())
    assert set(engine.method.chance) <= set(engine.method.metric_directions)
    assert engine.method.name == read_encoder_file(tmp_path / "encoder.pt")["provenance"]["method"] == name
    loaded = build_encoder("segresnet_tiny", init_filters=8)
    assert not load_encoder(tmp_path / "encoder.pt", loaded).missing
    assert equal(loaded.state_dict(), engine.method.encoder().state_dict())
    assert equal(before, loaded.state_dict()) == (name == "none")


@each_method
def test_an_interrupted_run_ends_with_the_same_weights(name: str, datalist: Path, tmp_path: Path) -> None:
    whole = trainer(name, datalist, tmp_path)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        trainer(name, datalist, tmp_path, handlers=[ResumableCheckpoint(tmp_path / "state.pt", 1), Stop()]).run()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["state"]["step"] == 2
    handlers = [ResumableCheckpoint(tmp_path / "state.pt", 1)]
    resumed = trainer(name, datalist, tmp_path, init_seed=77, handlers=handlers)
    resumed.run()
    assert equal(whole.inner_network.state_dict(), resumed.inner_network.state_dict())
    assert whole.history["curves"] == resumed.history["curves"]
    assert whole.history["monitors"] == resumed.history["monitors"]


@each_method
def test_monitoring_repeats_and_changes_nothing(name: str, datalist: Path, tmp_path: Path) -> None:
    method = small_method(name)
    network = method.network().train()
    dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    first = method.monitors(dataset)
    assert first == method.monitors(dataset)
    assert torch.equal(state, torch.get_rng_state())
    assert network.training
    assert equal(before, network.state_dict())


@each_method
def test_a_sample_depends_on_seed_and_key_only(name: str, datalist: Path, tmp_path: Path) -> None:
    method = small_method(name)
    dataset = method.dataset([datalist], "training", tmp_path / "cache", 3)
    keys = [(7, 2), (8, 2), (9, 0), (10, 3)]
    expected = [dataset[key] for key in keys]
    for workers in (0, 2):
        torch.rand(5)
        np.random.rand(5)
        again = method.dataset([datalist], "training", tmp_path / "cache", 3)
        loader = torch.utils.data.DataLoader(again, sampler=keys, batch_size=None, num_workers=workers)
        for one, two in zip(expected, loader, strict=True):
            assert equal(one, two)
    if name != "none":
        other = method.dataset([datalist], "training", tmp_path / "cache", 4)
        assert not equal(expected[0], other[keys[0]])
        assert not equal(expected[0], expected[1])


@each_method
def test_every_trained_weight_gets_a_gradient(name: str, datalist: Path, tmp_path: Path) -> None:
    """Else several processes could not train: a weight without gradient is an error there."""
    method = small_method(name)
    dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
    method.step(collated(dataset, [(0, 0), (1, 1)]), method.network().train())["loss"].backward()
    for key, weight in method.network().named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, key


@each_method
def test_methods_of_one_seed_start_from_one_encoder(name: str) -> None:
    assert equal(small_method(name, 3).encoder().state_dict(), small_method("none", 3).encoder().state_dict())
    assert small_method(name).input_spec() == small_method("none").input_spec()


@each_method
def test_volumes_that_are_not_flip_safe_are_never_mirrored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a method draws an augmentation, it says that mirroring is not allowed."""
    method = small_method(name)
    asked: list[bool] = []
    modules = [module for key, module in sys.modules.items() if key.startswith("lvmmed_monai.methods.")]
    for module in modules:
        for function in ("draw_block_augmentation", "draw_crop_augmentation"):
            original = getattr(module, function, None)
            if original is None:
                continue

            def spy(*args: Any, mirror: bool = True, original: Any = original, **options: Any) -> Any:
                asked.append(mirror)
                return original(*args, mirror=mirror, **options)

            monkeypatch.setattr(module, function, spy)
    pool = [write_pool(tmp_path, [smooth_volume(0)], name="safe")]
    pool.append(write_pool(tmp_path, [smooth_volume(1)], name="sided", flip_safe=False))
    dataset = method.dataset(pool, "training", tmp_path / "cache", 0)
    dataset[(0, 0)]
    assert all(asked)
    assert asked or name == "none"
    asked.clear()
    dataset[(0, 1)]
    assert not any(asked)
    assert asked or name == "none"


@each_method
def test_works_on_a_swin_encoder(name: str, datalist: Path, tmp_path: Path) -> None:
    method = build_method(name, encoder_name="swinunetr_tiny", crop_size=16, spacing_mm=2.0, monitor_blocks=1)
    dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
    assert torch.isfinite(method.step(collated(dataset, [(0, 0)]), method.network())["loss"])


@each_method
def test_air_and_missing_volumes(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    air = np.full((20, 20, 20), -1000.0)
    method = small_method(name)
    with caplog.at_level("WARNING"):
        pool = write_pool(tmp_path, [air, smooth_volume(0)])
        dataset = method.dataset([pool], "training", tmp_path / "cache", 0)
    assert (dataset.skipped, len(dataset)) == (1, 1)
    assert "1 of 2 volumes show only air" in caplog.text
    with pytest.raises(DataError, match="no volumes"):
        method.dataset([pool], "validation", tmp_path / "cache", 0)


@each_method
def test_a_volume_smaller_than_anything_drawn_from_it(name: str, tmp_path: Path) -> None:
    method = small_method(name)
    pool = write_pool(tmp_path, [smooth_volume(0)[:5, :4, :6], smooth_volume(1)[:5, :, :6]], modality="MR")
    dataset = method.dataset([pool], "training", tmp_path / "cache", 0)
    terms = method.step(collated(dataset, [(0, 0), (1, 1)]), method.network().train())
    assert torch.isfinite(terms["loss"])
    terms["loss"].backward()


@each_method
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 9}, "crop_size"),
        ({"monitor_blocks": 0}, "monitor_blocks"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm"),
        ({"ct_window": (400, -500)}, "ct_window"),
        ({"encoder_name": "resnet18"}, "not 3D"),
    ],
)
def test_refuses_impossible_common_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method(name, **options)


@each_method
def test_alarms_are_silent_before_there_is_anything_to_judge(name: str) -> None:
    assert small_method(name).alarms({"curves": {}, "monitors": [], "total_steps": 100}) == []


def test_networks_are_modules_with_an_encoder() -> None:
    for name in VOLUME_METHODS:
        method = small_method(name)
        assert isinstance(method.network(), nn.Module)
        assert method.network().encoder is method.encoder()
