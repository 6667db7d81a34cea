"""Configurations of a bundle that are laid over its training: encoder sizes with the settings published for them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_material import SHIPPED, small
from monai.bundle import ConfigParser

from lvmmed_monai.cli._bundle_files import copy_bundle
from lvmmed_monai.cli.app import execute
from lvmmed_monai.cli.run import config_files
from lvmmed_monai.results import read_results

VOCO = SHIPPED["voco_pretrain"]
# Random crops of a volume, volumes of a batch: as published for eight processes.
SIZES = {"b": (4, 4), "l": (4, 2), "h": (2, 2)}


def parsed(config: str, bundle: Path = VOCO) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(file) for file in config_files(bundle, config)])
    return parser


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["{}", "train+{}", "evaluate+{}"])
def test_sizes_are_laid_over_train(size: str, form: str) -> None:
    parser = parsed(form.format(size))
    assert parser.get_parsed_content("encoder_name") == f"swinunetr_{size}"
    assert parser.get_parsed_content("encoder_options") == {"use_checkpoint": True}
    assert (parser.get("crops_per_volume"), parser.get("batch_size")) == SIZES[size]
    assert (parser.get("learning_rate"), parser.get("warmup_steps")) == (1e-4, 5000)
    assert parser.get("ssl_method")["_target_"] == "lvmmed_monai.methods.build_method"


def test_a_size_combines_with_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "0")
    parser = parsed("multi_gpu_train+b")
    assert parser.get("encoder_name") == "swinunetr_b"
    assert parser.get("backend") is not None


def test_the_method_takes_the_settings_of_b() -> None:
    method = parsed("b").get_parsed_content("ssl_method")
    assert (method.encoder().name, method.crop_size, tuple(method.grid)) == ("swinunetr_b", 64, (3, 3))
    layers = method.network().projector.layers
    assert [layer.in_features for layer in layers] == [1152, 1024, 1024]
    assert layers[-1].out_features == 1024


def test_point_23_weight_decay_reaches_the_optimiser() -> None:
    parser = parsed("b")
    parser.update({"encoder_name": "segresnet_tiny", "encoder_options": {}, "weight_decay": 0.25})
    (group,) = parser.get_parsed_content("optimizer").param_groups
    assert (group["weight_decay"], group["lr"]) == (0.25, 1e-4)
    teacher = {id(one) for one in parser.get_parsed_content("network").teacher.parameters()}
    assert teacher
    assert not teacher & {id(one) for one in group["params"]}


def test_train_and_a_size_run(datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an encoder and crops small enough for a test; all else is the overlay's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    bundle = copy_bundle("voco_pretrain", tmp_path)
    settings: dict[str, Any] = {**small("voco_pretrain", "train"), "datalist": str(datalist), "accumulate": 2}
    settings |= {"encoder_options": {}, "grid": [2, 2], "max_hours": 1, "projector": [16, 8]}
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    assert execute(["run", str(bundle), "train+b", "--quiet", *words]) == 0
    record = read_results(bundle / "output" / "train" / "results.json")
    assert len(record["curves"]["loss"]) == 2
    assert "embedding_rank" in record["metrics"]


class TestViT:
    """SAM's ViT in the 2D bundle."""

    def test_settings_reach_encoder_and_optimiser(self) -> None:
        parser = parsed("vit", SHIPPED["lvmmed_pretrain"])
        assert parser.get_parsed_content("encoder_name") == "sam_vit_b"
        assert parser.get_parsed_content("encoder_options") == {"use_checkpoint": True}
        parser.update({"encoder_options": {"width": 16, "depth": 1, "heads": 2, "use_checkpoint": True}})
        method = parser.get_parsed_content("ssl_method")
        assert (method.name, method.encoder().use_checkpoint, method.encoder().strides) == ("lvm_med", True, (16,))
        (group,) = parser.get_parsed_content("optimizer").param_groups
        assert (group["lr"], group["weight_decay"]) == (1e-4, 0.05)

    def test_train_and_inference_run(self, datalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        bundle = copy_bundle("lvmmed_pretrain", tmp_path)
        settings: dict[str, Any] = {**small("lvmmed_pretrain", "vit"), "datalist": str(datalist), "views": {"size": 48}}
        words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        assert execute(["run", str(bundle), "train+vit", "--quiet", *words]) == 0
        record = read_results(bundle / "output" / "train" / "results.json")
        assert [step for step, _ in record["curves"]["loss"]] == [1, 2]
        assert "matching_accuracy" in record["metrics"]
        kept = ("encoder_name", "encoder_options", "image_size", "datalist")
        words = [f"{key}={json.dumps(settings[key])}" for key in kept]
        assert execute(["run", str(bundle), "inference", "--quiet", *words]) == 0
        with np.load(next((bundle / "output" / "inference").glob("*.npz"))) as stored:
            assert stored["feature_map"].shape == (24, 10, 2, 2)
            assert stored["embedding"].shape == (24,)


def test_optimiser_and_schedule_of_the_paper() -> None:
    parser = ConfigParser()
    parser.read_config([str(file) for file in config_files(SHIPPED["lvmmed_pretrain"], "train")])
    tiny = {"encoder_name": "resnet18", "encoder_options": {"width": 4}, "max_epochs": 1, "epoch_length": 10}
    parser.update({**tiny, "optimizer#_target_": "torch.optim.Adam", "lr_schedule": "halving", "warmup_steps": 0})
    schedule = parser.get_parsed_content("lr_scheduler")
    assert type(schedule.optimizer).__name__ == "Adam"
    assert [schedule.lr_lambdas[0](step) for step in (1, 2, 5, 9)] == [1, 0.5, 0.25, 0.0625]
    (tracker,) = [one for one in parser.get("train#handlers") if "Tracker" in one["_target_"]]
    assert (parser.get("tracking"), tracker["kind"]) == ("none", "@tracking")
