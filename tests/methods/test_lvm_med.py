from __future__ import annotations

from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import write_json
from lvmmed_monai.methods.lvm_med import LVMMed, _reduced

SMALL: dict[str, Any] = {
    "encoder_name": "resnet18",
    "encoder_options": {"width": 4},
    "views": {"size": 32},
    "cache_size": 48,
    "loss_options": {"nodes_per_graph": 8, "neighbours": 3, "regroup": 2},
}


def datalist(path: Path, name: str, modality: str, images: list[str], *, flip_safe: bool = False) -> Path:
    items = [{"image": image, "subject": f"{name}{i}"} for i, image in enumerate(images)]
    content = {"format": "lvmmed-datalist/1", "name": name, "task": "unlabelled", "modality": modality, "labels": {}}
    write_json(
        path / f"{name}.json", {**content, "flip_safe": flip_safe, "training": items, "validation": [], "test": []}
    )
    return path / f"{name}.json"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """20 coloured pictures, 6 grey ones, and a CT of 20 x 24 x 10 voxels with one slice of air."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (30 + i, 40, 3)).astype(np.uint8)).save(folder / f"c{i}.png")
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (28, 28)).astype(np.uint8)).save(folder / f"g{i}.png")
    volume = rng.integers(-200, 200, (20, 24, 10)).astype(np.int16)
    volume[:, :, 3] = -1000
    nib.save(nib.Nifti1Image(volume, np.diag([-2.0, -2.0, 5.0, 1.0])), folder / "ct.nii.gz")
    return [
        datalist(folder, "colour", "COLOR", [f"c{i}.png" for i in range(20)], flip_safe=True),
        datalist(folder, "grey", "XR", [f"g{i}.png" for i in range(6)]),
        datalist(folder, "ct", "CT", ["ct.nii.gz"]),
    ]


@pytest.fixture(scope="module")
def dataset(pool: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return LVMMed(**SMALL).dataset(pool, "training", tmp_path_factory.mktemp("cache"), seed=0)


def test_dataset_holds_pictures_and_filled_slices(dataset: Any) -> None:
    assert len(dataset) == len(dataset.data) == 20 + 6 + 9
    assert [item["source"] for item in dataset.data].count("ct") == 9
    sample = dataset[(0, 30)]
    assert sample["view1"].shape == sample["view2"].shape == (3, 32, 32)
    assert sample["location1"].shape == (5,)
    # Grey is repeated, after its changes.
    assert torch.equal(sample["view1"][0], sample["view1"][2])


def test_slices_lie_as_in_the_volume(dataset: Any, pool: list[Path]) -> None:
    volume = nib.load(pool[0].parent / "ct.nii.gz").get_fdata()
    pixels = dataset.cache[26][0].numpy()
    # Rows run to the back, columns to the left of the patient, as this volume stores y and x.
    expected = np.clip((volume[:, :, 0].T + 500) / 900, 0, 1) * 255
    np.testing.assert_allclose(pixels, expected, atol=0.51)


def test_draws_follow_from_seed_draw_and_index(dataset: Any, pool: list[Path], tmp_path: Path) -> None:
    first = dataset[(3, 5)]
    assert torch.equal(dataset[(3, 5)]["view1"], first["view1"])
    assert torch.equal(dataset[5]["view1"], dataset[(0, 5)]["view1"])
    assert not torch.equal(first["view1"], first["view2"])
    assert not torch.equal(dataset[(4, 5)]["view1"], first["view1"])
    other = LVMMed(**SMALL).dataset(pool, "training", tmp_path, seed=1)
    assert not torch.equal(other[(3, 5)]["view1"], first["view1"])


@pytest.mark.parametrize("workers", [0, 2])
def test_one_epoch_never_repeats_views_after_set_determinism(dataset: Any, workers: int) -> None:
    monai.utils.set_determinism(0)
    try:
        sampler = StepBatchSampler(len(dataset), 8, total_steps=8, seed=0)
        batches = list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers))
    finally:
        monai.utils.set_determinism(None)
    boxes = torch.cat([torch.cat([b["location1"], b["location2"]]) for b in batches])
    views = torch.cat([torch.cat([b["view1"], b["view2"]]) for b in batches]).flatten(1)
    assert len(views.unique(dim=0)) == len(views) == 128
    assert len(boxes.unique(dim=0)) > 110


def test_sides_are_kept_where_they_matter(dataset: Any) -> None:
    flips = {"colour": 0.0, "grey": 0.0, "ct": 0.0}
    for index, item in enumerate(dataset.data):
        flips[item["source"]] += sum(float(dataset[(draw, index)]["location1"][4]) for draw in range(4))
    assert flips["colour"] > 0
    assert flips["grey"] == flips["ct"] == 0


def test_one_channel(pool: list[Path], tmp_path: Path) -> None:
    dataset = LVMMed(**SMALL, in_channels=1).dataset(pool[:2], "training", tmp_path, seed=0)
    assert dataset[0]["view1"].shape == dataset[25]["view1"].shape == (1, 32, 32)


def train(method: LVMMed, dataset: Any, steps: int) -> list[float]:
    network = method.network()
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for batch in DataLoader(dataset, batch_sampler=StepBatchSampler(len(dataset), 16, steps, 0)):
        output = method.step(batch, network)
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
        method.after_step(network)
        losses.append(float(output["loss"].detach()))
    return losses


@pytest.mark.parametrize("preset", ["recommended", "paper"])
def test_a_step_moves_every_weight(dataset: Any, preset: str) -> None:
    torch.manual_seed(0)
    method = LVMMed(**SMALL, preset=preset)
    before = {name: p.detach().clone() for name, p in method.network().named_parameters()}
    losses = train(method, dataset, 2)
    assert all(0 <= loss <= 1 for loss in losses)
    assert method.network() is method.network()
    assert method.network().encoder is method.encoder()
    still = [name for name, p in method.network().named_parameters() if torch.equal(p, before[name])]
    assert still == []


@pytest.mark.parametrize(
    ("preset", "size", "side"),
    [("recommended", 224, 14), ("recommended", 64, 8), ("recommended", 32, 4), ("paper", 64, 2)],
)
def test_map_of_the_loss(preset: str, size: int, side: int) -> None:
    network = LVMMed(**SMALL, preset=preset).network()
    assert network.chosen_map(network.encoder(torch.zeros(2, 3, size, size))).shape[2:] == (side, side)


@pytest.mark.parametrize(("both_views", "others"), [(False, 8), (True, 15)])
def test_chance_counts_the_views_that_can_be_met(both_views: bool, others: int) -> None:
    options = {"nodes_per_graph": 8, "both_views": both_views}
    assert LVMMed(**{**SMALL, "loss_options": options}).chance["matching_accuracy_in_training"] == 1 / others


def test_monitors_leave_no_trace_and_repeat(dataset: Any) -> None:
    torch.manual_seed(0)
    method = LVMMed(**SMALL)
    network = method.network().eval()
    network.encoder.layer1.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    first = method.monitors(dataset)
    assert first == method.monitors(dataset)
    assert first.keys() == method.metric_directions.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert modes == [module.training for module in network.modules()]
    assert 0 <= first["matching_accuracy"] <= 1
    assert 1 <= first["effective_rank"] <= 32
    assert method.chance["matching_accuracy"] == 1 / 16


def test_monitors_need_enough_pictures(pool: list[Path], tmp_path: Path) -> None:
    method = LVMMed(**SMALL)
    values = method.monitors(method.dataset(pool[1:2], "training", tmp_path, seed=0))
    assert all(np.isnan(value) for value in values.values())


@pytest.mark.slow
def test_matching_is_learnt(tmp_path: Path) -> None:
    # Smooth random pictures: training must raise the noise-free accuracy on pictures it has not seen.
    rng = np.random.default_rng(1)
    for i in range(128):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
    lists = [
        datalist(tmp_path, f"part{k}", "COLOR", [f"{i}.png" for i in r])
        for k, r in enumerate((range(64), range(64, 128)))
    ]
    torch.manual_seed(0)
    method = LVMMed(**{**SMALL, "encoder_options": {"width": 8}, "views": {"size": 32, "area": (0.5, 1.0)}})
    training, held_out = (method.dataset([one], "training", tmp_path / "cache", seed=0) for one in lists)
    before = method.monitors(held_out)
    train(method, training, 160)
    after = method.monitors(held_out)
    assert after["matching_accuracy"] > before["matching_accuracy"] + 0.1


def test_wrong_options_are_named(dataset: Any, pool: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown projector"):
        LVMMed(**SMALL, projector="mlp3")
    with pytest.raises(UserError, match="unknown option in views"):
        LVMMed(encoder_name="resnet18", views={"sizes": 3})
    with pytest.raises(UserError, match="planes = \\['oblique'\\]"):
        LVMMed(**SMALL, planes=["oblique"]).dataset(pool, "training", tmp_path, seed=0)
    with pytest.raises(UserError, match="in_channels = 2"):
        LVMMed(**SMALL, in_channels=2).dataset(pool, "training", tmp_path, seed=0)
    batch = {key: torch.stack([dataset[i][key] for i in range(12)]) for key in dataset[0]}
    method = LVMMed(**SMALL)
    with pytest.raises(UserError, match=r"12 images.*8 or 16"):
        method.step(batch, method.network())


def test_large_maps_are_averaged() -> None:
    maps = torch.arange(28.0).expand(1, 2, 28, 28)
    assert torch.equal(_reduced(maps), (torch.arange(14.0) * 2 + 0.5).expand(1, 2, 14, 14))
    assert _reduced(maps[..., :5, :14]).shape == (1, 2, 5, 14)


def test_message_passing_needs_the_width_of_the_features() -> None:
    with pytest.raises(UserError, match="features = 128 but the encoder gives 32"):
        LVMMed(**SMALL, preset="paper", projector="none").network()


def test_a_collapse_of_the_held_out_features_is_an_alarm() -> None:
    untrained = {"effective_rank": 12.0, "matching_accuracy": 0.2}
    history: dict[str, Any] = {"monitors": [[0, untrained]], "curves": {}, "total_steps": 100}
    assert LVMMed(**SMALL).alarms(history) == []
    history["monitors"].append([50, {"effective_rank": 3.0, "matching_accuracy": 0.5}])
    assert LVMMed(**SMALL).alarms(history) == []
    history["monitors"].append([100, {"effective_rank": 1.5, "matching_accuracy": 0.1}])
    (sentence,) = LVMMed(**SMALL).alarms(history)
    assert "collapse: held-out pictures differ in 1.5 directions, 12.0 without training" in sentence
