"""The full SwinUNETR on our encoder, against MONAI's own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import SwinUNETRNet, load_swinunetr, save_encoder, swin

SMALL: dict[str, Any] = {"feature_size": 12, "window_size": 2}


def tiny(out_channels: int = 3) -> SwinUNETRNet:
    torch.manual_seed(0)
    return SwinUNETRNet("swinunetr_tiny", 1, out_channels, SMALL).eval()


def small(
    monkeypatch: pytest.MonkeyPatch, in_channels: int = 1, out_channels: int = 3, order: str | None = None
) -> SwinUNETRNet:
    """Four stages, but narrow."""
    monkeypatch.setattr(
        swin,
        "swinunetr_b",
        lambda in_channels, **options: swin.SwinUNETREncoder("small", in_channels, **SMALL, **options),
    )
    torch.manual_seed(0)
    return SwinUNETRNet("swinunetr_b", in_channels, out_channels, {"patch_merging": order}).eval()


def test_logits_equal_those_of_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small(monkeypatch, in_channels=2)
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
        traced = torch.jit.trace(network, image, check_trace=False)
        other = torch.rand_like(image)
        torch.testing.assert_close(traced(other), network(other))


def test_refuses_other_encoders() -> None:
    with pytest.raises(UserError, match="does not fit the encoder 'segresnet_tiny'"):
        SwinUNETRNet("segresnet_tiny")


class TestLoading:
    @pytest.mark.parametrize("order", ["monai_1.5", "monai_1.4"])
    def test_point_35_from_an_encoder_145_tensors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
    ) -> None:
        source = small(monkeypatch, order=order)
        save_encoder(tmp_path / "encoder.pt", source.encoder, input={}, provenance={})
        into = small(monkeypatch)
        report = load_swinunetr(tmp_path / "encoder.pt", into)
        assert (len(report.matched), len(report.missing), report.mismatched) == (145, 22, ())
        assert all(name.startswith(("decoder", "out.")) for name in report.missing)
        assert into.encoder.options == source.encoder.options
        image = torch.rand(1, 1, 64, 32, 32)
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(into.encoder(image), source.encoder(image), strict=True))

    @pytest.mark.parametrize(("classes", "filled"), [(3, 167), (5, 165)])
    def test_point_35_from_a_whole_network_all_or_all_but_the_classes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, filled: int
    ) -> None:
        """A foreign file: MONAI's own names, the old order."""
        source = small(monkeypatch, order="monai_1.4")
        torch.save({"state_dict": source.monai_state_dict()}, tmp_path / "omni.pt")
        into = small(monkeypatch, out_channels=classes)
        report = load_swinunetr(tmp_path / "omni.pt", into)
        assert len(report.matched) == filled
        expected = () if filled == 167 else ("out.conv.conv.weight", "out.conv.conv.bias")
        assert report.missing == report.mismatched == expected
        assert into.encoder.options["patch_merging"] == "monai_1.4"
        for name, value in source.monai_state_dict().items():
            assert name in expected or torch.equal(into.monai_state_dict()[name], value)

    def test_our_own_state_dict_into_monai(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = small(monkeypatch, order="monai_1.4")
        torch.save(source.state_dict(), tmp_path / "model.pt")
        theirs = SwinUNETR(in_channels=1, out_channels=3, use_v2=True, **SMALL).eval()
        assert len(load_swinunetr(tmp_path / "model.pt", theirs).matched) == 167
        image = torch.rand(1, 1, 64, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(theirs(image), source(image), rtol=0, atol=1e-5)

    def test_another_width_is_refused_and_nothing_changes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = swin.SwinUNETREncoder("wide", feature_size=24, window_size=2, patch_merging="monai_1.4")
        save_encoder(tmp_path / "encoder.pt", other, input={}, provenance={})
        into = small(monkeypatch)
        before = {key: value.clone() for key, value in into.state_dict().items()}
        with pytest.raises(UserError, match=r"not of this SwinUNETR.*of another shape"):
            load_swinunetr(tmp_path / "encoder.pt", into)
        assert into.encoder.options["patch_merging"] == "monai_1.5"
        assert all(torch.equal(value, before[key]) for key, value in into.state_dict().items())
