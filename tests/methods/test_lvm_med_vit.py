"""LVM-Med with a vision transformer, whose one map serves as coarsest features, local features and patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.files import write_json
from lvmmed_monai.methods.lvm_med import LVMMed

VIT: dict[str, Any] = {"width": 48, "depth": 2, "heads": 3, "patch_size": 8, "image_size": 32}
SMALL: dict[str, Any] = {
    "encoder_name": "sam_vit_b",
    "encoder_options": VIT,
    "views": {"size": 32, "area": (0.5, 1.0)},
    "cache_size": 48,
    "loss_options": {"nodes_per_graph": 8, "neighbours": 3, "regroup": 2},
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 smooth random pictures, half of them held out."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for i in range(128):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    items = [{"image": f"{i}.png", "subject": f"s{i}"} for i in range(128)]
    content = {"format": "lvmmed-datalist/1", "name": "smooth", "task": "unlabelled", "modality": "COLOR", "labels": {}}
    sections = {"flip_safe": True, "training": items[:64], "validation": items[64:], "test": []}
    write_json(folder / "datalist.json", {**content, **sections})
    return folder / "datalist.json"


def train(method: LVMMed, dataset: Any, steps: int) -> None:
    network = method.network().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for batch in DataLoader(dataset, batch_sampler=StepBatchSampler(len(dataset), 32, steps, 0)):
        loss = method.step(batch, network)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(("size", "side"), [(32, 4), (64, 8), (96, 12)])
@pytest.mark.parametrize("preset", ["recommended", "paper", "draft"])
def test_the_one_map_goes_to_the_loss(preset: str, size: int, side: int) -> None:
    network = LVMMed(**SMALL, preset=preset).network()
    maps = network.encoder(torch.zeros(2, 3, size, size))
    assert network.chosen_map(maps) is maps[0]
    assert maps[0].shape[2:] == (side, side)


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_a_step_moves_every_weight(pool: Path, preset: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {**SMALL, "encoder_options": {**VIT, "use_checkpoint": True}}
    method = LVMMed(**options, preset=preset)
    before = {name: p.detach().clone() for name, p in method.network().named_parameters()}
    train(method, method.dataset([pool], "training", tmp_path, seed=0), 2)
    still = [name for name, p in method.network().named_parameters() if torch.equal(p, before[name])]
    assert still == []


@pytest.mark.slow
def test_matching_is_learnt(pool: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = LVMMed(**SMALL)
    training, held_out = (method.dataset([pool], one, tmp_path / "cache", seed=0) for one in ("training", "validation"))
    before = method.monitors(held_out)
    train(method, training, 30)
    after = method.monitors(held_out)
    assert after["matching_accuracy"] > before["matching_accuracy"] + 0.1
