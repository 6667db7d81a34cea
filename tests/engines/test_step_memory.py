"""The estimate of a step's memory against sums of what a real step keeps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_lvm_med
import torch
from tiny_method import TinyMethod, build
from torch import Tensor, nn

from lvmmed_monai.engines.memory import StepMemory, announce_memory, check_memory, step_memory
from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import build_encoder

GIB = 2**30


def step(batch: Any, network: Any) -> dict[str, Tensor]:
    return {"loss": network(batch["image"]).sum()}


def saved_bytes(network: nn.Module, image: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps in a real step, weights and input left out."""
    known = {one.untyped_storage().data_ptr() for one in (image, *network.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(image)
    assert output.requires_grad
    return sum(kept.values())


def chain(depth: int = 12) -> nn.Module:
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.Softplus())))


class TestEstimate:
    def test_is_what_a_real_step_keeps_and_a_few_passing_maps(self) -> None:
        network, image = chain(), torch.rand(8, 4, 32, 32)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        found = step_memory(step, {"image": image}, network, optimizer)
        one_map, kept = image.nbytes, saved_bytes(network, image)
        # 12 outputs of convolutions and 11 of activations are kept for the backward pass.
        assert kept == 23 * one_map
        assert kept <= found.step <= kept + 5 * one_map
        weights = sum(one.nbytes for one in network.parameters())
        assert (found.weights, found.optimizer, found.total) == (weights, 0, weights + found.step)

    def test_grows_with_the_batch_and_takes_no_memory_nor_gradient(self) -> None:
        network = chain()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        sizes = [
            step_memory(step, {"image": torch.rand(count, 4, 32, 32)}, network, optimizer).step for count in (4, 8)
        ]
        assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.02)
        assert all(one.grad is None for one in network.parameters())

    def test_recomputed_activations_are_not_kept(self) -> None:
        image = torch.rand(2, 1, 32, 32, 32)
        needs = []
        for checkpointed in (False, True):
            encoder = build_encoder("swinunetr_b", 1, use_checkpoint=checkpointed)
            optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
            # The deepest map of such a crop has one voxel, which its normalisation refuses: the smaller one is cut off.
            network = nn.ModuleList([encoder])
            network.forward = lambda x, inner=encoder: torch.cat([one.flatten() for one in inner._hidden_states(x)])
            needs.append(step_memory(step, {"image": image}, network, optimizer).step)
        assert needs[1] < 0.8 * needs[0]

    @pytest.mark.parametrize(
        ("make", "copies"),
        [
            (lambda weights: torch.optim.AdamW(weights), 2),
            (lambda weights: torch.optim.AdamW(weights, amsgrad=True), 3),
            (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9), 1),
        ],
    )
    def test_state_of_the_optimiser(self, make: Any, copies: int) -> None:
        network = chain(1)
        optimizer = make(network.parameters())
        found = step_memory(step, {"image": torch.rand(1, 4, 8, 8)}, network, optimizer)
        image = torch.rand(1, 4, 8, 8)
        network(image).sum().backward()
        optimizer.step()
        kept = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        assert found.optimizer == sum(value.nbytes for value in kept) == copies * found.weights


class Looking(nn.Module):
    """A network that looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if float(x.sum()) > 0 else x


class TestAnnouncement:
    def test_a_network_that_cannot_be_followed_gets_no_number(self, caplog: pytest.LogCaptureFixture) -> None:
        network = Looking()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        with caplog.at_level(logging.INFO):
            announce_memory(step, {"image": torch.rand(2, 4)}, network, optimizer)
        assert "no estimate of the memory: the step cannot be followed without data" in caplog.text
        assert "GiB" not in caplog.text

    @pytest.mark.parametrize("preset", ["recommended", "paper"])
    def test_matching_is_represented_by_its_tables(self, preset: str, tmp_path: Path) -> None:
        datalist = tiny_lvm_med.write_pictures(tmp_path, training=32)
        options = {"nodes_per_graph": 16, "neighbours": 4}
        engine = tiny_lvm_med.build(datalist, batch_size=32, lvm_med={"preset": preset, "loss_options": options})
        batch = engine.data_loader.collate_fn([engine.data_loader.dataset[index] for index in range(32)])
        found = step_memory(engine.method.step, batch, engine.network, engine.optimizer)
        alone = step_memory(
            lambda batch, network: network(torch.cat([batch["view1"], batch["view2"]])),
            batch,
            engine.method.encoder(),
            engine.optimizer,
        )
        loss = engine.method.network().loss.stand_in(torch.zeros(32, 16), torch.zeros(32, 16))
        tables = sum(table.nbytes for table in loss["tables"])
        # 2 graphs of 32 views with 8 samples each; or of 16 pictures with 64 edges on either side.
        nodes, edges = 16 * 32**2 * 8, 2 * 16**2 * 8 + 2 * 64**2 * 8
        assert tables == (nodes if preset == "recommended" else edges)
        assert found.step > alone.step + tables
        # It is forward itself again.
        assert torch.isfinite(engine.method.step(batch, engine.network)["loss"])

    def test_a_run_begins_with_its_estimate(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            build(TinyMethod(), epochs=1).run()
        (line,) = [record.message for record in caplog.records if "GiB" in record.message]
        assert line.startswith("a step needs at least 0.00 GiB")
        assert caplog.text.index("GiB") < caplog.text.index("step 10")

    def test_what_does_not_fit(self, caplog: pytest.LogCaptureFixture) -> None:
        estimate = StepMemory(weights=GIB, optimizer=2 * GIB, step=5 * GIB)
        with caplog.at_level(logging.WARNING):
            check_memory(estimate, 8 * GIB, 10 * GIB, in_use=GIB)
            check_memory(estimate, None, None)
        assert caplog.text == ""
        with caplog.at_level(logging.WARNING):
            check_memory(estimate, 6 * GIB, 10 * GIB, in_use=GIB)
        assert "at least 7.0 GiB more, and 6.0 are free: it will probably not fit; raise accumulate" in caplog.text
        with pytest.raises(UserError, match=r"at least 8\.0 GiB, and the device has 7\.0; .* raise accumulate"):
            check_memory(estimate, 6 * GIB, 7 * GIB)


class TwoPlaces(nn.Module):
    """One module under two names, as the encoder that two networks share."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.again = nn.ModuleDict({"inner": self.shared})

    def forward(self, x: Tensor) -> Tensor:
        return self.again["inner"](self.shared(x))


def test_a_module_in_two_places_keeps_its_weights() -> None:
    network = TwoPlaces()
    before, image = network.shared.weight, torch.rand(2, 4)
    step_memory(step, {"image": image}, network, torch.optim.SGD(network.parameters(), lr=0.1))
    assert network.shared.weight is before
    assert type(network(image)) is Tensor
