"""Everything that is wrong with a run is said before it starts, at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.files import write_json
from lvmmed_monai.methods import build_method
from lvmmed_monai.methods.start_checks import check_start
from lvmmed_monai.networks import save_encoder

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def datalist(name: str, **subjects: list[str]) -> Path:
        content: dict[str, Any] = {"format": "lvmmed-datalist/1", "name": name, "task": "unlabelled", "modality": "XR"}
        for section in ("training", "validation", "test"):
            content[section] = []
            for subject in subjects.get(section, []):
                image = f"{name}_{section}_{subject}.png"
                Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / image)
                content[section].append({"image": image, "subject": subject})
        write_json(tmp_path / f"{name}.json", content)
        return tmp_path / f"{name}.json"

    return datalist


def check(tmp_path: Path, datalists: list[Path], name: str = "lvm_med", **options: Any) -> None:
    loss = {"nodes_per_graph": 8, "neighbours": 3}
    standard: dict[str, Any] = {
        "method_options": {"lvm_med": {"loss_options": loss}},
        "cache_dir": tmp_path / "cache",
        "batch_size": 16,
        "encoder_name": "resnet18",
        "encoder_options": {"width": 4},
    }
    check_start(name, datalists=datalists, **{**standard, **options})


def sentence(tmp_path: Path, datalists: list[Path], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(tmp_path, datalists, *arguments, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("; ") >= 2
    return str(caught.value)


def test_a_sound_run_passes_and_leaves_no_trace(write: Write, tmp_path: Path) -> None:
    lists = [write("a", training=["1", "2"], test=["3"]), write("b", training=["4"])]
    probe = write("probe", training=["1"], test=["9"])
    encoder = build_method("lvm_med", encoder_name="resnet18", encoder_options={"width": 4}).encoder()
    save_encoder(tmp_path / "encoder.pt", encoder, input={}, provenance={})
    state, files = torch.get_rng_state(), set(tmp_path.rglob("*"))
    check(tmp_path, lists, labelled_datalists=[probe], pretrained_encoder=tmp_path / "encoder.pt", neighbours=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(tmp_path.rglob("*")) == files


def test_batch(write: Write, tmp_path: Path) -> None:
    lists = [write("a", training=["1"])]
    assert "a batch of 12 images cannot be cut into graphs of 8" in sentence(tmp_path, lists, batch_size=12)
    assert "a batch of 4 images cannot be cut" in sentence(tmp_path, lists, batch_size=16, accumulate=4)
    assert "cannot be cut into 3 parts" in sentence(tmp_path, lists, accumulate=3)
    assert "runs of 3 neighbouring slices" in sentence(tmp_path, lists, neighbours=3)


def test_method_and_its_options(write: Write, tmp_path: Path) -> None:
    lists = [write("a", training=["1"])]
    assert "unknown method 'simclr9'" in sentence(tmp_path, lists, "simclr9")
    assert "unknown option in views" in sentence(tmp_path, lists, views={"sizes": 3})
    assert "planes = ['oblique']" in sentence(tmp_path, lists, planes=["oblique"])
    assert "the rule of CT is" in sentence(tmp_path, lists, intensity={"CT": {"window": [400, -100]}})
    assert "balance = 2" in sentence(tmp_path, lists, balance=2)


def test_datalists_and_images(write: Write, tmp_path: Path) -> None:
    assert "no datalist given" in sentence(tmp_path, [])
    assert "datalist not found" in sentence(tmp_path, [tmp_path / "gone.json"])
    assert "datalist not found" in sentence(
        tmp_path, [write("a", training=["1"])], labelled_datalists=[tmp_path / "gone.json"]
    )
    (tmp_path / "a_training_1.png").unlink()
    with pytest.raises(DataError, match=r"1 image file is missing, the first is a_training_1\.png"):
        check(tmp_path, [tmp_path / "a.json"])


def test_encoder_file(write: Write, tmp_path: Path) -> None:
    lists = [write("a", training=["1"])]
    assert "encoder file not found" in sentence(tmp_path, lists, pretrained_encoder=tmp_path / "gone.pt")
    other = build_method("lvm_med", encoder_name="resnet18", encoder_options={"width": 8}).encoder()
    save_encoder(tmp_path / "encoder.pt", other, input={}, provenance={})
    assert "another architecture" in sentence(tmp_path, lists, pretrained_encoder=tmp_path / "encoder.pt")


@pytest.mark.parametrize("section", ["validation", "test"])
@pytest.mark.parametrize("as_probe", [False, True])
def test_subject_that_is_trained_on_and_judged(write: Write, tmp_path: Path, section: str, as_probe: bool) -> None:
    first = write("a", training=["1", "ann", "ben"])
    second = write("b", training=["7"], **{section: ["8", "ann", "ben"]})
    lists, probes = ([first], [second]) if as_probe else ([first, second], [])
    said = sentence(tmp_path, lists, labelled_datalists=probes)
    assert f"2 of the 3 subjects in {section} of {second} are in training of {first}" in said
    assert "ann" not in said.replace(str(tmp_path), "")


def test_space(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [write("a", training=["1", "2"])]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "too little disk space for the slice cache" in sentence(tmp_path, lists)
    # What has been built needs no more space.
    monkeypatch.undo()
    method = build_method("lvm_med", encoder_name="resnet18", encoder_options={"width": 4})
    method.dataset(lists, "training", tmp_path / "cache", seed=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    check(tmp_path, lists)


def test_all_at_once(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = write("a", training=["1"]), write("b", training=["2"], test=["1"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    with pytest.raises(UserError) as caught:
        check(tmp_path, [first, second], batch_size=12, pretrained_encoder=tmp_path / "gone.pt")
    head, *lines = str(caught.value).splitlines()
    assert head == "4 things are wrong; pre-training; correct each of them:"
    assert [line[:3] for line in lines] == ["1. ", "2. ", "3. ", "4. "]
    for words in ("encoder file not found", "graphs of 8", "1 of the 1 subjects", "too little disk space"):
        assert sum(words in line for line in lines) == 1
    with pytest.raises(
        UserError, match=r"(?s)^3 things.*1\. unknown method 'x'.*2\. datalist not found.*3\. .*3 parts"
    ):
        check(tmp_path, [first, tmp_path / "gone.json"], "x", accumulate=3)
