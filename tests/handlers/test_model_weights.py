"""Model files: loaded whole or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, State

from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers import ModelLoader


def load(path: Path, network: torch.nn.Module) -> None:
    engine = Engine(lambda engine, batch: None)
    engine.state = State(device=torch.device("cpu"))
    ModelLoader(path, network).attach(engine)
    engine.run([0], max_epochs=1)


def linear(seed: int, outputs: int = 2) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(3, outputs)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_it_loads(tmp_path: Path, prefix: str, wrapped: bool) -> None:
    state = {prefix + key: value for key, value in linear(1).state_dict().items()}
    torch.save({"model": state} if wrapped else state, tmp_path / "model.pt")
    into = linear(2)
    load(tmp_path / "model.pt", into)
    assert torch.equal(into.weight, linear(1).weight)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not found; .*model.pt; train the bundle first or set load_pretrain to false"):
        load(tmp_path / "model.pt", linear(1))


def test_another_network(tmp_path: Path) -> None:
    torch.save(linear(1, outputs=5).state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"another network \(2 tensors differ, e.g. bias\)"):
        load(tmp_path / "model.pt", linear(1))
    torch.save({"weight": linear(1).weight.detach()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="1 tensors differ"):
        load(tmp_path / "model.pt", linear(1))


def test_damaged(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "model.pt", linear(1))
