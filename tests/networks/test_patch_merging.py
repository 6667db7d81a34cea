"""Both orders of patch merging: known answers, MONAI's modules, and who decides which one an encoder takes."""

from __future__ import annotations

import inspect
import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import PatchMerging, SwinTransformer

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import SwinUNETRNet, build_encoder, load_encoder, load_swinunetr, save_encoder
from lvmmed_monai.networks.patch_merging import (
    PATCH_MERGING,
    CurrentPatchMerging,
    LegacyPatchMerging,
    set_patch_merging,
)
from lvmmed_monai.networks.swin import SwinUNETREncoder, swinunetr_tiny

CURRENT, LEGACY = "monai_1.5", "monai_1.4"
SMALL: dict[str, Any] = {"feature_size": 12, "window_size": 2}
# Of the cube with the values 4d + 2h + w.
KNOWN = {CURRENT: [0, 4, 2, 1, 6, 5, 3, 7], LEGACY: [0, 4, 2, 1, 5, 2, 1, 7]}


def tiny(patch_merging: str | None = None, seed: int = 0) -> SwinUNETREncoder:
    torch.manual_seed(seed)
    return swinunetr_tiny(window_size=2, patch_merging=patch_merging).eval()


def maps_of(network: torch.nn.Module) -> list[torch.Tensor]:
    image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return network(image)


def equal_maps(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(one, other) for one, other in zip(maps_of(a), maps_of(b), strict=True))


@pytest.fixture
def file_of(tmp_path: Path) -> Any:
    def write(content: Any) -> Path:
        path = tmp_path / "weights.pt"
        if isinstance(content, SwinUNETREncoder):
            save_encoder(path, content, input={}, provenance={})
        else:
            torch.save(content, path)
        return path

    return write


def bare(encoder: SwinUNETREncoder) -> dict[str, torch.Tensor]:
    """As a foreign program saves it: nothing but tensors."""
    return dict(encoder.state_dict())


class TestOrders:
    @pytest.mark.parametrize("order", [CURRENT, LEGACY])
    def test_point_11_known_answers_on_a_cube(self, order: str) -> None:
        merging = PATCH_MERGING[order](1)
        merging.norm = merging.reduction = torch.nn.Identity()
        d, h, w = torch.meshgrid(*[torch.arange(2.0)] * 3, indexing="ij")
        cube = (4 * d + 2 * h + w)[None, ..., None]
        assert merging(cube).flatten().tolist() == KNOWN[order]

    def test_point_11_orders_differ_from_the_first_merging_on(self) -> None:
        """Sizes of the change with random weights, as in the reference: .76 and more of the hidden states' norm."""
        torch.manual_seed(0)
        encoder = SwinUNETREncoder("small", feature_size=12, window_size=4).eval()
        image = torch.rand(1, 1, 64, 64, 64)
        with torch.no_grad():
            before = encoder._hidden_states(image)
            set_patch_merging(encoder.swinViT, LEGACY)
            after = encoder._hidden_states(image)
        changes = [float((a - b).norm() / b.norm()) for a, b in zip(after, before, strict=True)]
        assert changes[0] == 0
        assert min(changes[1:]) > 0.5
        assert changes[4] > changes[1]

    @pytest.mark.parametrize("order", [CURRENT, LEGACY])
    @pytest.mark.parametrize("size", [(4, 6, 8), (3, 4, 5)])
    def test_every_output_is_its_neighbours_by_hand(self, order: str, size: tuple[int, int, int]) -> None:
        torch.manual_seed(0)
        merging = PATCH_MERGING[order](2)
        x = torch.rand(1, *size, 2)
        merged = merging(x)
        assert merged.shape == (1, *[(side + 1) // 2 for side in size], 4)
        padded = torch.zeros(1, *[side + side % 2 for side in size], 2)
        padded[:, : size[0], : size[1], : size[2]] = x
        for cell in torch.cartesian_prod(*[torch.arange(side) for side in merged.shape[1:4]]).tolist():
            parts = [
                padded[0, 2 * cell[0] + code // 4, 2 * cell[1] + code // 2 % 2, 2 * cell[2] + code % 2]
                for code in KNOWN[order]
            ]
            expected = merging.reduction(merging.norm(torch.cat(parts)))
            torch.testing.assert_close(merged[0, cell[0], cell[1], cell[2]], expected)

    def test_current_order_is_that_of_the_installed_monai(self) -> None:
        """The pinned MONAI is 1.5 or later; also: the same seed gives the same weights."""
        torch.manual_seed(0)
        theirs = PatchMerging(4)
        torch.manual_seed(0)
        ours = CurrentPatchMerging(4)
        x = torch.rand(2, 4, 5, 6, 4)
        assert torch.equal(ours(x), theirs(x))
        assert ours.state_dict().keys() == theirs.state_dict().keys()

    def test_only_volumes_and_known_orders(self) -> None:
        with pytest.raises(UserError, match="spatial_dims=2"):
            LegacyPatchMerging(4, spatial_dims=2)
        with pytest.raises(UserError, match=r"unknown patch_merging 'mergingv2'.*monai_1\.5, monai_1\.4"):
            build_encoder("swinunetr_tiny", patch_merging="mergingv2")
        with pytest.raises(UserError, match="no patch merging in ReLU"):
            set_patch_merging(torch.nn.ReLU(), LEGACY)

    def test_switching_keeps_parameters_and_gradients_flow(self) -> None:
        encoder = tiny()
        before = dict(encoder.named_parameters())
        set_patch_merging(encoder.swinViT, LEGACY)
        after = dict(encoder.named_parameters())
        assert before.keys() == after.keys()
        assert all(before[name] is after[name] for name in before)
        assert equal_maps(encoder, tiny(LEGACY))
        encoder(torch.rand(1, 1, 16, 16, 16))[-1].sum().backward()
        assert before["swinViT.layers1.0.downsample.reduction.weight"].grad is not None

    @pytest.mark.parametrize("order", [CURRENT, LEGACY])
    def test_traced_network_keeps_its_order_where_padding_is_needed(self, order: str) -> None:
        encoder = tiny(order)
        image = torch.rand(1, 1, 24, 24, 24)  # 12, 6, 3, and so 4
        with torch.no_grad():
            traced = torch.jit.trace(encoder, torch.rand_like(image), check_trace=False)
            for ours, theirs in zip(encoder(image), traced(image), strict=True):
                torch.testing.assert_close(ours, theirs)

    def test_point_12_nothing_depends_on_the_image_size(self) -> None:
        """`img_size` was required until MONAI 1.4 and is gone since 1.5; the transformer itself never had it."""
        assert "img_size" not in inspect.signature(SwinTransformer).parameters
        for module in ("swin", "swin_unetr", "patch_merging"):
            source = inspect.getsource(__import__(f"lvmmed_monai.networks.{module}", fromlist=["x"]))
            assert "img_size" not in source
        encoder = tiny()
        assert [encoder(torch.rand(1, 1, *size))[-1].shape[2:] for size in ((16, 16, 16), (32, 16, 48))] == [
            (1, 1, 1),
            (2, 1, 3),
        ]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class TestWhoDecides:
    def test_point_11_foreign_weights_switch_to_the_old_order_with_a_warning(
        self, file_of: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        source, into = tiny(LEGACY, seed=1), tiny()
        with caplog.at_level(logging.WARNING):
            load_encoder(file_of(bare(source)), into)
        assert "taken as made with 1.4 or earlier" in caplog.text
        assert into.options["patch_merging"] == LEGACY
        assert equal_maps(into, source)
        assert not equal_maps(into, tiny(CURRENT, seed=1))
        # What is saved from now on records it, and needs no warning.
        caplog.clear()
        save_encoder(tmp_path / "ours.pt", into, input={}, provenance={})
        again = tiny(seed=2)
        load_encoder(tmp_path / "ours.pt", again)
        assert equal_maps(again, source)
        assert not warnings_in(caplog)

    def test_an_order_that_the_user_chose_holds_for_foreign_weights(
        self, file_of: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        into = tiny(CURRENT)
        load_encoder(file_of(bare(tiny(CURRENT, seed=1))), into)
        assert equal_maps(into, tiny(CURRENT, seed=1))
        assert not warnings_in(caplog)

    @pytest.mark.parametrize(
        ("version", "order"),
        [("1.3.0", LEGACY), ("1.4.0+12.g1", LEGACY), ("1.5.0", CURRENT), ("1.10.2", CURRENT), ("0+unknown", LEGACY)],
    )
    def test_the_version_of_monai_in_a_foreign_file(self, file_of: Any, version: str, order: str) -> None:
        into = tiny()
        load_encoder(file_of({"state_dict": bare(tiny(seed=1)), "monai_version": version}), into)
        assert into.options["patch_merging"] == order

    @pytest.mark.parametrize("recorded", [CURRENT, LEGACY])
    @pytest.mark.parametrize("chosen", [None, CURRENT, LEGACY])
    def test_our_files_say_their_order_and_it_is_taken(
        self, file_of: Any, caplog: pytest.LogCaptureFixture, recorded: str, chosen: str | None
    ) -> None:
        source, into = tiny(recorded, seed=1), tiny(chosen)
        load_encoder(file_of(source), into)
        assert equal_maps(into, source)
        assert into.options == source.options
        assert ("which is taken" in caplog.text) == (chosen not in (None, recorded))

    @pytest.mark.parametrize("monai", [None, "1.6.1"])
    def test_our_older_files_without_the_option_are_of_the_current_order(
        self, file_of: Any, tmp_path: Path, monai: str | None
    ) -> None:
        path = file_of(tiny(CURRENT, seed=1))
        content = torch.load(path, weights_only=True)
        del content["options"]["patch_merging"]
        content["provenance"] = {} if monai is None else {"versions": {"monai": monai}}
        torch.save(content, path)
        into = tiny()
        load_encoder(path, into)
        assert equal_maps(into, tiny(CURRENT, seed=1))

    def test_a_refused_file_changes_nothing(self, file_of: Any) -> None:
        source = bare(tiny(seed=1))
        into = tiny()
        with pytest.raises(UserError, match="another architecture"):
            load_encoder(file_of({key: source[key] for key in list(source)[:50]}), into)
        path = file_of(tiny(LEGACY, seed=1))
        content = torch.load(path, weights_only=True)
        content["options"]["patch_merging"] = "monai_9"
        torch.save(content, path)
        with pytest.raises(UserError, match="unknown patch_merging 'monai_9'"):
            load_encoder(path, into)
        assert into.options["patch_merging"] == CURRENT
        assert equal_maps(into, tiny())

    @pytest.mark.parametrize("recorded", [CURRENT, LEGACY])
    def test_a_bare_state_dict_of_ours_says_it_too(self, file_of: Any, recorded: str) -> None:
        """A model trained from legacy weights is rebuilt for inference with default options: it must not go wrong."""
        torch.manual_seed(1)
        trained = SwinUNETRNet("swinunetr_tiny", 1, 2, {"patch_merging": recorded}).eval()
        stream = io.BytesIO()
        torch.save({"model": trained.state_dict()}, stream)
        stream.seek(0)
        network = SwinUNETRNet("swinunetr_tiny", 1, 2).eval()
        network.load_state_dict(torch.load(stream, weights_only=True)["model"])
        assert torch.equal(maps_of(network), maps_of(trained))
        encoder = swinunetr_tiny().eval()
        load_encoder(file_of(trained.state_dict()), encoder)
        assert encoder.options == trained.encoder.options
        assert equal_maps(encoder, trained.encoder)


class TestPlainMonai:
    """Our encoder files in ``SwinUNETR(use_v2=True)``: the features of pre-training to 1e-6."""

    def encoder(self, order: str) -> SwinUNETREncoder:
        torch.manual_seed(1)
        return SwinUNETREncoder("small", 1, patch_merging=order, **SMALL).eval()

    def network(self) -> SwinUNETR:
        return SwinUNETR(in_channels=1, out_channels=2, use_v2=True, **SMALL).eval()

    @staticmethod
    def largest_difference(encoder: SwinUNETREncoder, network: SwinUNETR) -> float:
        image = torch.rand(1, 1, 64, 32, 32)
        with torch.no_grad():
            hidden = network.swinViT(image, True)
            maps = [network.encoder1(image), network.encoder2(hidden[0]), network.encoder3(hidden[1])]
            maps += [network.encoder4(hidden[2]), hidden[3], network.encoder10(hidden[4])]
            return max(float((a - b).abs().max()) for a, b in zip(encoder(image), maps, strict=True))

    @pytest.mark.parametrize("order", [CURRENT, LEGACY])
    def test_loading_gives_the_features_of_pretraining(self, tmp_path: Path, order: str) -> None:
        encoder, network = self.encoder(order), self.network()
        save_encoder(tmp_path / "encoder.pt", encoder, input={}, provenance={})
        report = load_swinunetr(tmp_path / "encoder.pt", network)
        assert (len(report.matched), len(report.missing), report.unexpected) == (145, 22, ())
        assert self.largest_difference(encoder, network) < 1e-6

    def test_point_11_plain_monai_is_right_for_the_current_order_and_wrong_for_the_old(self) -> None:
        for order, same in ((CURRENT, True), (LEGACY, False)):
            encoder, network = self.encoder(order), self.network()
            unfilled = network.load_state_dict(encoder.state_dict(), strict=False)
            assert unfilled.unexpected_keys == []
            assert len(unfilled.missing_keys) == 22
            assert (self.largest_difference(encoder, network) < 1e-6) == same
        # Built with our module from the start, MONAI's network agrees with the old order, too.
        network = SwinUNETR(in_channels=1, out_channels=2, use_v2=True, downsample=LegacyPatchMerging, **SMALL)
        network.load_state_dict(encoder.state_dict(), strict=False)
        assert self.largest_difference(encoder, network.eval()) < 1e-6
