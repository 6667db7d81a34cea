"""The order of training items: complete, repeatable, divided, resumable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.errors import UserError


def test_each_pass_gives_each_item_once() -> None:
    steps = list(StepBatchSampler(12, 4, total_steps=6, seed=0))
    for first in (0, 3):
        indices = [index for step in steps[first : first + 3] for _, index in step]
        assert sorted(indices) == list(range(12))
    assert steps[0] != steps[3]


def test_draws_are_unique() -> None:
    draws = [draw for step in StepBatchSampler(10, 3, total_steps=50, seed=0) for draw, _ in step]
    assert len(set(draws)) == len(draws) == 150


@pytest.mark.parametrize("start", [1, 3, 7, 20])
def test_a_later_start_gives_the_rest_of_the_run(start: int) -> None:
    whole = list(StepBatchSampler(10, 3, total_steps=20, seed=5))
    rest = StepBatchSampler(10, 3, total_steps=20, seed=5, start_step=start)
    assert len(rest) == 20 - start
    assert list(rest) == whole[start:]


def test_ranks_share_what_one_process_would_take() -> None:
    alone = list(StepBatchSampler(16, 6, total_steps=5, seed=2))
    parts = [list(StepBatchSampler(16, 2, total_steps=5, seed=2, rank=rank, world_size=3)) for rank in range(3)]
    assert [[key for part in parts for key in part[step]] for step in range(5)] == alone


def test_seeds_give_other_orders() -> None:
    assert list(StepBatchSampler(50, 5, 3, seed=0)) != list(StepBatchSampler(50, 5, 3, seed=1))


def test_a_batch_that_does_not_fit_names_the_largest_that_does() -> None:
    with pytest.raises(UserError, match=r"batch size 11 does not fit a dataset of 10 items.*at most 10"):
        StepBatchSampler(10, 11, 1, seed=0)
    with pytest.raises(UserError, match=r"batch size 4 in each of 3 processes.*at most 3"):
        StepBatchSampler(10, 4, 1, seed=0, world_size=3)
    with pytest.raises(UserError, match=r"0 items.*add data"):
        StepBatchSampler(0, 1, 1, seed=0)
    with pytest.raises(UserError, match="batch size must be at least 1, got 0"):
        StepBatchSampler(10, 0, 1, seed=0)
    assert len(list(StepBatchSampler(10, 10, 2, seed=0))) == 2


# -- repeats and neighbours -------------------------------------------------------------------------------------------


def indices(steps: list[list[tuple[int, int]]]) -> np.ndarray:
    return np.array([[index for _, index in step] for step in steps])


def test_a_pass_repeats_each_item_by_its_weight() -> None:
    repeats = np.array([1.0, 2.5, 1.25, 4.0, 1.0, 0.25] * 4)
    sampler = StepBatchSampler(24, 5, total_steps=800, seed=1, repeats=repeats)
    assert sampler.steps_per_pass == 40 // 5
    passes = indices(list(sampler)).reshape(100, 40)
    counts = np.stack([np.bincount(one, minlength=24) for one in passes])
    assert ((counts == np.floor(repeats)) | (counts == np.ceil(repeats))).all()
    np.testing.assert_allclose(counts.mean(axis=0), repeats, atol=0.15)
    # Copies of an item lie apart: at most one in each half, or in each quarter, of a pass.
    for one in passes:
        for part in np.split(one, 4):
            assert (part == 3).sum() <= 2


def test_repeats_of_one_are_a_permutation() -> None:
    steps = list(StepBatchSampler(12, 4, total_steps=6, seed=0, repeats=np.ones(12)))
    for first in (0, 3):
        assert sorted(indices(steps[first : first + 3]).ravel()) == list(range(12))


# Volumes of 9, 2, 4 and 11 slices, and 7 pictures on their own.
GROUPS = [0] * 9 + [1] * 2 + [2] * 4 + [3] * 11 + list(range(4, 11))


def tuples_of(batch: np.ndarray, length: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    runs, mixed = [], []
    for one in batch.reshape(-1, length):
        same = len({GROUPS[i] for i in one}) == 1 and (np.diff(one) == 1).all()
        (runs if same else mixed).append(one)
    return runs, mixed


def test_batches_hold_runs_of_neighbours() -> None:
    sampler = StepBatchSampler(33, 8, total_steps=4 * 300, seed=2, groups=GROUPS, neighbours=4)
    assert sampler.steps_per_pass == 4
    steps = indices(list(sampler))
    starts: dict[int, set[int]] = {0: set(), 2: set(), 3: set()}
    for number in range(300):
        chosen = steps[4 * number : 4 * number + 4]
        assert len(set(chosen.ravel())) == chosen.size == 32
        runs, _ = tuples_of(chosen, 4)
        for run in runs:
            starts[GROUPS[run[0]]].add(int(run[0]))
        # At most one run is taken apart.
        assert len(runs) >= 1 + 1 + 2 - 1
    # Every place at which a run can begin is one, and a volume of exactly a run has one.
    assert starts == {0: set(range(6)), 2: {11}, 3: set(range(15, 23))}
    counts = np.bincount(steps.ravel(), minlength=33)
    assert counts.min() > 0.85 * counts.mean()


def test_neighbours_with_repeats_keep_the_shares() -> None:
    repeats = np.where(np.arange(33) < 26, 1.0, 3.5)
    sampler = StepBatchSampler(33, 4, total_steps=12 * 200, seed=3, repeats=repeats, groups=GROUPS, neighbours=4)
    counts = np.bincount(indices(list(sampler)).ravel(), minlength=33)
    per_pass = counts * sampler.steps_per_pass / 2400
    np.testing.assert_allclose(per_pass, repeats, rtol=0.12)


def test_a_lone_picture_is_seen_beside_volumes() -> None:
    groups = [0] * 8 + [1] * 8 + [2]
    sampler = StepBatchSampler(17, 4, total_steps=4 * 60, seed=0, groups=groups, neighbours=4)
    assert (indices(list(sampler)) == 16).sum() > 30


@pytest.mark.parametrize("start", [1, 4, 9, 23])
def test_runs_and_repeats_resume_and_divide(start: int) -> None:
    options: dict[str, Any] = {"repeats": np.linspace(1, 2, 33), "groups": GROUPS, "neighbours": 2}
    whole = list(StepBatchSampler(33, 12, total_steps=24, seed=5, **options))
    assert list(StepBatchSampler(33, 12, total_steps=24, seed=5, start_step=start, **options)) == whole[start:]
    parts = [list(StepBatchSampler(33, 4, 24, seed=5, rank=rank, world_size=3, **options)) for rank in range(3)]
    assert [[key for part in parts for key in part[step]] for step in range(24)] == whole
    assert len({draw for step in whole for draw, _ in step}) == 24 * 12


def test_wrong_repeats_and_runs_are_named() -> None:
    with pytest.raises(UserError, match=r"batch size 6 is not made of runs of 4.*multiple"):
        StepBatchSampler(10, 6, 1, seed=0, neighbours=4)
    with pytest.raises(UserError, match=r"repeats has shape \(3,\) for 10 items"):
        StepBatchSampler(10, 5, 1, seed=0, repeats=np.ones(3))
    with pytest.raises(UserError, match="repeated 0 times"):
        StepBatchSampler(2, 1, 1, seed=0, repeats=[1, 0])
