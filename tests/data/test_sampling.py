"""The order of training items: complete, repeatable, divided, resumable."""

from __future__ import annotations

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
