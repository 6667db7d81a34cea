"""Probes and examples of 2D methods, on small pictures whose classes are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import read_json, write_json
from lvmmed_monai.handlers.examples import write_examples
from lvmmed_monai.methods._picture_examples import nearest_others, principal_plane
from lvmmed_monai.methods._picture_features import batch_features, whole_view
from lvmmed_monai.methods._picture_probes import PictureProbes, labelled_pictures
from lvmmed_monai.methods.lvm_med import LVMMed
from lvmmed_monai.networks import build_encoder
from lvmmed_monai.results import new_results, validate_results

SMALL: dict[str, Any] = {
    "encoder_name": "resnet18",
    "encoder_options": {"width": 4},
    "views": {"size": 32},
    "cache_size": 48,
}
FORM: dict[str, Any] = {"size": 16, "in_channels": 3, "cache_size": 48, "most": 100}


class MeanColour(nn.Module):
    """An encoder whose only features are the mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.gain * images]


def write_datalist(folder: Path, name: str, items: dict[str, list[dict[str, Any]]], **changes: Any) -> Path:
    content = {
        "format": "lvmmed-datalist/1", "name": name, "task": "classification", "modality": "COLOR",
        "labels": {"0": "dark", "1": "bright"}, "training": [], "validation": [], "test": [],
    }  # fmt: skip
    write_json(folder / f"{name}.json", {**content, **items, **changes})
    return folder / f"{name}.json"


def labelled_items(folder: Path, name: str, count: int, *, seed: int, shift: int = 110) -> list[dict[str, Any]]:
    """Noisy pictures of 24 x 20 pixels; those of class 1 are brighter."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(count):
        pixels = rng.integers(20, 120, (24, 20, 3)) + shift * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_{i}.png")
        items.append({"image": f"{name}_{i}.png", "label": i % 2, "subject": f"{name}_{i}"})
    return items


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of its test section do not exist."""
    folder = tmp_path_factory.mktemp("labelled")
    gone = [{"image": f"gone{i}.png", "label": i % 2, "subject": f"gone{i}"} for i in range(4)]
    training, validation = (labelled_items(folder, name, count, seed=count) for name, count in (("t", 24), ("v", 20)))
    return write_datalist(folder, "colours", {"training": training, "validation": validation, "test": gone})


def test_whole_pictures_with_their_classes(datalist: Path, tmp_path: Path) -> None:
    found = labelled_pictures(datalist, "validation", tmp_path, size=16, in_channels=3)
    assert found.images.shape == (20, 3, 16, 16)
    assert found.images.dtype == torch.uint8
    assert found.labels.tolist() == [0, 1] * 10
    # Nothing is cut off, mirrored or recoloured.
    original = np.asarray(Image.open(datalist.parent / "v_3.png"), float)
    np.testing.assert_allclose(found.images[3].float().mean(dim=(1, 2)), original.mean(axis=(0, 1)), atol=1.5)
    assert found.images[3, :, :, 0].float().mean() == pytest.approx(original[:, 0].mean(), abs=6)
    some = labelled_pictures(datalist, "validation", tmp_path, size=16, in_channels=1, most=7)
    assert some.images.shape == (7, 1, 16, 16)
    assert [item["label"] for item in some.pairs.data] == [0, 1] * 10


def test_probes_find_the_classes_and_chance_without_them(datalist: Path, tmp_path: Path) -> None:
    probes = PictureProbes(datalist, tmp_path, **FORM)
    assert probes.measure(MeanColour()) == {"probe_auc": 1.0, "knn_accuracy": 1.0}
    assert PictureProbes.chance(datalist) == {"probe_auc": 0.5, "knn_accuracy": 0.5}
    blind = MeanColour()
    nn.init.zeros_(blind.gain)
    assert probes.measure(blind) == {"probe_auc": 0.5, "knn_accuracy": 0.5}
    nn.init.constant_(blind.gain, torch.nan)
    assert all(np.isnan(value) for value in probes.measure(blind).values())


def test_probes_do_not_learn_from_what_they_measure(datalist: Path, tmp_path: Path) -> None:
    content = read_json(datalist, "datalist")
    absolute = [{**item, "image": str(datalist.parent / item["image"])} for item in content["training"]]
    swapped = [
        {**item, "image": str(datalist.parent / item["image"]), "label": 1 - item["label"]}
        for item in content["validation"]
    ]
    path = write_datalist(tmp_path, "swapped", {"training": absolute, "validation": swapped})
    assert PictureProbes(path, tmp_path, **FORM).measure(MeanColour()) == {"probe_auc": 0.0, "knn_accuracy": 0.0}


def test_method_measures_probes_beside_the_rest(datalist: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = LVMMed(**SMALL, probe_datalist=datalist)
    dataset = method.dataset([datalist], "validation", tmp_path, seed=0)
    network = method.network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    values = method.monitors(dataset)
    assert values.keys() == method.metric_directions.keys()
    assert {"probe_auc", "knn_accuracy", "matching_accuracy"} <= values.keys()
    assert values == method.monitors(dataset)
    assert values["probe_auc"] > 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert method.chance["probe_auc"] == 0.5
    assert method.metric_counts == {"probe_auc": 20, "knn_accuracy": 20}
    # The next method is not touched.
    assert "probe_auc" not in LVMMed(**SMALL).metric_directions
    assert "probe_auc" not in LVMMed(**SMALL).monitors(dataset)


def test_probes_are_measured_where_pairs_are_too_few(datalist: Path, tmp_path: Path) -> None:
    method = LVMMed(**SMALL, probe_datalist=datalist)
    few = write_datalist(tmp_path, "few", {"training": labelled_items(tmp_path, "f", 3, seed=2)})
    values = method.monitors(method.dataset([few], "training", tmp_path / "cache", seed=0))
    assert np.isnan(values["matching_accuracy"])
    assert values["probe_auc"] > 0.9


@pytest.mark.parametrize("name", ["colours", "another list of the same hospital"])
def test_subjects_that_are_measured_must_not_be_trained_on(name: str, datalist: Path, tmp_path: Path) -> None:
    content = read_json(datalist, "datalist")
    items = [{**item, "image": str(datalist.parent / item["image"])} for item in content["validation"][:3]]
    leak = write_datalist(tmp_path, name, {"training": items})
    method = LVMMed(**SMALL, probe_datalist=datalist)
    with pytest.raises(UserError, match="3 subjects of the probes' validation section are in the training data"):
        method.dataset([leak], "training", tmp_path / "cache", seed=0)
    assert len(method.dataset([datalist], "training", tmp_path / "cache", seed=0)) == 24


def test_what_cannot_be_probed_is_named(datalist: Path, tmp_path: Path) -> None:
    content = read_json(datalist, "datalist")
    items = [{**item, "image": str(datalist.parent / item["image"])} for item in content["training"]]
    several = write_datalist(tmp_path, "several", {"training": [{**items[0], "label": [0, 1]}]})
    with pytest.raises(UserError, match="has not one class"):
        labelled_pictures(several, "training", tmp_path, size=16, in_channels=3)
    one_class = write_datalist(tmp_path, "one", {"training": items[::2], "validation": items[1::2]})
    with pytest.raises(UserError, match="training section has only one class"):
        PictureProbes(one_class, tmp_path, **FORM)
    plain = [{key: value for key, value in item.items() if key != "label"} for item in items]
    bare = write_datalist(tmp_path, "bare", {"training": plain}, task="unlabelled", labels={})
    with pytest.raises(UserError, match="for unlabelled, the bundle for classification"):
        labelled_pictures(bare, "training", tmp_path, size=16, in_channels=3)
    voxels = np.random.default_rng(0).integers(-200, 200, (20, 20, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "ct.nii.gz")
    volume = [{"image": "ct.nii.gz", "label": 1, "subject": "a"}]
    with pytest.raises(UserError, match="5 pictures of 1 images"):
        labelled_pictures(
            write_datalist(tmp_path, "ct", {"training": volume}, modality="CT"),
            "training", tmp_path / "cache", size=16, in_channels=3,
        )  # fmt: skip


def test_features_keep_their_order_whatever_the_batches(datalist: Path, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (150, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch_features(MeanColour(), images), images.float().mean(dim=(2, 3)) / 255)


class TestExamples:
    def test_neighbours_against_loops(self) -> None:
        rng = np.random.default_rng(0)
        features, subjects = rng.normal(3, 1, (30, 5)), np.arange(30) // 3
        centred = features - features.mean(axis=0)
        queries = np.array([4, 11, 29])
        for query, row in zip(queries, nearest_others(features, subjects, queries, 4), strict=True):
            cosines = {
                i: one @ centred[query] / np.linalg.norm(one) / np.linalg.norm(centred[query])
                for i, one in enumerate(centred)
                if subjects[i] != subjects[query]
            }
            assert row.tolist() == sorted(cosines, key=lambda i: -cosines[i])[:4]
        assert nearest_others(features[:4], subjects[:4], np.array([0]), 3).tolist() == [[3, -1, -1]]

    def test_plane_of_the_largest_variances(self) -> None:
        rng = np.random.default_rng(0)
        features = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 5
        plane = principal_plane(features)
        values = np.linalg.eigvalsh(np.corrcoef(features.T))
        np.testing.assert_allclose(np.cov(plane.T, bias=True), np.diag(values[[-1, -2]]), atol=1e-9)
        assert (plane[np.abs(plane).argmax(axis=0), [0, 1]] > 0).all()
        assert principal_plane(np.arange(4.0)[:, None])[:, 1].tolist() == [0] * 4

    def test_untrained_encoder_is_the_one_that_training_began_with(self) -> None:
        torch.manual_seed(7)
        method = LVMMed(**SMALL)
        method.network()
        with torch.no_grad():
            for weight in method.encoder().parameters():
                weight.zero_()
        before = torch.get_rng_state()
        untrained = method.untrained_encoder()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(7)
        first = build_encoder("resnet18", 3, width=4)
        assert all(torch.equal(a, b) for a, b in zip(untrained.parameters(), first.parameters(), strict=True))

    def test_pictures_map_and_no_names(self, datalist: Path, tmp_path: Path) -> None:
        torch.manual_seed(0)
        grey = labelled_items(tmp_path, "grey", 12, seed=3)
        other = write_datalist(tmp_path, "second", {"validation": grey}, modality="XR")
        method = LVMMed(**SMALL)
        dataset = method.dataset([datalist, other], "validation", tmp_path / "cache", seed=0)
        neighbours, chart = method.examples(dataset)
        assert neighbours["picture"].shape == (10 * 32, 11 * 32, 3)
        assert np.array(neighbours["source_of"])[:, 0].tolist() == [0] * 5 + [1] * 5
        assert neighbours["sources"] == ["colours", "second"]
        # Every tile is a whole picture of the source that it is said to be from.
        wholes = {whole_view(dataset, i).numpy().tobytes(): dataset.data[i]["source"] for i in range(len(dataset))}
        tiles = neighbours["picture"].reshape(10, 32, 11, 32, 3).transpose(0, 2, 4, 1, 3)
        for row, numbers in zip(tiles, neighbours["source_of"], strict=True):
            for tile, number in zip(row, numbers, strict=True):
                assert wholes[np.ascontiguousarray(tile).tobytes()] == neighbours["sources"][number]
            # The picture itself is none of its neighbours; trained and random weights are still the same.
            assert all((tile != row[0]).any() for tile in row[1:])
            np.testing.assert_array_equal(row[1:6], row[6:])
        assert chart["modalities"] == ["COLOR", "XR"]
        assert chart["source_of"] == chart["modality_of"]
        assert len(chart["points"]["trained"]) == 32
        written = write_examples(method, dataset, tmp_path / "run")
        record = {**new_results("pretraining", "lvmmed_pretrain", seed=0), "examples": written}
        assert validate_results(record) == []
        text = json.dumps(written)
        assert not any(word in text for word in ("grey_", "v_", str(tmp_path)))
        shown = np.asarray(Image.open(tmp_path / "run" / "examples" / "1.png"))
        np.testing.assert_array_equal(shown, neighbours["picture"])
        assert not (tmp_path / "run" / "examples" / "2.png").exists()

    def test_few_pictures_give_none(self, tmp_path: Path) -> None:
        few = write_datalist(tmp_path, "few", {"training": labelled_items(tmp_path, "f", 5, seed=2)})
        method = LVMMed(**SMALL)
        assert method.examples(method.dataset([few], "training", tmp_path / "cache", seed=0)) == []
