"""Encoder files: what fits is loaded and counted, what does not is refused."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import (
    Encoder,
    SegmentationNet,
    build_encoder,
    load_encoder,
    load_pretrained,
    read_encoder_file,
    save_encoder,
)
from lvmmed_monai.networks.published import PUBLISHED, PublishedFile

INPUT = {"spacing_mm": [1.0, 1.0], "intensity": "scaled to 0..1"}
PROVENANCE = {"method": "lvm_med", "steps": 10, "seed": 0}


def tiny(seed: int, in_channels: int = 1, width: int = 4) -> Encoder:
    torch.manual_seed(seed)
    return build_encoder("resnet18", in_channels=in_channels, width=width)


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.pt"
    save_encoder(path, tiny(1), input=INPUT, provenance=PROVENANCE)
    return path


def same(a: Encoder, b: Encoder) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


class TestEncoderFile:
    def test_round_trip(self, encoder_file: Path) -> None:
        into = tiny(2)
        report = load_encoder(encoder_file, into)
        assert same(into, tiny(1))
        assert (len(report.matched), report.missing, report.unexpected, report.reshaped) == (120, (), (), ())
        assert report.share == 1

    def test_fields_and_weights_only(self, encoder_file: Path) -> None:
        content = torch.load(encoder_file, weights_only=True)
        assert content.keys() == {"format", "name", "options", "state_dict", "input", "provenance"}
        assert (content["format"], content["name"], content["options"]) == (
            "lvmmed-encoder/1",
            "resnet18",
            {"width": 4},
        )
        assert content["input"] == {"spatial_dims": 2, "in_channels": 1, **INPUT}
        assert content["provenance"] == PROVENANCE

    def test_numpy_numbers_become_plain_and_objects_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "encoder.pt"
        save_encoder(path, tiny(1), input={"spacing_mm": (np.float64(0.5), 1)}, provenance={})
        assert read_encoder_file(path)["input"]["spacing_mm"] == [0.5, 1]
        with pytest.raises(TypeError, match=r"provenance\.where must hold plain"):
            save_encoder(tmp_path / "other.pt", tiny(1), input={}, provenance={"where": tmp_path})
        assert not (tmp_path / "other.pt").exists()


class TestForeignCheckpoints:
    @pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "backbone.", "module.encoder.", "_orig_mod."])
    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "network"])
    def test_prefixes_and_wrappers(self, tmp_path: Path, prefix: str, wrapper: str | None) -> None:
        state = {prefix + key: value for key, value in tiny(1).state_dict().items()}
        torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "weights.pt")
        into = tiny(2)
        load_encoder(tmp_path / "weights.pt", into)
        assert same(into, tiny(1))

    def test_a_prefix_inside_a_key_stays(self, tmp_path: Path) -> None:
        """Only what stands at the start goes: `layer1.module.x` is another tensor than `layer1.x`."""
        state = {key.replace("layer1.", "layer1.module."): value for key, value in tiny(1).state_dict().items()}
        torch.save(state, tmp_path / "weights.pt")
        with pytest.raises(UserError, match="another architecture"):
            load_encoder(tmp_path / "weights.pt", tiny(2))

    def test_other_parts_of_a_network_are_unexpected(self, tmp_path: Path) -> None:
        network = SegmentationNet("resnet18", 1, 2, {"width": 4})
        torch.save(network.state_dict(), tmp_path / "weights.pt")
        into = tiny(2)
        report = load_encoder(tmp_path / "weights.pt", into)
        assert same(into, network.encoder)
        assert len(report.unexpected) == len(network.state_dict()) - 120
        assert all(key.startswith(("stem.", "blocks.", "head.")) for key in report.unexpected)

    def test_files_from_before_the_batch_counters(self, tmp_path: Path) -> None:
        state = {key: value for key, value in tiny(1).state_dict().items() if "num_batches" not in key}
        torch.save(state, tmp_path / "weights.pt")
        report = load_encoder(tmp_path / "weights.pt", tiny(2))
        assert (len(report.matched), report.missing) == (100, ())

    def test_colour_weights_into_a_grey_encoder_and_back(self, tmp_path: Path) -> None:
        """The response to an image repeated over the channels stays the same."""
        colour, grey = tiny(1, in_channels=3).eval(), tiny(2).eval()
        torch.save(colour.state_dict(), tmp_path / "colour.pt")
        report = load_encoder(tmp_path / "colour.pt", grey)
        assert report.reshaped == ("conv1.weight",)
        x = torch.rand(1, 1, 32, 32)
        torch.testing.assert_close(grey(x)[-1], colour(x.expand(1, 3, 32, 32))[-1])
        torch.save(grey.state_dict(), tmp_path / "grey.pt")
        again = tiny(3, in_channels=3).eval()
        load_encoder(tmp_path / "grey.pt", again)
        torch.testing.assert_close(again(x.expand(1, 3, 32, 32))[-1], grey(x)[-1])


class TestSwinCheckpoints:
    """Checkpoints of VoCo's kind, made of random weights: wrappers, prefixes and old names of other programs."""

    @staticmethod
    def swin(seed: int, in_channels: int = 1) -> Encoder:
        torch.manual_seed(seed)
        return build_encoder("swinunetr_tiny", in_channels=in_channels, window_size=2, patch_merging="monai_1.4").eval()

    @pytest.mark.parametrize("wrapper", [None, "state_dict", "student"])
    @pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "student.", "module.backbone.", "module.student."])
    @pytest.mark.parametrize("transformer", ["swinViT.", "swin_vit."])
    def test_point_10_loads_whole(self, tmp_path: Path, wrapper: str | None, prefix: str, transformer: str) -> None:
        source, into = self.swin(1), self.swin(2)
        state = {prefix + key.replace("swinViT.", transformer): value for key, value in source.state_dict().items()}
        content = state if wrapper is None else {wrapper: state, "teacher": {}, "epoch": 3}
        torch.save(content, tmp_path / "weights.pt")
        report = load_encoder(tmp_path / "weights.pt", into)
        assert same(into, source)
        assert set(report.matched) == set(into.state_dict())
        assert (report.missing, report.mismatched, report.unexpected, report.reshaped) == ((), (), (), ())

    def test_point_10_student_beside_a_teacher(self, tmp_path: Path) -> None:
        """Both under one dictionary: the student is taken, the teacher is unexpected."""
        student, teacher, into = self.swin(1), self.swin(2), self.swin(3)
        state = {f"teacher.{key}": value for key, value in teacher.state_dict().items()}
        state |= {f"student.{key}": value for key, value in student.state_dict().items()}
        torch.save(state, tmp_path / "weights.pt")
        report = load_encoder(tmp_path / "weights.pt", into)
        assert same(into, student)
        assert set(report.unexpected) == {f"teacher.{key}" for key in teacher.state_dict()}

    def test_point_10_report_lists_loaded_missing_and_mismatched(self, tmp_path: Path) -> None:
        source, into = self.swin(1), self.swin(2)
        state = dict(source.state_dict())
        gone, other = "encoder2.layer.conv1.conv.weight", "swinViT.patch_embed.proj.bias"
        del state[gone]
        state[other] = state[other][:-1].clone()
        state["head.weight"] = torch.zeros(2)
        torch.save(state, tmp_path / "weights.pt")
        before = into.state_dict()[other].clone()
        report = load_encoder(tmp_path / "weights.pt", into)
        assert set(report.matched) == set(into.state_dict()) - {gone, other}
        assert (set(report.missing), report.mismatched) == ({gone, other}, (other,))
        assert report.unexpected == ("head.weight",)
        assert "2 missing (1 of another shape), 1 unexpected" in str(report)
        assert torch.equal(into.state_dict()[other], before)

    def test_point_10_under_95_percent_is_refused(self, tmp_path: Path) -> None:
        source, into = self.swin(1), self.swin(2)
        total = len(source.state_dict())
        keys = list(source.state_dict())[: int(0.95 * total)]
        torch.save({key: source.state_dict()[key] for key in keys}, tmp_path / "weights.pt")
        with pytest.raises(UserError, match=f"{len(keys)} tensors matched, {total - len(keys)} missing"):
            load_encoder(tmp_path / "weights.pt", into)
        assert same(into, self.swin(2))


class TestInputChannels:
    """An image repeated over the channels of the wider network gives what the narrower gives for the image."""

    FIRST_LAYERS = (
        ("resnet18", {"width": 4}, ("conv1.weight",)),
        ("segresnet_tiny", {"init_filters": 8}, ("convInit.conv.weight",)),
        (
            "swinunetr_tiny",
            {"window_size": 2, "patch_merging": "monai_1.4"},
            (
                "swinViT.patch_embed.proj.weight",
                "encoder1.layer.conv1.conv.weight",
                "encoder1.layer.conv3.conv.weight",
            ),
        ),
    )

    @pytest.mark.parametrize(("name", "options", "first"), FIRST_LAYERS, ids=lambda value: str(value)[:10])
    @pytest.mark.parametrize("channels", [2, 3, 4, 7])
    def test_point_14_repeated_channels_give_the_maps_of_one(
        self, tmp_path: Path, name: str, options: dict[str, Any], first: tuple[str, ...], channels: int
    ) -> None:
        torch.manual_seed(channels)
        one, many = (build_encoder(name, in_channels=count, **options).eval() for count in (1, channels))
        size = (32,) * 2 if one.spatial_dims == 2 else (16,) * 3
        image = torch.rand(1, 1, *size)
        repeated = image.expand(1, channels, *size)
        for source, into in ((one, many), (many, one)):
            for parameter in source.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            torch.save(dict(source.state_dict()), tmp_path / "weights.pt")
            report = load_encoder(tmp_path / "weights.pt", into)
            assert set(report.reshaped) == set(first)
            with torch.no_grad():
                maps = [encoder(image if encoder is one else repeated) for encoder in (source, into)]
            for expected, got in zip(*maps, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    def test_first_layers_that_disagree_are_not_adapted(self, tmp_path: Path) -> None:
        into = build_encoder("swinunetr_tiny", in_channels=1, window_size=2)
        state = dict(into.state_dict())
        state["swinViT.patch_embed.proj.weight"] = torch.zeros(12, 3, 2, 2, 2)
        state["encoder1.layer.conv1.conv.weight"] = torch.zeros(12, 4, 3, 3, 3)
        torch.save(state, tmp_path / "weights.pt")
        report = load_encoder(tmp_path / "weights.pt", into)
        assert report.reshaped == ()
        assert set(report.mismatched) == {"swinViT.patch_embed.proj.weight", "encoder1.layer.conv1.conv.weight"}


class TestPublishedFiles:
    def test_point_13_table(self) -> None:
        assert {name: one.md5 for name, one in PUBLISHED.items()} == {
            "VoCo_B_SSL_head.pt": "f80c4da2f81d700bdae3df188f2057eb",
            "VoCo_L_SSL_head.pt": "795095d1d43ef3808ec4c41798310136",
            "VoCo_H_SSL_head.pt": "76f95a474736b60bf5b8aad94643744d",
            "sam_vit_b_01ec64.pth": "01ec64d29a2fca3f0661936605ae66f8",
            "sam_vit_l_0b3195.pth": "0b3195507c641ddb6910d2bb5adee89c",
            "sam_vit_h_4b8939.pth": "4b8939a88964f0f4ff5f5b2642c598a6",
        }

    @pytest.mark.parametrize("name", list(PUBLISHED))
    def test_point_13_another_file_of_that_name_is_refused(self, tmp_path: Path, name: str) -> None:
        into = tiny(2)
        torch.save(tiny(1).state_dict(), tmp_path / name)
        md5 = hashlib.md5((tmp_path / name).read_bytes(), usedforsecurity=False).hexdigest()
        with pytest.raises(UserError, match=rf"{md5}.*{PUBLISHED[name].md5}; it is incomplete.*download it again"):
            load_encoder(tmp_path / name, into)
        assert same(into, tiny(2))
        # Under another name it is an ordinary file.
        (tmp_path / name).rename(tmp_path / "mine.pt")
        assert load_encoder(tmp_path / "mine.pt", into).share == 1

    def test_point_13_the_right_bytes_pass(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        name = "VoCo_B_SSL_head.pt"
        torch.save(tiny(1).state_dict(), tmp_path / name)
        content = (tmp_path / name).read_bytes()
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        monkeypatch.setitem(PUBLISHED, name, PublishedFile(md5, 100, "here"))
        assert load_encoder(tmp_path / name, tiny(2)).share == 1
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match="damaged or another file"):
            load_encoder(tmp_path / name, tiny(2))


class TestRefusals:
    def test_another_architecture_names_both(self, encoder_file: Path) -> None:
        into = build_encoder("resnet50", width=4)
        before = {key: value.clone() for key, value in into.state_dict().items()}
        with pytest.raises(UserError, match=r"resnet18\(width=4\).*resnet50\(width=4\)"):
            load_encoder(encoder_file, into)
        assert all(torch.equal(value, before[key]) for key, value in into.state_dict().items())

    def test_another_width(self, encoder_file: Path) -> None:
        with pytest.raises(UserError, match=r"resnet18\(width=4\).*resnet18\(width=8\)"):
            load_encoder(encoder_file, tiny(0, width=8))

    def test_options_that_shapes_do_not_show(self, tmp_path: Path) -> None:
        encoder = tiny(1)
        encoder.options = {"width": 4, "merging": "old"}
        save_encoder(tmp_path / "encoder.pt", encoder, input={}, provenance={})
        into = tiny(2)
        into.options = {"width": 4, "merging": "new"}
        with pytest.raises(UserError, match="options differ: merging"):
            load_encoder(tmp_path / "encoder.pt", into)

    @pytest.mark.parametrize(("kept", "fits"), [(95, True), (94, False)])
    def test_the_limit_is_95_percent(self, tmp_path: Path, kept: int, fits: bool) -> None:
        """Of the 100 tensors that are not counters."""
        keys = [key for key in tiny(1).state_dict() if "num_batches" not in key][:kept]
        torch.save({key: tiny(1).state_dict()[key] for key in keys}, tmp_path / "weights.pt")
        if fits:
            assert len(load_encoder(tmp_path / "weights.pt", tiny(2)).missing) == 5
        else:
            with pytest.raises(UserError, match="94 tensors matched, 6 missing"):
                load_encoder(tmp_path / "weights.pt", tiny(2))

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.pt", tmp_path):
            with pytest.raises(UserError, match="not found"):
                load_encoder(path, tiny(1))

    def test_damaged_file(self, encoder_file: Path) -> None:
        encoder_file.write_bytes(encoder_file.read_bytes()[:2000])
        with pytest.raises(UserError, match="cannot be read"):
            load_encoder(encoder_file, tiny(1))
        encoder_file.write_text("not weights at all")
        with pytest.raises(UserError):
            load_encoder(encoder_file, tiny(1))

    def test_no_object_is_unpickled(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple:
                return (Path.touch, (tmp_path / "executed",))

        with (tmp_path / "trap.pt").open("wb") as stream:
            pickle.dump({"state_dict": Trap()}, stream)
        torch.save({"state_dict": Trap()}, tmp_path / "trap2.pt")
        for name in ("trap.pt", "trap2.pt"):
            with pytest.raises(UserError):
                load_encoder(tmp_path / name, tiny(1))
        assert not (tmp_path / "executed").exists()

    def test_no_state_dict(self, tmp_path: Path) -> None:
        torch.save({"epoch": 3}, tmp_path / "weights.pt")
        with pytest.raises(UserError, match="no state dict"):
            load_encoder(tmp_path / "weights.pt", tiny(1))


def test_load_pretrained(encoder_file: Path) -> None:
    network = SegmentationNet("resnet18", 1, 2, {"width": 4})
    assert load_pretrained(network, None) is None
    report = load_pretrained(network, encoder_file)
    assert report is not None
    assert str(report) == "120 tensors matched, 0 missing, 0 unexpected, 0 reshaped"
    assert same(network.encoder, tiny(1))
