"""The full SwinUNETR on our encoder, against MONAI's own class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import SwinUNETRNet

SMALL: dict[str, Any] = {"feature_size": 12, "window_size": 2}


def tiny(out_channels: int = 3) -> SwinUNETRNet:
    torch.manual_seed(0)
    return SwinUNETRNet("swinunetr_tiny", 1, out_channels, SMALL).eval()


def test_has_the_tensors_of_monai() -> None:
    network = SwinUNETRNet("swinunetr_b", out_channels=21)
    theirs = SwinUNETR(in_channels=1, out_channels=21, feature_size=48, use_v2=True)
    state, expected = network.monai_state_dict(), theirs.state_dict()
    assert len(state) == 167
    assert {key: value.shape for key, value in state.items()} == {key: one.shape for key, one in expected.items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == 72_762_999


def test_logits_equal_those_of_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    from lvmmed_monai.networks import swin

    monkeypatch.setattr(swin, "swinunetr_b", lambda in_channels: swin.SwinUNETREncoder("small", in_channels, **SMALL))
    torch.manual_seed(0)
    network = SwinUNETRNet("swinunetr_b", 2, 3).eval()
    theirs = SwinUNETR(in_channels=2, out_channels=3, use_v2=True, **SMALL).eval()
    theirs.load_state_dict(network.monai_state_dict())
    image = torch.rand(1, 2, 64, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(image), theirs(image), rtol=0, atol=1e-5)


def test_three_stages_take_any_size_and_train_every_parameter() -> None:
    network = tiny()
    logits = network(torch.rand(2, 1, 17, 20, 16))
    assert logits.shape == (2, 3, 17, 20, 16)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    with pytest.raises(UserError, match="four stages"):
        network.monai_state_dict()


def test_decoding_detached_maps_gives_the_same_logits_and_the_encoder_no_gradient() -> None:
    network = tiny()
    image = torch.rand(1, 1, 16, 16, 16)
    maps = [one.detach() for one in network.encoder(image)]
    logits = network.decode(maps)
    torch.testing.assert_close(logits, network(image))
    logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in network.encoder.parameters())
    assert all(parameter.grad is not None for parameter in network.decoder1.parameters())


def test_can_be_traced() -> None:
    network = tiny()
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        traced = torch.jit.trace(network, image)
        other = torch.rand_like(image)
        torch.testing.assert_close(traced(other), network(other))


def test_refuses_other_encoders() -> None:
    with pytest.raises(UserError, match="does not fit the encoder 'segresnet_tiny'"):
        SwinUNETRNet("segresnet_tiny")
