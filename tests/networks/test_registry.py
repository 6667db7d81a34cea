"""The contract, kept by every encoder in the registry."""

from __future__ import annotations

import pytest
import torch

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import Encoder, build_encoder, contract_problems, encoder_names

# Too large for a test's memory; they differ from the tested sizes in numbers only.
LARGE = {"swinunetr_l", "swinunetr_h", "sam_vit_l", "sam_vit_h"}
NAMES = [name for name in encoder_names() if name not in LARGE]


@pytest.mark.parametrize("name", NAMES)
def test_every_encoder_keeps_the_contract(name: str) -> None:
    encoder = build_encoder(name, in_channels=2).eval()
    # Two coarsest cells along one axis, so that a swapped or squared shape shows.
    sides = (
        (64, 32) if encoder.spatial_dims == 2 else (2 * encoder.strides[-1], encoder.strides[-1], encoder.strides[-1])
    )
    assert contract_problems(encoder, torch.randn(1, 2, *sides)) == []
    assert (encoder.name, encoder.in_channels) == (name, 2)


@pytest.mark.parametrize("name", NAMES)
def test_options_rebuild_the_encoder(name: str) -> None:
    encoder = build_encoder(name)
    again = build_encoder(encoder.name, encoder.in_channels, **encoder.options)
    shapes = {key: value.shape for key, value in encoder.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    assert again.options == encoder.options


def test_contract_problems_finds_wrong_maps() -> None:
    encoder = build_encoder("resnet18", width=4).eval()
    encoder.channels = (4, 4, 8, 16, 99)
    assert "feature maps" in contract_problems(encoder, torch.randn(1, 1, 32, 32))[0]
    encoder.strides = (2, 4, 4, 16, 32)
    assert "whole factors" in contract_problems(encoder, torch.randn(1, 1, 32, 32))[0]
    assert "expected an Encoder" in contract_problems(torch.nn.Identity(), torch.randn(1, 1, 8, 8))[0]


def test_an_encoder_without_forward_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Encoder must define forward"):
        Encoder()(torch.zeros(1))


def test_unknown_name_and_option_name_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown encoder 'vgg'.*resnet18"):
        build_encoder("vgg")
    with pytest.raises(UserError, match=r"'depth'.*it knows width"):
        build_encoder("resnet18", depth=3)
