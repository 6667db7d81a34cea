"""The segmentation network: any size in, the same size out, in 2D and 3D."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import SegmentationNet
from lvmmed_monai.networks.unet import pad_to_multiple


def small(out_channels: int = 3) -> SegmentationNet:
    return SegmentationNet("resnet18", 1, out_channels, {"width": 8})


@pytest.mark.parametrize("size", [(64, 64), (35, 51), (1, 7), (33, 32)])
def test_output_has_the_size_of_the_input(size: tuple[int, int]) -> None:
    assert small().eval()(torch.randn(2, 1, *size)).shape == (2, 3, *size)


def test_volume_of_the_size_of_a_hippocampus() -> None:
    network = SegmentationNet("segresnet_tiny", 1, 3)
    volume = torch.randn(1, 1, 35, 51, 35)
    logits = network(volume)
    assert logits.shape == (1, 3, 35, 51, 35)
    logits.mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_encoder_that_begins_at_full_resolution_has_no_stem() -> None:
    network = SegmentationNet("segresnet_b", 1, 2, {"init_filters": 8})
    assert network.stem is None
    assert network(torch.randn(1, 1, 17, 16, 9)).shape == (1, 2, 17, 16, 9)


class TestSingleMap:
    """A vision transformer gives one map at stride 16; the finer skips are convolutions of the image."""

    OPTIONS: ClassVar = {"width": 24, "depth": 1, "heads": 2, "image_size": 64}

    def test_any_size_and_every_weight_is_used(self) -> None:
        network = SegmentationNet("sam_vit_b", 1, 3, self.OPTIONS)
        assert [block.conv.conv_1.conv.out_channels for block in network.blocks] == [128, 64, 32, 16]
        logits = network(torch.randn(2, 1, 35, 51))
        assert logits.shape == (2, 3, 35, 51)
        logits.square().mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    @pytest.mark.parametrize(("patch", "skips"), [(2, 1), (8, 3), (12, 3)])
    def test_strides(self, patch: int, skips: int) -> None:
        options = {**self.OPTIONS, "patch_size": patch, "image_size": 4 * patch}
        network = SegmentationNet("sam_vit_b", 1, 2, options)
        assert len(network.blocks) == skips
        assert network(torch.randn(1, 1, 24, 13)).shape == (1, 2, 24, 13)

    def test_edges_finer_than_a_patch_are_learnt(self) -> None:
        """A square whose sides lie within patches."""
        torch.manual_seed(0)
        network = SegmentationNet("sam_vit_b", 1, 2, self.OPTIONS)
        image, label = torch.rand(4, 1, 32, 32) * 0.3, torch.zeros(4, 32, 32, dtype=torch.long)
        for case in range(4):
            image[case, 0, 3 + case : 22, 5:27] += 0.7
            label[case, 3 + case : 22, 5:27] = 1
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(image), label).backward()
            optimizer.step()
        assert (network(image).argmax(1) == label).float().mean() > 0.99


def test_padding_appends_zeros_only() -> None:
    x = torch.rand(1, 1, 3, 5)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 1, 4, 8)
    torch.testing.assert_close(padded[..., :3, :5], x)
    assert padded.sum() == pytest.approx(float(x.sum()), rel=1e-5)
    assert pad_to_multiple(torch.rand(1, 1, 4, 8), 4).shape == (1, 1, 4, 8)


def test_padding_changes_nothing_but_the_border() -> None:
    """An input padded by the caller gives the same logits: the network's own padding is that padding."""
    network = small().eval()
    x = torch.rand(1, 1, 40, 50)
    with torch.no_grad():
        expected = network(pad_to_multiple(x, 32))[..., :40, :50]
        torch.testing.assert_close(network(x), expected)


def test_scripting_and_tracing_keep_the_result_at_other_sizes() -> None:
    network = small().eval()
    other = torch.rand(2, 1, 35, 70)
    with torch.no_grad():
        expected = network(other)
        torch.testing.assert_close(torch.jit.script(network)(other), expected)
        torch.testing.assert_close(torch.jit.trace(network, torch.rand(1, 1, 64, 64))(other), expected)


def test_volumes_can_be_traced() -> None:
    network = SegmentationNet("segresnet_tiny", 1, 2).eval()
    with torch.no_grad():
        traced = torch.jit.trace(network, torch.rand(1, 1, 16, 16, 16))
        other = torch.rand(1, 1, 9, 20, 17)
        torch.testing.assert_close(traced(other), network(other))


def test_it_learns_a_square() -> None:
    torch.manual_seed(0)
    network = SegmentationNet("resnet18", 1, 2, {"width": 8})
    image = torch.rand(4, 1, 32, 32) * 0.3
    label = torch.zeros(4, 32, 32, dtype=torch.long)
    for case in range(4):
        image[case, 0, 4 * case : 4 * case + 12, 10:22] += 0.7
        label[case, 4 * case : 4 * case + 12, 10:22] = 1
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(image), label).backward()
        optimizer.step()
    assert (network(image).argmax(1) == label).float().mean() > 0.99


def test_wrong_number_of_decoder_channels() -> None:
    with pytest.raises(UserError, match=r"expected 5 positive decoder_channels.*got \[8, 8\]"):
        SegmentationNet("resnet18", 1, 2, {"width": 8}, decoder_channels=[8, 8])
    network = SegmentationNet("resnet18", 1, 2, {"width": 8}, decoder_channels=[32, 24, 16, 8, 8])
    assert network.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 2, 32, 32)
