"""Weights of SAM, LVM-Med, transformers and torchvision: files of their layouts, made of random numbers."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamConfig, SamModel, SamVisionConfig

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import (
    Encoder,
    FeatureExtractor,
    build_encoder,
    load_encoder,
    load_pretrained,
    save_encoder,
)

WIDTH, DEPTH, HEADS, SIZE = 32, 4, 2, 320
OPTIONS: dict[str, Any] = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "image_size": SIZE}
GLOBAL = (0, 1, 2, 3)
BLOCK = ("norm1.weight", "norm1.bias", "attn.rel_pos_h", "attn.rel_pos_w", "attn.qkv.weight", "attn.qkv.bias",
         "attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.lin1.weight", "mlp.lin1.bias",
         "mlp.lin2.weight", "mlp.lin2.bias")  # fmt: skip
NECK = ("neck.0.weight", "neck.1.weight", "neck.1.bias", "neck.2.weight", "neck.3.weight", "neck.3.bias")


def vit(seed: int, in_channels: int = 3, **options: Any) -> Encoder:
    torch.manual_seed(seed)
    encoder = build_encoder("sam_vit_b", in_channels, **{**OPTIONS, **options})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def sam_names(encoder: Encoder) -> dict[str, Tensor]:
    """The weights as SAM names them, name by name, with a neck and a table of positions beside."""
    state = encoder.state_dict()
    names = {"patch_embed.proj.weight": "patch_embed.projection.weight",
             "patch_embed.proj.bias": "patch_embed.projection.bias"}  # fmt: skip
    for number in range(DEPTH):
        names |= {f"blocks.{number}.{one}": f"layers.{number}.{one.replace('norm', 'layer_norm')}" for one in BLOCK}
    found = {original: state[present] for original, present in names.items()}
    assert len(found) == len(state)
    shapes = ((256, WIDTH, 1, 1), (256,), (256,), (256, 256, 3, 3), (256,), (256,))
    found |= {name: torch.randn(shape) for name, shape in zip(NECK, shapes, strict=True)}
    return {**found, "pos_embed": torch.randn(1, SIZE // 16, SIZE // 16, WIDTH)}


def same(a: Encoder, b: Encoder) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


class TestSam:
    def test_file_of_sam(self, tmp_path: Path) -> None:
        source, into = vit(1), vit(2)
        content = {f"image_encoder.{key}": value for key, value in sam_names(source).items()}
        decoder = ("mask_decoder.transformer.layers.0.norm1.weight", "prompt_encoder.no_mask_embed.weight")
        torch.save({**content, **dict.fromkeys(decoder, torch.zeros(3))}, tmp_path / "sam_vit.pth")
        report = load_encoder(tmp_path / "sam_vit.pth", into)
        assert same(into, source)
        assert (len(report.matched), report.missing, report.reshaped) == (14 * DEPTH + 2, (), ())
        beside = {"image_encoder.pos_embed", *(f"image_encoder.{one}" for one in NECK), *decoder}
        assert set(report.unexpected) == beside

    def test_all_177_tensors_of_the_encoder_of_sam(self, tmp_path: Path) -> None:
        source = sam_names(vit(1))
        torch.save({f"image_encoder.{key}": value for key, value in source.items()}, tmp_path / "sam_vit.pth")
        into = vit(2, neck=True, absolute_positions=True)
        report = load_encoder(tmp_path / "sam_vit.pth", into)
        assert len(report.matched) == len(source) == 14 * DEPTH + 2 + 6 + 1
        assert (report.missing, report.unexpected) == ((), ())
        assert torch.equal(into.pos_embed, source["pos_embed"])
        assert torch.equal(into.neck.conv2.weight, source["neck.2.weight"])

    @pytest.mark.parametrize("neck", [False, True])
    def test_layout_of_lvm_med(self, tmp_path: Path, neck: bool) -> None:
        """176 bare names of SAM at a depth of 12: with a neck, without absolute positions."""
        source, into = vit(1), vit(2, neck=neck)
        content = {key: value for key, value in sam_names(source).items() if key != "pos_embed"}
        torch.save(content, tmp_path / "vit.pth")
        report = load_encoder(tmp_path / "vit.pth", into)
        assert all(torch.equal(into.state_dict()[key], value) for key, value in source.state_dict().items())
        assert report.missing == ()
        assert set(report.unexpected) == (set() if neck else set(NECK))

    @pytest.mark.parametrize("safetensors", [False, True])
    def test_sam_model_of_transformers(self, tmp_path: Path, safetensors: bool) -> None:
        vision = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "image_size": SIZE}
        config = SamVisionConfig(**vision, global_attn_indexes=list(GLOBAL), num_pos_feats=16, initializer_range=0.2)
        model, into = SamModel(SamConfig(vision_config=config)).eval(), vit(2, neck=True, absolute_positions=True)
        nn.init.normal_(model.vision_encoder.pos_embed)
        if safetensors:
            model.save_pretrained(tmp_path)
            path = tmp_path / "model.safetensors"
        else:
            path = tmp_path / "pytorch_model.bin"
            torch.save(model.state_dict(), path)
        report = load_encoder(path, into)
        assert (len(report.matched), report.missing) == (14 * DEPTH + 9, ())
        assert all(not key.startswith("vision_encoder.") for key in report.unexpected)
        assert any(key.startswith("mask_decoder.") for key in report.unexpected)
        x = torch.randn(1, 3, SIZE, SIZE)
        with torch.no_grad():
            torch.testing.assert_close(into(x)[0], model.get_image_embeddings(x), rtol=1e-5, atol=1e-5)

    def test_damaged_safetensors(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"no weights")
        with pytest.raises(UserError, match="cannot be read"):
            load_encoder(tmp_path / "model.safetensors", vit(1))

    def test_our_own_encoder_file_and_model_weights(self, tmp_path: Path) -> None:
        source = vit(1)
        save_encoder(tmp_path / "encoder.pt", source, input={}, provenance={"method": "lvm_med"})
        model = FeatureExtractor("sam_vit_b", 3, OPTIONS)
        report = load_pretrained(model, tmp_path / "encoder.pt")
        assert report is not None
        assert str(report) == f"{14 * DEPTH + 2} tensors matched, 0 missing, 0 unexpected, 0 reshaped"
        torch.save(model.state_dict(), tmp_path / "model.pt")
        into = vit(2)
        load_encoder(tmp_path / "model.pt", into)
        assert same(into, source)

    @pytest.mark.parametrize("ours", [False, True])
    @pytest.mark.parametrize("size", [64, 512])
    def test_another_image_size(self, tmp_path: Path, size: int, ours: bool) -> None:
        """Tables of relative positions are interpolated; at the new size the maps are the same."""
        source, into = vit(1, global_blocks=[1]), vit(2, global_blocks=[1], image_size=size)
        if ours:
            save_encoder(tmp_path / "weights.pt", source, input={}, provenance={})
        else:
            torch.save(dict(source.state_dict()), tmp_path / "weights.pt")
        report = load_encoder(tmp_path / "weights.pt", into)
        assert (report.missing, report.unexpected) == ((), ())
        assert report.reshaped == ("layers.1.attn.rel_pos_h", "layers.1.attn.rel_pos_w")
        table, rows = source.state_dict()["layers.1.attn.rel_pos_h"], size // 8 - 1
        expected = F.interpolate(table.T[None], size=rows, mode="linear")[0].T
        torch.testing.assert_close(into.state_dict()["layers.1.attn.rel_pos_h"], expected)
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(into(x)[0], source(x)[0], rtol=1e-4, atol=1e-4)

    def test_absolute_positions_of_another_image_size(self, tmp_path: Path) -> None:
        source, into = vit(1, absolute_positions=True), vit(2, absolute_positions=True, image_size=64)
        nn.init.constant_(source.pos_embed, 0.3)
        torch.save(dict(source.state_dict()), tmp_path / "weights.pt")
        assert "pos_embed" in load_encoder(tmp_path / "weights.pt", into).reshaped
        torch.testing.assert_close(into.pos_embed, torch.full((1, 4, 4, WIDTH), 0.3), rtol=1e-4, atol=1e-5)

    def test_grey_images(self, tmp_path: Path) -> None:
        source, into = vit(1), vit(2, in_channels=1)
        torch.save({f"image_encoder.{key}": value for key, value in sam_names(source).items()}, tmp_path / "sam.pth")
        assert load_encoder(tmp_path / "sam.pth", into).reshaped == ("patch_embed.projection.weight",)
        x = torch.randn(1, 1, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(into(x)[0], source(x.expand(1, 3, 64, 64))[0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"depth": 3}, "its options differ: depth, global_blocks"),
            ({"global_blocks": [1]}, "its options differ: global_blocks"),
            ({"absolute_positions": True}, "its options differ: absolute_positions"),
            ({"width": 64}, "another architecture"),
        ],
    )
    def test_other_architectures_are_refused(self, tmp_path: Path, options: dict[str, Any], words: str) -> None:
        save_encoder(tmp_path / "encoder.pt", vit(1), input={}, provenance={})
        with pytest.raises(UserError, match=words):
            load_encoder(tmp_path / "encoder.pt", vit(2, **options))

    def test_tables_of_windows_are_not_stretched(self, tmp_path: Path) -> None:
        """A file whose block 3 attends to the whole map does not fit an encoder where it attends to windows."""
        source, into = vit(1), vit(2, global_blocks=[0, 1, 2])
        torch.save(sam_names(source), tmp_path / "sam.pth")
        report = load_encoder(tmp_path / "sam.pth", into)
        assert report.mismatched == ("layers.3.attn.rel_pos_h", "layers.3.attn.rel_pos_w")


class TestTorchvision:
    """ResNet-50 under torchvision's names."""

    @staticmethod
    def resnet(seed: int) -> Encoder:
        torch.manual_seed(seed)
        encoder = build_encoder("resnet50", 3, width=8)
        for buffer in encoder.buffers():
            buffer += 1
        return encoder

    def test_file_of_imagenet(self, tmp_path: Path) -> None:
        source, into = self.resnet(1), self.resnet(2)
        content = {**source.state_dict(), "fc.weight": torch.zeros(1000, 256), "fc.bias": torch.zeros(1000)}
        torch.save(content, tmp_path / "resnet50.pth")
        report = load_encoder(tmp_path / "resnet50.pth", into)
        assert same(into, source)
        assert (len(report.matched), report.missing, report.unexpected) == (318, (), ("fc.weight", "fc.bias"))

    def test_file_of_lvm_med(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Bare names without fc; its licences are named where the file has its name."""
        source = self.resnet(1)
        torch.save(dict(source.state_dict()), tmp_path / "lvmmed_resnet.torch")
        with caplog.at_level(logging.WARNING):
            assert len(load_encoder(tmp_path / "lvmmed_resnet.torch", self.resnet(2)).matched) == 318
        assert re.search(r"lvmmed_resnet\.torch.*forbid commercial use", caplog.text)
        caplog.clear()
        (tmp_path / "lvmmed_resnet.torch").rename(tmp_path / "mine.pt")
        load_encoder(tmp_path / "mine.pt", self.resnet(2))
        assert "commercial" not in caplog.text
