"""ResNets against MONAI's own encoder, which has the stride and the names of the published network."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import FlexibleUNet
from monai.networks.nets import resnet50 as plain_resnet50

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import FeatureExtractor, build_encoder


def test_feature_maps_equal_those_of_flexible_unet() -> None:
    ours = build_encoder("resnet50", in_channels=3).eval()
    theirs = FlexibleUNet(in_channels=3, out_channels=2, backbone="resnet50", spatial_dims=2).encoder.eval()
    assert len(ours.state_dict()) == 318
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for mine, expected in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(mine, expected)


def test_monai_default_stride_gives_another_network() -> None:
    """The trap: the same weights load strictly into MONAI's default, whose first stride is 1."""
    ours = build_encoder("resnet50", in_channels=3).eval()
    options = {"feed_forward": False, "shortcut_type": "B", "bias_downsample": False}
    trap = plain_resnet50(spatial_dims=2, n_input_channels=3, **options)
    trap.load_state_dict(ours.state_dict())
    assert trap.conv1.stride == (1, 1)
    assert ours.conv1.stride == (2, 2)


def test_names_are_those_of_torchvision() -> None:
    keys = set(build_encoder("resnet18").state_dict())
    # The layout of torchvision's ResNet-18, written out: 20 convolutions, 20 norms of 5 tensors, no fc.
    expected = {"conv1.weight"} | {f"bn1.{name}" for name in NORM}
    for layer in range(1, 5):
        for block in range(2):
            for part in (1, 2):
                expected |= {f"layer{layer}.{block}.conv{part}.weight"}
                expected |= {f"layer{layer}.{block}.bn{part}.{name}" for name in NORM}
        if layer > 1:
            expected |= {f"layer{layer}.0.downsample.0.weight"} | {f"layer{layer}.0.downsample.1.{n}" for n in NORM}
    assert keys == expected


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_width_scales_channels_and_parameters() -> None:
    narrow = build_encoder("resnet18", width=16)
    assert narrow.channels == (16, 16, 32, 64, 128)
    assert sum(parameter.numel() for parameter in narrow.parameters()) == 700_528
    with pytest.raises(UserError, match="at least 1, got 0"):
        build_encoder("resnet18", width=0)


def test_feature_extractor_gives_the_coarsest_map_and_can_be_scripted() -> None:
    network = FeatureExtractor("resnet18", 1, {"width": 8}).eval()
    x = torch.randn(1, 1, 64, 96)
    assert network(x).shape == (1, 64, 2, 3)
    torch.testing.assert_close(torch.jit.script(network)(x), network.encoder(x)[-1])
