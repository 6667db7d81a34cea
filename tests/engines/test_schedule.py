"""Warm-up and cosine against the closed form."""

from __future__ import annotations

import math

import pytest
import torch

from lvmmed_monai.engines import lr_schedule, warmup_cosine, warmup_halving
from lvmmed_monai.errors import UserError


def rates(warmup: int, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = warmup_cosine(optimizer, warmup, total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_closed_form() -> None:
    expected = [0.5, 1.0, 1.5, 2.0] + [1 + math.cos(math.pi * step / 6) for step in range(6)]
    assert rates(4, 10) == pytest.approx(expected)


def test_without_warmup_it_begins_at_the_top() -> None:
    assert rates(0, 4) == pytest.approx([2.0, 1 + math.cos(math.pi / 4), 1.0, 1 + math.cos(3 * math.pi / 4)])


def test_a_warmup_longer_than_the_run_is_cut() -> None:
    assert rates(20, 4) == pytest.approx([2 / 3, 4 / 3, 2.0, 2.0])


def test_numbers_out_of_range() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(UserError, match="got 0 and 0"):
        warmup_cosine(optimizer, 0, 0)


def test_point_23_published_schedule() -> None:
    """Rate 1e-4, warm-up 5000: the published values, a step earlier in the warm-up, so that no step has rate 0."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    (factor,) = warmup_cosine(optimizer, 5000, 250_000).lr_lambdas
    published = {1: 2e-8, 2500: 5e-5, 5000: 1e-4}
    assert {step: 1e-4 * factor(step - 1) for step in published} == pytest.approx(published)
    assert 1e-4 * factor(5000) == pytest.approx(1e-4)
    assert 1e-4 * factor(127_500) == pytest.approx(5e-5)
    assert factor(250_000) == pytest.approx(0)


def test_four_halvings_against_torch() -> None:
    """Without warm-up it is torch's MultiStepLR with factor a half at 20, 40, 60 and 80 % of the steps."""
    found, expected = [], []
    for make in (
        lambda one: warmup_halving(one, 0, 50),
        lambda one: torch.optim.lr_scheduler.MultiStepLR(one, [10, 20, 30, 40], 0.5),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-3)
        schedule = make(optimizer)
        rates = []
        for _ in range(50):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        found, expected = expected, rates
    assert found == pytest.approx(expected)
    assert expected[-1] == pytest.approx(2e-3 / 16)


@pytest.mark.parametrize("total", [1, 3, 7])
def test_halvings_of_short_runs_and_beyond_the_end(total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    (factor,) = warmup_halving(optimizer, 0, total).lr_lambdas
    assert factor(0) == 1
    assert factor(total) == factor(10 * total) == 1 / 16


def test_warm_up_of_the_halvings() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    (factor,) = warmup_halving(optimizer, 4, 20).lr_lambdas
    assert [factor(step) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5, 0.5])


def test_schedules_by_name() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine, halving = (lr_schedule(name, optimizer, 2, 10) for name in ("cosine", "halving"))
    assert cosine.lr_lambdas[0](6) == pytest.approx(0.5)
    assert halving.lr_lambdas[0](6) == pytest.approx(0.125)
    assert cosine.description != halving.description
    with pytest.raises(UserError, match="unknown schedule 'step'; lr_schedule; choose one of cosine, halving"):
        lr_schedule("step", optimizer, 2, 10)
