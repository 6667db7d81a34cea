"""Balanced segmentation loss."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from torch.nn import functional as F

from lvmmed_monai.errors import UserError
from lvmmed_monai.losses.segmentation import BalancedDiceCELoss, balanced_cross_entropy


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 5, 3, generator=generator, dtype=torch.float64)
    target = torch.zeros(2, 1, 6, 5, 3, dtype=torch.uint8)
    target[0, 0, :3], target[1, 0, 0, 0] = 1, 2  # class 3 is absent
    return logits, target


def test_without_balance_it_is_monais_dice_and_cross_entropy(batch) -> None:
    expected = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(*batch)
    torch.testing.assert_close(BalancedDiceCELoss(power=0)(*batch).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_balance_agrees_with_a_loop(batch, power: float) -> None:
    logits, target = batch
    total, weight_sum = 0.0, 0.0
    for item in range(2):
        for place in torch.cartesian_prod(torch.arange(6), torch.arange(5), torch.arange(3)).tolist():
            number = int(target[item, 0][tuple(place)])
            weight = (target.numel() / int((target == number).sum())) ** power
            scores = logits[(item, slice(None), *place)]
            total += weight * float(scores.logsumexp(0) - scores[number])
            weight_sum += weight
    assert float(balanced_cross_entropy(logits, target, power)) == pytest.approx(total / weight_sum, rel=1e-5)


def test_full_balance_is_the_mean_over_present_classes(batch) -> None:
    logits, target = batch
    each = F.cross_entropy(logits, target[:, 0].long(), reduction="none")
    means = [each[target[:, 0] == number].mean() for number in (0, 1, 2)]
    torch.testing.assert_close(
        balanced_cross_entropy(logits, target, 1.0).double(), sum(means) / 3, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 4, 4, 4)], ids=["2d", "3d"])
def test_gradient_is_finite_where_only_background_is_there(shape) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    loss = BalancedDiceCELoss()(logits, torch.zeros(shape[0], 1, *shape[2:], dtype=torch.uint8))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_power_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match="within 0 and 1"):
        BalancedDiceCELoss(power=1.5)
