"""SAM's image encoder: against transformers' own, and against a plain account of it under SAM's own names."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from lvmmed_monai.engines.memory import step_memory
from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import Encoder, build_encoder
from lvmmed_monai.networks.sam import original_name, transformers_name

WIDTH, HEADS = 24, 2
SMALL: dict[str, Any] = {"width": WIDTH, "depth": 3, "heads": HEADS, "global_blocks": [1]}


def small(seed: int = 0, in_channels: int = 3, **options: Any) -> Encoder:
    """A small encoder in which no table and no bias is zero."""
    torch.manual_seed(seed)
    encoder = build_encoder("sam_vit_b", in_channels, **{**SMALL, "image_size": 320, **options})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def theirs(size: int, *, absolute_positions: bool) -> SamVisionEncoder:
    config = SamVisionConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        global_attn_indexes=[1],
        image_size=size,
        use_abs_pos=absolute_positions,
    )
    return SamVisionEncoder(config).eval()


# -- a plain account of the encoder, of the paper and of SAM's names ---------------------------------------


def table_rows(table: Tensor, side: int) -> Tensor:
    """(side, side, C): row i, j of the table is that of the offset i - j."""
    rows = F.interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T
    return torch.stack([torch.stack([rows[i - j + side - 1] for j in range(side)]) for i in range(side)])


def attention(x: Tensor, weights: dict[str, Tensor], block: str) -> Tensor:
    """(H, W, C) tokens of one window, position by position."""
    height, width, channels = x.shape
    tokens = x.reshape(-1, channels)
    query, key, value = (tokens @ weights[f"{block}.attn.qkv.weight"].T + weights[f"{block}.attn.qkv.bias"]).chunk(3, 1)
    high = table_rows(weights[f"{block}.attn.rel_pos_h"], height)
    wide = table_rows(weights[f"{block}.attn.rel_pos_w"], width)
    size, heads = channels // HEADS, []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        q, k, v = query[:, part], key[:, part], value[:, part]
        rows = []
        for place in range(height * width):
            i, j = divmod(place, width)
            vertical = (high[i] @ q[place])[:, None].expand(height, width)
            horizontal = (wide[j] @ q[place])[None, :].expand(height, width)
            score = (k @ q[place]) / math.sqrt(size) + (vertical + horizontal).reshape(-1)
            rows.append(score.softmax(0) @ v)
        heads.append(torch.stack(rows))
    found = torch.cat(heads, dim=1) @ weights[f"{block}.attn.proj.weight"].T + weights[f"{block}.attn.proj.bias"]
    return found.reshape(height, width, channels)


def block_of_sam(x: Tensor, weights: dict[str, Tensor], block: str, window: int) -> Tensor:
    """(H, W, C) through one block; window 0 is the whole map."""
    height, width, channels = x.shape
    normed = F.layer_norm(x, (channels,), weights[f"{block}.norm1.weight"], weights[f"{block}.norm1.bias"], 1e-6)
    found = torch.zeros_like(x)
    side = window or max(height, width)
    for top in range(0, height, side):
        for left in range(0, width, side):
            inside = normed[top : top + side, left : left + side]
            whole = inside
            if window:
                whole = torch.zeros(window, window, channels)
                whole[: inside.shape[0], : inside.shape[1]] = inside
            result = attention(whole, weights, block)[: inside.shape[0], : inside.shape[1]]
            found[top : top + side, left : left + side] = result
    x = x + found
    normed = F.layer_norm(x, (channels,), weights[f"{block}.norm2.weight"], weights[f"{block}.norm2.bias"], 1e-6)
    hidden = F.gelu(normed @ weights[f"{block}.mlp.lin1.weight"].T + weights[f"{block}.mlp.lin1.bias"])
    return x + hidden @ weights[f"{block}.mlp.lin2.weight"].T + weights[f"{block}.mlp.lin2.bias"]


def sam_map(image: Tensor, weights: dict[str, Tensor], global_blocks: set[int], depth: int) -> Tensor:
    """(C, H, W) map before the neck of a (channels, H, W) image, without absolute positions."""
    patches = F.conv2d(image[None], weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=16)
    x = patches[0].permute(1, 2, 0)
    for number in range(depth):
        x = block_of_sam(x, weights, f"blocks.{number}", 0 if number in global_blocks else 14)
    return x.permute(2, 0, 1)


# -- what it computes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute_positions", [False, True])
def test_features_are_those_of_transformers(absolute_positions: bool) -> None:
    """320 pixels: 20 patches a side, more than a window, so that windows are padded."""
    ours = small(neck=True, absolute_positions=absolute_positions)
    reference = theirs(320, absolute_positions=absolute_positions)
    assert ours.state_dict().keys() == reference.state_dict().keys()
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 320, 320)
    with torch.no_grad():
        (found,) = ours(x)
        expected = reference(x).last_hidden_state
    assert found.shape == (2, 256, 20, 20)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (32, 240), (272, 48)])
def test_features_are_those_of_the_plain_account(size: tuple[int, int]) -> None:
    """At sizes that are not those of the tables: fewer and more patches than a window, high and wide images."""
    encoder = small()
    weights = {original_name(key): value for key, value in encoder.state_dict().items()}
    assert {"patch_embed.proj.weight", "blocks.0.norm1.bias", "blocks.2.mlp.lin2.bias"} <= weights.keys()
    image = torch.randn(3, *size)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image[None])[0][0], sam_map(image, weights, {1}, 3), rtol=1e-4, atol=1e-4)


def test_absolute_positions_are_interpolated_to_the_input() -> None:
    encoder = small(absolute_positions=True)
    nn.init.constant_(encoder.pos_embed, 0.7)
    without = small()
    without.load_state_dict({key: value for key, value in encoder.state_dict().items() if key != "pos_embed"})
    x = torch.randn(1, 3, 48, 96)
    with torch.no_grad():
        # A constant table stays constant on any grid and is then a bias of the patches.
        without.patch_embed.projection.bias += 0.7
        torch.testing.assert_close(encoder(x)[0], without(x)[0])
        nn.init.normal_(encoder.pos_embed)
        assert not torch.allclose(encoder(x)[0], without(x)[0])


def test_recomputing_activations_changes_no_gradient() -> None:
    x, gradients = torch.randn(2, 3, 64, 64), []
    for recompute in (False, True):
        encoder = small(use_checkpoint=recompute)
        encoder(x)[0].square().mean().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for kept, again in zip(*gradients, strict=True):
        assert kept.abs().max() > 0
        torch.testing.assert_close(again, kept)


def test_recomputing_activations_saves_memory() -> None:
    def step(batch: Any, network: Any) -> dict[str, Tensor]:
        return {"loss": network(batch["image"])[0].sum()}

    needed = []
    for recompute in (False, True):
        encoder = small(depth=6, image_size=64, use_checkpoint=recompute)
        optimizer = torch.optim.AdamW(encoder.parameters())
        needed.append(step_memory(step, {"image": torch.randn(4, 3, 64, 64)}, encoder, optimizer).step)
    assert needed[1] < 0.5 * needed[0]


def test_reduced_precision() -> None:
    """bfloat16 keeps 8 bits: maps and gradients agree with float32 to a few percent of their size."""
    x, found = torch.randn(2, 3, 80, 80), []
    for reduced in (False, True):
        encoder = small(absolute_positions=True, use_checkpoint=True)
        for parameter in encoder.parameters():
            parameter.data *= 0.5
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced):
            (maps,) = encoder(x)
        maps.float().square().mean().backward()
        found.append([maps.detach().float(), *(one.grad for one in encoder.parameters())])
    for exact, near in zip(*found, strict=True):
        assert torch.linalg.norm(near - exact) < 0.05 * torch.linalg.norm(exact)


def test_random_weights_spread_the_features() -> None:
    """transformers' own, of deviation 1e-10, give every image the same map."""
    torch.manual_seed(0)
    encoder = build_encoder("sam_vit_b", 1, width=48, depth=4, heads=3)
    with torch.no_grad():
        pooled = encoder(torch.rand(8, 1, 64, 64))[0].mean(dim=(2, 3))
    assert pooled.std(dim=0).mean() > 0.02
    assert not any(value.any() for key, value in encoder.named_parameters() if "rel_pos" in key)


# -- what it is made of ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("sam_vit_b", {"absolute_positions": True}, 88_883_456),
        ("sam_vit_b", {}, 85_737_728),
        ("sam_vit_b", {"neck": True}, 86_525_184),
        ("sam_vit_b", {"absolute_positions": True, "neck": True}, 89_670_912),
        ("sam_vit_l", {"absolute_positions": True, "neck": True}, 308_278_272),
        ("sam_vit_h", {"absolute_positions": True, "neck": True}, 637_026_048),
    ],
)
def test_number_of_parameters(name: str, options: dict[str, bool], count: int) -> None:
    with torch.device("meta"):
        encoder = build_encoder(name, 3, **options)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count
    assert len(encoder.state_dict()) == 14 * encoder.options["depth"] + 2 + sum(
        {"absolute_positions": 1, "neck": 6}[option] for option in options
    )


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("sam_vit_b", [2, 5, 8, 11]), ("sam_vit_l", [5, 11, 17, 23]), ("sam_vit_h", [7, 15, 23, 31])],
)
def test_global_blocks_are_those_of_sam(name: str, blocks: list[int]) -> None:
    with torch.device("meta"):
        encoder = build_encoder(name, 3)
    assert encoder.options["global_blocks"] == blocks
    assert [number for number, layer in enumerate(encoder.layers) if layer.window_size == 0] == blocks
    tables = encoder.state_dict()
    head = encoder.options["width"] // encoder.options["heads"]
    assert tables[f"layers.{blocks[0]}.attn.rel_pos_h"].shape == (127, head)
    assert tables["layers.0.attn.rel_pos_w"].shape == (27, head)


def test_small_ones_have_a_global_block_and_a_finer_stride() -> None:
    assert build_encoder("sam_vit_b", 3, width=24, heads=2, depth=2).options["global_blocks"] == [0, 1]
    encoder = small(patch_size=8)
    assert encoder.strides == (8,)
    assert encoder(torch.randn(1, 3, 40, 24))[0].shape == (1, WIDTH, 5, 3)


def test_names_translate_there_and_back() -> None:
    pairs = {
        "patch_embed.proj.weight": "patch_embed.projection.weight",
        "blocks.11.norm1.bias": "layers.11.layer_norm1.bias",
        "blocks.0.norm2.weight": "layers.0.layer_norm2.weight",
        "blocks.3.attn.qkv.weight": "layers.3.attn.qkv.weight",
        "blocks.3.attn.rel_pos_h": "layers.3.attn.rel_pos_h",
        "blocks.3.mlp.lin1.bias": "layers.3.mlp.lin1.bias",
        "neck.0.weight": "neck.conv1.weight",
        "neck.1.bias": "neck.layer_norm1.bias",
        "neck.2.weight": "neck.conv2.weight",
        "neck.3.weight": "neck.layer_norm2.weight",
        "pos_embed": "pos_embed",
    }
    for original, present in pairs.items():
        for prefix in ("", "image_encoder."):
            assert transformers_name(prefix + original) == prefix + present
            assert original_name(prefix + present) == prefix + original
            assert transformers_name(prefix + present) == prefix + present
    assert transformers_name("mask_decoder.transformer.norm_final.weight") == (
        "mask_decoder.transformer.norm_final.weight"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 25}, "width 25 with heads 2"),
        ({"depth": 0}, "depth 0"),
        ({"image_size": 100}, "image_size 100 with patch_size 16"),
        ({"global_blocks": [3]}, r"global_blocks \[3\] are not all in 0\.\.2"),
        ({"window": 7}, "does not take these options"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        small(**options)


def test_sides_must_be_multiples_of_a_patch() -> None:
    with pytest.raises(UserError, match=r"\(64, 70\) pixels.*multiples of 16"):
        small()(torch.zeros(1, 3, 64, 70))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'lvmmed-monai\[sam\]'"):
        build_encoder("sam_vit_b")
