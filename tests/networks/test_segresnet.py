"""SegResNet encoders: shapes, sizes, and MONAI's names."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SegResNet

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.contract import contract_problems
from lvmmed_monai.networks.registry import build_encoder
from lvmmed_monai.networks.segresnet import segresnet_b, segresnet_tiny


@pytest.mark.parametrize(
    ("name", "channels", "strides"),
    [("segresnet_tiny", (16, 32, 64), (2, 4, 8)), ("segresnet_b", (32, 64, 128, 256), (1, 2, 4, 8))],
)
def test_contract(name: str, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    encoder = build_encoder(name, in_channels=2)
    assert (encoder.name, encoder.channels, encoder.strides) == (name, channels, strides)
    assert contract_problems(encoder, torch.rand(1, 2, 16, 16, 8)) == []


def test_tiny_is_small() -> None:
    assert sum(parameter.numel() for parameter in segresnet_tiny().parameters()) == 360_304


def test_options_rebuild_it() -> None:
    encoder = build_encoder("segresnet_tiny", init_filters=8)
    again = build_encoder(encoder.name, encoder.in_channels, **encoder.options)
    again.load_state_dict(encoder.state_dict())
    with pytest.raises(UserError, match="multiple of 8"):
        segresnet_tiny(init_filters=12)


def test_weights_pass_to_monai() -> None:
    encoder = segresnet_b().eval()
    whole = SegResNet(init_filters=32).eval()
    report = whole.load_state_dict(encoder.state_dict(), strict=False)
    assert report.unexpected_keys == []
    assert not any(key.startswith(("convInit", "down_layers")) for key in report.missing_keys)
    image = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        deepest, skips = whole.encode(image)
        maps = encoder(image)
    assert torch.equal(maps[-1], deepest)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, skips, strict=True))
