"""Dice and its policy for empty targets."""

from __future__ import annotations

import numpy as np
import pytest

from lvmmed_monai.metrics import dice_per_class

LABELS = {"0": "background", "1": "liver", "2": "spleen", "3": "lesion"}


def _by_hand(pred: np.ndarray, target: np.ndarray, number: int) -> float | None:
    """Count voxel by voxel."""
    both = either = 0
    for one, other in zip(pred.flat, target.flat, strict=True):
        either += int(one == number) + int(other == number)
        both += int(one == number and other == number)
    return 2 * both / either if either else None


@pytest.mark.parametrize("seed", range(5))
def test_against_counting(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pred, target = generator.integers(0, 3, (2, 5, 6, 4))
    scores = dice_per_class(pred, target, LABELS)
    assert list(scores) == ["liver", "spleen", "lesion"]
    for number, name in ((1, "liver"), (2, "spleen"), (3, "lesion")):
        assert scores[name] == pytest.approx(_by_hand(pred, target, number)) if scores[name] is not None else True
    assert scores["lesion"] is None


def test_policy_for_empty_targets() -> None:
    empty, full = np.zeros((4, 4), int), np.ones((4, 4), int)
    labels = {0: "background", 1: "lesion"}
    assert dice_per_class(full, full, labels) == {"lesion": 1.0}
    assert dice_per_class(empty, full, labels) == {"lesion": 0.0}
    assert dice_per_class(full, empty, labels) == {"lesion": 0.0}
    assert dice_per_class(empty, empty, labels) == {"lesion": None}


def test_false_positive_in_a_healthy_subject_counts_here_and_not_in_monai() -> None:
    import torch
    from monai.metrics import DiceMetric

    target = torch.zeros(2, 1, 4, 4)
    target[0, 0, :2] = 1
    pred = target.clone()
    pred[1, 0, 0, 0] = 1
    theirs = DiceMetric(include_background=True, reduction="mean")
    theirs(pred, target)
    assert float(theirs.aggregate()) == pytest.approx(1.0)
    ours = [dice_per_class(pred[case, 0], target[case, 0], {1: "lesion"})["lesion"] for case in range(2)]
    assert ours == [1.0, 0.0]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"pred \(1, 4, 4\) and target \(4, 4\)"):
        dice_per_class(np.zeros((1, 4, 4)), np.zeros((4, 4)), LABELS)
