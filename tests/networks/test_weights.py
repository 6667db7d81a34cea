"""Encoder files: what fits is loaded and counted, what does not is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

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
