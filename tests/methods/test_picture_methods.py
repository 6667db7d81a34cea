"""What every 2D method of the registry must do; methods are found by themselves."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from picture_material import COMMON, PICTURE_METHODS, random_batch, small_picture_method, write_pictures
from run_material import Stop, equal
from torch import distributed as dist
from torch import nn

from lvmmed_monai.data import StepBatchSampler
from lvmmed_monai.engines import Pretrainer, warmup_cosine
from lvmmed_monai.engines.memory import step_memory
from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers import ResumableCheckpoint
from lvmmed_monai.methods import build_method
from lvmmed_monai.methods._siamese import MomentumMethod, SiameseMethod
from lvmmed_monai.networks import build_encoder, load_encoder, read_encoder_file

STEPS = 3
each_method = pytest.mark.parametrize("name", PICTURE_METHODS)
# Methods whose several processes compute what one does, but for statistics of batch normalisation.
GATHERED = ("simclr", "barlow_twins", "vicreg", "vicregl", "moco", "byol", "dino")
WITH_COPY = [name for name in PICTURE_METHODS if isinstance(small_picture_method(name), MomentumMethod)]


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def trainer(name: str, datalist: Path, *, init_seed: int = 0, **options: Any) -> Pretrainer:
    method = small_picture_method(name, init_seed)
    data = method.dataset([datalist], "training", datalist.parent / "cache", 5)
    loader = DataLoader(data, batch_sampler=StepBatchSampler(len(data), 8, STEPS, seed=5))
    weights = [weight for weight in method.network().parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1)
    options = {"seed": 5, "accumulate": 2, "held_out": data, **options}
    schedule = warmup_cosine(optimizer, 1, STEPS)
    return Pretrainer(method, loader, 1, optimizer, epoch_length=STEPS, lr_scheduler=schedule, **options)


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_there_are_the_method_and_its_baselines() -> None:
    baselines = {"simclr", "moco", "byol", "barlow_twins", "vicreg", "vicregl", "dino", "swav", "mae"}
    assert {"lvm_med", *baselines} <= set(PICTURE_METHODS)
    assert {"moco", "byol", "dino"} == set(WITH_COPY)


@each_method
def test_trains_monitors_and_writes_the_encoder(name: str, datalist: Path, tmp_path: Path) -> None:
    engine = trainer(name, datalist, encoder_path=tmp_path / "encoder.pt", datalists=[datalist])
    before = state(engine.method.encoder())
    engine.run()
    assert all(np.isfinite(value) for curve in engine.history["curves"].values() for _, value in curve)
    assert [step for step, _ in engine.history["monitors"]] == [0, STEPS]
    for _, values in engine.history["monitors"]:
        assert values.keys() == set(engine.method.metric_directions)
        assert all(np.isfinite(value) for value in values.values())
    assert engine.method.name == read_encoder_file(tmp_path / "encoder.pt")["provenance"]["method"] == name
    loaded = build_encoder("resnet18", 3, width=4)
    assert not load_encoder(tmp_path / "encoder.pt", loaded).missing
    assert equal(loaded.state_dict(), engine.method.encoder().state_dict())
    assert not any(torch.equal(value, before[key]) for key, value in engine.method.encoder().named_parameters())


@each_method
def test_an_interrupted_run_ends_with_the_same_weights(name: str, datalist: Path, tmp_path: Path) -> None:
    whole = trainer(name, datalist)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        trainer(name, datalist, handlers=[ResumableCheckpoint(tmp_path / "state.pt", 1), Stop()]).run()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["state"]["step"] == 2
    resumed = trainer(name, datalist, init_seed=77, handlers=[ResumableCheckpoint(tmp_path / "state.pt", 1)])
    resumed.run()
    assert equal(whole.inner_network.state_dict(), resumed.inner_network.state_dict())
    curves = [engine.history["curves"] for engine in (whole, resumed)]
    for one in curves:
        one.pop("matching_share", None)  # a time
    assert curves[0] == curves[1]


@each_method
@pytest.mark.parametrize("small", [0, 2])
def test_every_trained_weight_gets_a_gradient_and_no_other(name: str, small: int) -> None:
    """Else several processes could not train: a weight without gradient is an error there."""
    method = small_picture_method(name)
    network = method.network().train()
    result = method.step(random_batch(small=small), network)
    assert torch.isfinite(result["loss"])
    result["loss"].backward()
    for key, weight in network.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, key
        assert weight.requires_grad != key.startswith("target."), key
        # Biases that a normalisation or a softmax takes away get rounding errors, the others more.
        assert weight.grad is None or torch.isfinite(weight.grad).all(), key
    assert all(float(weight.grad.abs().max()) > 0 for weight in method.encoder().parameters())


@each_method
def test_small_views_count_where_a_method_uses_them(name: str) -> None:
    losses = []
    for small in (0, 2):
        method = small_picture_method(name)
        torch.manual_seed(1)
        losses.append(float(method.step(random_batch(small=small), method.network().train())["loss"].detach()))
    assert (losses[0] != losses[1]) == (name in ("dino", "swav"))


@each_method
def test_state_dict_holds_all_that_the_next_loss_hangs_on(name: str) -> None:
    first, second = small_picture_method(name, 0), small_picture_method(name, 1)
    for seed in range(3):
        first.step(random_batch(seed=seed), first.network().train())
        first.after_step(first.network())
    second.network().load_state_dict(first.network().state_dict())
    losses = []
    for method in (first, second):
        torch.manual_seed(4)
        losses.append(method.step(random_batch(seed=9), method.network().train())["loss"])
    assert torch.equal(*losses)


@each_method
def test_losses_are_full_precision_under_autocast(name: str) -> None:
    method = small_picture_method(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.step(random_batch(), method.network().train())["loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", [name for name in PICTURE_METHODS if name != "lvm_med"])
def test_memory_can_be_told_beforehand(name: str) -> None:
    """The network follows no values, and the dry pass leaves nothing behind."""
    method = small_picture_method(name)
    network = method.network().train()
    before = state(network)
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.1)
    assert step_memory(method.step, random_batch(), network, optimizer).total > 0
    method.after_step(network)
    kept = {key: value for key, value in network.state_dict().items() if not key.startswith("target.")}
    assert equal(kept, {key: before[key] for key in kept})


@each_method
def test_monitoring_repeats_and_changes_nothing(name: str, datalist: Path) -> None:
    method = small_picture_method(name)
    network = method.network().train()
    dataset = method.dataset([datalist], "training", datalist.parent / "cache", 0)
    before = state(network)
    generator = torch.get_rng_state()
    first = method.monitors(dataset)
    assert first == method.monitors(dataset)
    assert torch.equal(generator, torch.get_rng_state())
    assert network.training
    assert equal(before, network.state_dict())


@each_method
def test_methods_of_one_seed_start_from_one_encoder(name: str) -> None:
    method = small_picture_method(name, 3)
    assert equal(method.encoder().state_dict(), small_picture_method("lvm_med", 3).encoder().state_dict())
    assert method.network().encoder is method.encoder()
    assert method.input_spec() == small_picture_method("lvm_med").input_spec()
    assert method.alarms({"curves": {}, "monitors": [], "total_steps": 100}) == []


@each_method
def test_works_on_other_encoders_and_in_grey(name: str) -> None:
    torch.manual_seed(0)
    common = {**COMMON, "encoder_name": "resnet50", "in_channels": 1}
    method = build_method(name, {"lvm_med": {"loss_options": {"nodes_per_graph": 4, "neighbours": 2}}}, **common)
    batch = {key: value[:, :1] if "view" in key else value for key, value in random_batch(4).items()}
    assert torch.isfinite(method.step(batch, method.network())["loss"])


@pytest.mark.parametrize("name", WITH_COPY)
def test_the_copy_moves_once_a_step_and_by_its_momentum(name: str, datalist: Path) -> None:
    engine = trainer(name, datalist, accumulate=2)
    network = engine.inner_network
    found = []

    def compare(engine: Pretrainer) -> None:
        for part in ("encoder", "projector"):
            new = dict(getattr(network, part).named_parameters())
            for key, old in before[part].items():
                now = dict(getattr(network.target, part).named_parameters())[key]
                torch.testing.assert_close(now, 0.99 * old + 0.01 * new[key], rtol=1e-6, atol=1e-8)
                found.append(torch.equal(now, old))
                before[part][key] = now.detach().clone()

    before = {
        part: {key: value.detach().clone() for key, value in getattr(network.target, part).named_parameters()}
        for part in ("encoder", "projector")
    }
    assert all(torch.equal(value, before["encoder"][key]) for key, value in network.encoder.named_parameters())
    engine.add_event_handler(Events.ITERATION_COMPLETED, compare)
    engine.run()
    assert found.count(False) > len(found) / 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("simclr", {"temperature": 0}, "temperature must be above 0"),
        ("simclr", {"projector": ()}, "projector must be one or more widths"),
        ("simclr", {"gather": "perhaps"}, "gather must be true or false"),
        ("moco", {"queue_size": 0}, "queue_size and key_groups"),
        ("byol", {"momentum": 1.5}, "momentum must lie between 0 and 1"),
        ("byol", {"predictor": (0,)}, "predictor must be"),
        ("barlow_twins", {"redundancy": -1}, "redundancy must be above 0"),
        ("vicreg", {"coefficients": (25, 0, 1)}, "coefficients must be three numbers above 0"),
        ("vicreg", {"coefficients": (25, 1)}, "coefficients must be three numbers above 0"),
        ("vicregl", {"alpha": 1.0}, "alpha must lie between 0 and 1"),
        ("vicregl", {"map_level": 5}, "map_level must be"),
        ("dino", {"teacher_temperature": 0}, "teacher_temperature must be above 0"),
        ("dino", {"centre_momentum": 2}, "centre_momentum must lie between 0 and 1"),
        ("dino", {"prototypes": 0}, "prototypes must be"),
        ("swav", {"epsilon": 0}, "epsilon must be above 0"),
        ("swav", {"iterations": 0}, "iterations must be at least 1"),
        ("mae", {"patch_size": 24}, "views of 64 pixels are not two or more whole patches of 24"),
        ("mae", {"patch_size": 64}, "not two or more whole patches"),
        ("mae", {"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1"),
        ("mae", {"views": {"size": 48}}, "no multiple of the encoder's stride 32"),
        ("mae", {"temperature": 1}, "does not take"),
    ],
)
def test_refuses_impossible_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method(name, {name: options}, **COMMON).network()


@pytest.mark.parametrize("name", [n for n in PICTURE_METHODS if isinstance(small_picture_method(n), SiameseMethod)])
def test_one_picture_is_no_batch(name: str) -> None:
    method = small_picture_method(name)
    with pytest.raises(UserError, match="of one picture"):
        method.step(random_batch(1), method.network())
    assert torch.isfinite(method.step(random_batch(2), method.network().train())["loss"])


class Flat(nn.Module):
    """An "encoder" without batch statistics: pixels as a map."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.weights(images)]


def gathered_gradients(name: str, rows: slice) -> dict[str, torch.Tensor]:
    """Gradients of a step on some rows of a batch, the mean of all processes; and buffers after it."""
    method = small_picture_method(name)
    torch.manual_seed(0)
    encoder: Any = Flat()
    encoder.channels, encoder.strides = (8,), (8,)
    method.projector = (8,)
    method.local_projector = (8,)
    method.predictor = ()
    method.gather = True
    network = method.build(encoder)
    wrapped = nn.parallel.DistributedDataParallel(network) if dist.is_initialized() else network
    method.step({key: value[rows] for key, value in random_batch().items()}, wrapped)["loss"].backward()
    method.after_step(network)
    gradients = {key: weight.grad for key, weight in network.named_parameters() if weight.requires_grad}
    return {**gradients, **dict(network.named_buffers())}


def gathering_worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = slice(4 * rank, 4 * rank + 4)
    torch.save({name: gathered_gradients(name, rows) for name in GATHERED}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_that_gather_equal_one(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.spawn(gathering_worker, args=(port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in GATHERED:
        expected = gathered_gradients(name, slice(None))
        assert equal(found[0][name], found[1][name])
        queue, start = expected.pop("queue", None), expected.pop("queue_start", None)
        # Biases that a normalisation takes away have gradients of rounding errors only.
        largest = max(float(value.abs().max()) for value in expected.values())
        for key, value in expected.items():
            assert float((found[0][name][key] - value).abs().max()) < 1e-4 * largest, (name, key)
        if queue is not None:
            assert start == found[0][name]["queue_start"] == 16
            # The same keys, in the order of the processes.
            order = torch.cat([torch.arange(4) + start for start in (0, 8, 4, 12)])
            torch.testing.assert_close(found[0][name]["queue"][:16], queue[:16][order])
