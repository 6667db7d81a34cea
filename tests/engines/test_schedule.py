"""Warm-up and cosine against the closed form."""

from __future__ import annotations

import math

import pytest
import torch

from lvmmed_monai.engines import warmup_cosine
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
