"""SwinUNETR encoders: shapes, published sizes, and MONAI's names."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.contract import contract_problems
from lvmmed_monai.networks.registry import build_encoder
from lvmmed_monai.networks.swin import SwinUNETREncoder, swinunetr_b, swinunetr_tiny


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_tiny_contract_on_small_crops() -> None:
    encoder = build_encoder("swinunetr_tiny", in_channels=1)
    assert encoder.channels == (12, 12, 24, 48, 96)
    assert encoder.strides == (1, 2, 4, 8, 16)
    assert contract_problems(encoder, torch.rand(2, 1, 16, 16, 16)) == []
    assert [tuple(one.shape[2:]) for one in encoder(torch.rand(1, 1, 24, 24, 24))][-1] == (2, 2, 2)
    assert parameters(encoder) == 469_818


def test_options_rebuild_it() -> None:
    encoder = build_encoder("swinunetr_tiny", window_size=2)
    build_encoder(encoder.name, encoder.in_channels, **encoder.options).load_state_dict(encoder.state_dict())


def test_refuses_crops_that_instance_norm_cannot_take() -> None:
    with pytest.raises(UserError, match="too small"):
        swinunetr_tiny()(torch.rand(1, 1, 8, 8, 8))
    with pytest.raises(UserError, match="feature_size"):
        SwinUNETREncoder("swin", feature_size=20)


def test_b_has_the_published_sizes_and_fills_swinunetr() -> None:
    encoder = swinunetr_b()
    assert parameters(encoder) == 53_164_146
    assert parameters(encoder.swinViT) == 18_637_362
    state = encoder.state_dict()
    assert len(state) == 145
    assert sum(key.startswith("swinViT.") for key in state) == 134
    for block, tensors in {"encoder1": 3, "encoder2": 2, "encoder3": 2, "encoder4": 2, "encoder10": 2}.items():
        assert sum(key.startswith(f"{block}.") for key in state) == tensors
    # 24 F pooled channels, without the transformer's own map at 1/16.
    assert sum(encoder.channels[index] for index in encoder.pooled_maps) == 24 * 48
    assert encoder.channels == (48, 48, 96, 192, 384, 768)
    whole = SwinUNETR(in_channels=1, out_channels=21, feature_size=48, use_v2=True)
    assert len(whole.state_dict()) == 167
    report = whole.load_state_dict(state, strict=False)
    assert report.unexpected_keys == []
    assert len(report.missing_keys) == 22
    assert all(key.startswith(("decoder", "out.")) for key in report.missing_keys)


@pytest.mark.slow
def test_maps_equal_those_inside_swinunetr() -> None:
    torch.manual_seed(0)
    encoder = SwinUNETREncoder("small", feature_size=12, window_size=2).eval()
    whole = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, window_size=2, use_v2=True).eval()
    whole.load_state_dict(encoder.state_dict(), strict=False)
    image = torch.rand(1, 1, 64, 32, 32)
    with torch.no_grad():
        maps = encoder(image)
        hidden = whole.swinViT(image, True)
        expected = [whole.encoder1(image), whole.encoder2(hidden[0]), whole.encoder3(hidden[1])]
        expected += [whole.encoder4(hidden[2]), hidden[3], whole.encoder10(hidden[4])]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, expected, strict=True))
    assert [one.shape[2] for one in maps] == [64 // stride for stride in encoder.strides]
