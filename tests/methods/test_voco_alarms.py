"""VoCo's monitors and alarms: known levels, and real short trainings with one fault each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.engines import Pretrainer, warmup_cosine
from lvmmed_monai.methods._voco_alarms import blind_levels, voco_alarms
from lvmmed_monai.methods._voco_monitors import embedding_rank, training_numbers
from lvmmed_monai.methods._voco_network import standardise
from lvmmed_monai.methods.voco import VoCo

STEPS = 100


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four volumes of faint but distinct structure: their crops share most of what a feature says."""
    folder = tmp_path_factory.mktemp("volumes")
    items = []
    for seed in range(4):
        noise = gaussian_filter(np.random.default_rng(seed).standard_normal((26, 26, 10)), 3)
        values = (40 * noise / noise.std() - 50).clip(-450, 390).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), folder / f"{seed}.nii.gz")
        items.append({"image": f"{seed}.nii.gz", "subject": f"s{seed}"})
    content = {"format": "lvmmed-datalist/1", "name": "set", "task": "unlabelled", "modality": "CT", "labels": {}}
    write_datalist(folder / "set.json", {**content, "flip_safe": True, "training": items, "validation": [], "test": []})
    return folder / "set.json"


class Plain(Dataset):
    """Samples without augmentation, which can be learnt in a moment; optionally with labels of other places."""

    def __init__(self, dataset: Any, shuffled: bool) -> None:
        self.dataset, self.shuffled = dataset, shuffled

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        random = np.random.default_rng([5, *key])
        sample = self.dataset.sample(random, key[1], augment_block=False, augment_crops=False)
        if self.shuffled:
            rows = [row[torch.from_numpy(random.permutation(len(row)))] for row in sample["overlap"]]
            sample = {**sample, "overlap": torch.stack(rows)}
        return sample


class LayerNormProjector(nn.Module):
    def __init__(self, projector: Any) -> None:
        super().__init__()
        self.layers = projector.layers

    def forward(self, features: Tensor, counted: Tensor) -> Tensor:
        for layer in list(self.layers)[:-1]:
            features = functional.relu(functional.layer_norm(layer(features), (layer.out_features,)))
        return self.layers[-1](features)


def normalise_each_crop(network: Any) -> None:
    """The published cure for small batches that makes it collapse: LayerNorm in the projector, raw features into it."""
    network.projector = LayerNormProjector(network.projector)
    network.teacher = copy.deepcopy(network.projector).requires_grad_(False)
    network.features = lambda crops, counted: network.pooled(crops)


def drop_raw_features(network: Any) -> None:
    """Channel dropout of 0.2 before anything is standardised."""

    def forward(crops: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        raw = network.pooled(crops)
        student = network.projector(standardise(functional.dropout(raw, 0.2), counted), counted)
        return student, network.teacher(standardise(raw, counted), counted)

    network.forward = forward


def train(
    datalist: Path, tmp_path: Path, change: Callable[[Any], None] | None = None, *, shuffled: bool = False
) -> dict[str, Any]:
    torch.manual_seed(0)
    method = VoCo(encoder_options={"init_filters": 8}, crop_size=8, projector=(64, 32))
    if change is not None:
        change(method.network())
    data = Plain(method.dataset([datalist], "training", tmp_path / "cache", 0), shuffled)
    sampler = StepBatchSampler(len(data), 4, STEPS, seed=0)
    weights = [weight for weight in method.network().parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    schedule = warmup_cosine(optimizer, 5, STEPS)
    loader = DataLoader(data, batch_sampler=sampler)
    engine = Pretrainer(method, loader, 1, optimizer, epoch_length=STEPS, lr_scheduler=schedule)
    engine.run()
    return engine.history


class TestTrainings:
    def test_a_healthy_run_raises_none(self, datalist: Path, tmp_path: Path) -> None:
        history = train(datalist, tmp_path)
        assert history["alarms"] == []
        intra = [value for _, value in history["curves"]["intra"]]
        assert np.mean(intra[-20:]) < 0.8 * blind_levels((3, 3), 8, "v2").vector

    def test_point_27_plateau_on_shuffled_labels(
        self, datalist: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("WARNING"):
            history = train(datalist, tmp_path, shuffled=True)
        ((first, last, sentence),) = history["alarms"]
        assert first < last == STEPS
        assert "for 24 steps: the network ignores position" in sentence
        assert caplog.text.count("the network ignores position") == 1
        assert np.mean([value for _, value in history["curves"]["intra"]][-20:]) >= 0.5

    def test_point_28_collapse_with_a_layer_norm_projector(self, datalist: Path, tmp_path: Path) -> None:
        sentences = [alarm[2] for alarm in train(datalist, tmp_path, normalise_each_crop)["alarms"]]
        assert any("the embeddings collapse" in one and "standardise over the crops" in one for one in sentences)
        assert not any("ignores position" in one for one in sentences)

    def test_dropout_on_raw_features(self, datalist: Path, tmp_path: Path) -> None:
        ((_, _, sentence),) = train(datalist, tmp_path, drop_raw_features)["alarms"]
        assert "dropout drowns the position" in sentence


def test_levels_of_blind_answers() -> None:
    """Known answers, computed over all 16384 places of a crop; they depend on the grid."""
    levels = blind_levels((3, 3), 64, "v2")
    assert levels.zero == pytest.approx(0.71288, abs=1e-5)
    assert levels.constant == pytest.approx(0.58316, abs=1e-4)
    assert levels.vector == pytest.approx(0.5042, abs=5e-4)
    assert levels.accuracy == pytest.approx(0.25, abs=0.02)
    assert blind_levels((3, 3), 64, "v1").constant == pytest.approx(0.36077, abs=1e-4)
    wide = blind_levels((4, 4), 96, "v2")
    assert wide.zero == pytest.approx(0.71134, abs=5e-3)
    assert wide.vector == pytest.approx(0.5387, abs=5e-3)


def history_of(
    curves: dict[str, float], *, steps: int = 100, monitors: dict[str, float] | None = None
) -> dict[str, Any]:
    """A run whose curves stand still, but for the first value of the teacher's distance."""
    healthy = {
        "loss": 0.5,
        "intra": 0.3,
        "base": 0.05,
        "argmax_accuracy": 0.6,
        "positive_logit": 0.3,
        "zero_logit": 0.05,
        "embedding_spread": 0.9,
        "teacher_distance": 0.05,
        "empty_bases": 0.0,
    }
    points = {name: [[step, value] for step in range(1, steps + 1)] for name, value in {**healthy, **curves}.items()}
    points["teacher_distance"][0] = [1, 0.05]
    return {"curves": points, "monitors": [[steps, monitors]] if monitors else [], "total_steps": 100}


HELD_OUT = {
    "correlation_aug": 0.2,
    "histogram_correlation_aug": 0.4,
    "argmax_accuracy_aug": 0.3,
    "histogram_argmax_accuracy_aug": 0.35,
}


@pytest.mark.parametrize(
    ("curves", "monitors", "expected"),
    [
        ({}, None, []),
        ({}, {**HELD_OUT, "correlation_aug": 0.6}, []),
        ({"intra": 15.0, "base": 1.0, "embedding_spread": 0.0}, None, ["the embeddings collapse"]),
        ({"intra": 0.71, "base": 0.0, "argmax_accuracy": 0.2}, None, ["orthogonal"]),
        ({"intra": 0.58, "argmax_accuracy": 0.25, "positive_logit": 0.19, "zero_logit": 0.18}, None, ["0.58 for 24"]),
        # At the same level, but positions are told apart: slow, not blind.
        ({"intra": 0.51, "argmax_accuracy": 0.45}, None, []),
        ({"empty_bases": 0.4}, None, ["40% of the base crops show air"]),
        ({"teacher_distance": 0.5}, None, ["the student runs away"]),
        ({}, HELD_OUT, ["no better than grey-value histograms"]),
    ],
)
def test_each_fault_has_its_alarm(curves: dict[str, float], monitors: dict | None, expected: list[str]) -> None:
    found = voco_alarms(history_of(curves, monitors=monitors), (3, 3), 64, "fixed")
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


def test_no_verdict_too_early_or_within_the_warm_up() -> None:
    blind = {"intra": 0.58, "argmax_accuracy": 0.25, "positive_logit": 0.19, "zero_logit": 0.18}
    assert voco_alarms(history_of(blind, steps=24), (3, 3), 64, "fixed") == []
    warming = history_of(blind, steps=60)
    warming["curves"]["learning_rate"] = [[step, min(step, 50) / 50] for step in range(1, 61)]
    assert voco_alarms(warming, (3, 3), 64, "fixed") == []
    assert voco_alarms(history_of(blind, steps=60), (3, 3), 64, "fixed") != []


class TestPoint28:
    def numbers(self, embeddings: Tensor) -> dict[str, float]:
        mask = torch.ones(2, 4, dtype=torch.bool)
        mask[1, 3] = False
        overlap = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75]]).expand(2, 2, 4)
        found = training_numbers(embeddings, embeddings + 0.01, overlap, mask)
        return {name: float(value) for name, value in found.items()}

    def test_point_28_numbers_against_loops(self) -> None:
        embeddings = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
        found = self.numbers(embeddings)
        teacher, positive, zero = embeddings + 0.01, [], []
        labels = {0: [[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75]], 1: [[0.5, 0.5, 0, None], [0, 0, 1.0, None]]}
        for volume, rows in labels.items():
            for crop, row in enumerate(rows):
                for base, label in enumerate(row):
                    if label is not None:
                        cosine = functional.cosine_similarity(embeddings[volume, 4 + crop], teacher[volume, base], 0)
                        (positive if label else zero).append(max(0.0, float(cosine)))
        assert found["positive_logit"] == pytest.approx(np.mean(positive), abs=1e-6)
        assert found["zero_logit"] == pytest.approx(np.mean(zero), abs=1e-6)
        assert found["empty_bases"] == pytest.approx(1 / 8)
        kept = np.delete(embeddings.reshape(12, 5).numpy(), 9, axis=0)
        unit = kept / np.linalg.norm(kept, axis=1, keepdims=True)
        assert found["embedding_spread"] == pytest.approx(unit.std(0).mean() * np.sqrt(5), abs=1e-6)

    def test_point_28_collapsed_embeddings(self) -> None:
        found = self.numbers(torch.ones(2, 6, 5))
        assert found["embedding_spread"] == pytest.approx(0, abs=1e-6)
        assert found["positive_logit"] == pytest.approx(found["zero_logit"]) == pytest.approx(1)

    def test_embedding_rank(self) -> None:
        assert embedding_rank(torch.eye(6).repeat(4, 1)) == pytest.approx(6)
        assert embedding_rank(torch.ones(20, 6)) == pytest.approx(1, abs=1e-3)
