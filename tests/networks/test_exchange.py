"""Weights out to other libraries: their networks give the same features."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from monai.networks.nets import FlexibleUNet, resnet50
from torch import nn
from transformers import SamConfig, SamModel, SamVisionConfig

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import Encoder, build_encoder, export_weights, fill_network, load_encoder

SIZES: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "global_blocks": [1]}
MONAI: dict[str, Any] = {"spatial_dims": 2, "n_input_channels": 3, "num_classes": 5}


@pytest.fixture(scope="module")
def resnet() -> Encoder:
    torch.manual_seed(0)
    encoder = build_encoder("resnet50", 3)
    encoder(torch.randn(4, 3, 64, 64))
    return encoder.eval()


def vit(**options: Any) -> Encoder:
    torch.manual_seed(0)
    encoder = build_encoder("sam_vit_b", 3, **SIZES, **{"image_size": 128, **options})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def sam_model(size: int, **vision: Any) -> SamModel:
    config = SamVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        global_attn_indexes=[1],
        image_size=size,
        num_pos_feats=16,
        **vision,
    )
    return SamModel(SamConfig(vision_config=config)).eval()


class OriginalSam(nn.Module):
    """Nothing but the encoder's tensors, under SAM's own names."""

    def __init__(self, names: dict[str, torch.Size]) -> None:
        super().__init__()
        for name, shape in names.items():
            self.register_buffer(name.replace(".", "/"), torch.zeros(shape))

    def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return {key.replace("/", "."): value for key, value in self.named_buffers()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        for key, value in state_dict.items():
            self.state_dict()[key].copy_(value)


class TestResNet:
    def test_monai_resnet50(self, resnet: Encoder, caplog: pytest.LogCaptureFixture) -> None:
        network = resnet50(**MONAI, conv1_t_stride=2, bias_downsample=False).eval()
        with caplog.at_level(logging.INFO):
            report = fill_network(network, resnet, "torchvision")
        assert (len(report.matched), report.missing) == (318, ("fc.weight", "fc.bias"))
        assert (report.unexpected, report.reshaped) == ((), ())
        assert "318 tensors matched, 2 missing" in caplog.text
        pooled: list[torch.Tensor] = []
        network.avgpool.register_forward_hook(lambda module, inputs, output: pooled.append(inputs[0]))
        x = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            network(x)
            torch.testing.assert_close(pooled[0], resnet(x)[-1])

    def test_flexible_unet(self, resnet: Encoder) -> None:
        network = FlexibleUNet(in_channels=3, out_channels=2, backbone="resnet50", spatial_dims=2).eval()
        decoder = {key: value.clone() for key, value in network.state_dict().items() if not key.startswith("encoder.")}
        report = fill_network(network, resnet, "flexible_unet")
        assert (len(report.matched), report.missing, report.unexpected) == (318, (), ())
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            for found, expected in zip(network.encoder(x), resnet(x), strict=True):
                torch.testing.assert_close(found, expected)
        assert all(torch.equal(network.state_dict()[key], value) for key, value in decoder.items())

    def test_torchvision_names(self, resnet: Encoder) -> None:
        weights = export_weights(resnet, "torchvision")
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        expected = {"conv1.weight", *(f"bn1.{one}" for one in norm)}
        for layer, blocks in enumerate((3, 4, 6, 3), start=1):
            for block in (f"layer{layer}.{number}" for number in range(blocks)):
                for part in (1, 2, 3):
                    expected |= {f"{block}.conv{part}.weight", *(f"{block}.bn{part}.{one}" for one in norm)}
            shortcut = f"layer{layer}.0.downsample"
            expected |= {f"{shortcut}.0.weight", *(f"{shortcut}.1.{one}" for one in norm)}
        assert weights.keys() == expected
        assert len(expected) == 318

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"conv1_t_stride": 1, "bias_downsample": False}, r"stride \(1, 1\), the encoder's 2"),
            ({"conv1_t_stride": 2, "bias_downsample": True}, r"4 missing.*layer1\.0\.downsample\.0\.bias"),
            ({"conv1_t_stride": 2, "bias_downsample": False, "n_input_channels": 1}, r"another shape.*conv1\.weight"),
        ],
    )
    def test_networks_that_would_compute_something_else(
        self, resnet: Encoder, options: dict[str, Any], words: str
    ) -> None:
        network = resnet50(**{**MONAI, **options, "feed_forward": False})
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with pytest.raises(UserError, match=words):
            fill_network(network, resnet, "torchvision")
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class TestSam:
    @pytest.mark.parametrize("absolute_positions", [False, True])
    def test_sam_model_of_transformers(self, absolute_positions: bool) -> None:
        """With the neck every tensor fits, and the image embeddings are the encoder's map."""
        encoder, network = vit(neck=True, absolute_positions=absolute_positions), sam_model(128)
        report = fill_network(network, encoder, "transformers")
        assert len(report.matched) == len(network.vision_encoder.state_dict()) == 14 * 2 + 2 + 6 + 1
        assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())
        x = torch.randn(2, 3, 128, 128)
        with torch.no_grad():
            torch.testing.assert_close(network.get_image_embeddings(x), encoder(x)[0], rtol=1e-5, atol=1e-5)

    def test_another_image_size_and_no_neck(self) -> None:
        encoder, network = vit(), sam_model(320)
        neck = network.vision_encoder.neck.conv1.weight.clone()
        report = fill_network(network, encoder, "transformers")
        assert {key.split(".")[1] for key in report.missing} == {"neck"}
        assert len(report.missing) == 6
        tables = {f"vision_encoder.layers.1.attn.rel_pos_{axis}" for axis in "hw"}
        assert set(report.reshaped) == {*tables, "vision_encoder.pos_embed"}
        assert torch.equal(network.vision_encoder.neck.conv1.weight, neck)
        assert not network.vision_encoder.pos_embed.any()
        x, maps = torch.randn(1, 3, 320, 320), []
        network.vision_encoder.neck.register_forward_hook(lambda module, inputs, output: maps.append(inputs[0]))
        with torch.no_grad():
            network.get_image_embeddings(x)
            torch.testing.assert_close(maps[0].permute(0, 3, 1, 2), encoder(x)[0], rtol=1e-5, atol=1e-5)

    def test_positions_that_find_no_place(self) -> None:
        network = sam_model(128, use_abs_pos=False)
        assert fill_network(network, vit(), "transformers").unexpected == ("vision_encoder.pos_embed",)
        with pytest.raises(UserError, match=r"1 unexpected.*pos_embed"):
            fill_network(network, vit(absolute_positions=True), "transformers")

    def test_another_depth_or_width(self) -> None:
        for network in (sam_model(128, mlp_dim=64), nn.Linear(1, 1)):
            with pytest.raises(UserError, match="another architecture"):
                fill_network(network, vit(), "transformers")

    def test_original_layout(self, tmp_path: Any) -> None:
        """SAM's own names, 177 of them with a depth of 12; and what goes out comes in again."""
        with torch.device("meta"):
            full = build_encoder("sam_vit_b", 3, neck=True)
        names = {key: value.shape for key, value in export_weights(full, "sam").items()}
        assert len(names) == 177
        assert names["image_encoder.blocks.2.attn.rel_pos_h"] == (127, 64)
        assert names["image_encoder.pos_embed"] == (1, 64, 64, 768)
        assert names["image_encoder.neck.2.weight"] == (256, 256, 3, 3)
        encoder = vit()
        weights = export_weights(encoder, "sam")
        network = OriginalSam({key: value.shape for key, value in weights.items()})
        assert len(fill_network(network, encoder, "sam").matched) == len(weights)
        torch.save(network.state_dict(), tmp_path / "sam.pth")
        again = vit()
        nn.init.zeros_(again.layers[0].attn.qkv.weight)
        assert load_encoder(tmp_path / "sam.pth", again).unexpected == ("image_encoder.pos_embed",)
        assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in again.state_dict().items())


def test_layouts_of_another_family() -> None:
    with pytest.raises(UserError, match=r"'resnet18' has no layout 'sam'.*torchvision or flexible_unet"):
        export_weights(build_encoder("resnet18", width=4), "sam")
    with pytest.raises(UserError, match="only this package"):
        export_weights(build_encoder("segresnet_tiny"), "torchvision")
