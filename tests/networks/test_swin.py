"""SwinUNETR encoders: shapes, published sizes, and MONAI's names."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SwinUNETR

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import load_encoder, save_encoder
from lvmmed_monai.networks.contract import contract_problems
from lvmmed_monai.networks.registry import build_encoder
from lvmmed_monai.networks.swin import SwinUNETREncoder, swinunetr_tiny
from lvmmed_monai.networks.swin_unetr import SwinUNETRNet


@dataclass(frozen=True)
class Size:
    """A published network: feature size, parameters and bytes."""

    name: str
    width: int
    encoder: int
    transformer: int
    network: int
    encoder_bytes: int
    network_bytes: int


PUBLISHED_SIZES = [
    Size("swinunetr_b", 48, 53_164_146, 18_637_362, 72_762_999, 220_186_120, 298_581_532),
    Size("swinunetr_l", 96, 211_999_362, 73_894_914, 290_392_695, 855_526_984, 1_169_100_316),
    Size("swinunetr_h", 192, 847_276_194, 294_863_778, 1_160_845_431, 3_396_634_312, 4_650_911_260),
]


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def payload(state: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


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


def test_a_file_pretrained_with_checkpointing_loads_without_it(tmp_path: Path) -> None:
    """Recomputed activations change no result, and so no file is refused for them."""
    with_it, without = (
        SwinUNETREncoder("small", feature_size=12, window_size=2, use_checkpoint=use) for use in (True, False)
    )
    save_encoder(tmp_path / "encoder.pt", with_it, input={}, provenance={})
    assert load_encoder(tmp_path / "encoder.pt", without).share == 1
    assert with_it.options == without.options


def test_refuses_crops_that_instance_norm_cannot_take() -> None:
    with pytest.raises(UserError, match="too small"):
        swinunetr_tiny()(torch.rand(1, 1, 8, 8, 8))
    with pytest.raises(UserError, match="feature_size"):
        SwinUNETREncoder("swin", feature_size=20)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules without storage. MONAI reads a linspace at construction, which must therefore be real."""
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("size", PUBLISHED_SIZES, ids=lambda size: size.name)
class TestPublishedSizes:
    def test_point_08_parameters_and_pooled_width(self, size: Size) -> None:
        encoder = build_encoder(size.name)
        assert isinstance(encoder, SwinUNETREncoder)
        assert all(parameter.is_meta for parameter in encoder.parameters())
        assert (parameters(encoder), parameters(encoder.swinViT)) == (size.encoder, size.transformer)
        assert encoder.channels == tuple(size.width * factor for factor in (1, 1, 2, 4, 8, 16))
        # 24 F pooled channels, without the transformer's own map at 1/16.
        assert sum(encoder.channels[index] for index in encoder.pooled_maps) == 24 * size.width
        assert parameters(SwinUNETRNet(size.name, out_channels=21)) == size.network

    def test_point_09_tensors_keys_and_bytes(self, size: Size) -> None:
        network = SwinUNETRNet(size.name, out_channels=21)
        state, whole = network.encoder.state_dict(), network.monai_state_dict()
        assert (len(state), len(whole)) == (145, 167)
        assert (payload(state), payload(whole)) == (size.encoder_bytes, size.network_bytes)
        assert sum(tensor.dtype == torch.int64 for tensor in state.values()) == 8
        groups = Counter(key.split(".")[0] for key in state)
        assert groups == {"swinViT": 134, "encoder1": 3, "encoder2": 2, "encoder3": 2, "encoder4": 2, "encoder10": 2}
        added = whole.keys() - state.keys()
        assert len(added) == 22
        assert all(key.startswith(("decoder", "out.conv.conv.")) for key in added)
        theirs = SwinUNETR(in_channels=1, out_channels=21, feature_size=size.width, use_v2=True).state_dict()
        assert {key: value.shape for key, value in whole.items()} == {key: one.shape for key, one in theirs.items()}


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
