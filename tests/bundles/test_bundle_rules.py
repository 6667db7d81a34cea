"""What every bundle must be and do; bundles are found by themselves, with their small settings in ``params.json``."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_material import NAMES, OVERLAYS, PRETRAINING, SEGMENTATION, SHIPPED, small
from monai.bundle import ConfigParser, ckpt_export, create_workflow, verify_net_in_out
from monai.bundle import run as run_bundle
from monai.transforms import Invertd, LoadImaged, SaveImaged

from lvmmed_monai.cli._bundle_files import bundles_root, copy_bundle, generated_configs
from lvmmed_monai.errors import UserError, user_error_in
from lvmmed_monai.results import read_results

SCHEMA = json.loads(Path(__file__).with_name("metadata_schema.json").read_text())
TASK_WORDS = ("segmentation", "detection", "classification", "deepedit", "deepgrow", "pretrain")
HEADINGS = (
    "Authors",
    "Tags",
    "Model Description",
    "Data",
    "Performance",
    "System Configuration",
    "Limitations",
    "Citation",
    "References",
)


def config_files(bundle: Path, config: str) -> list[str]:
    names = [config] if config in ("train", "inference") else ["train", config]
    return [str(bundle / "configs" / f"{one}.json") for one in names]


def run(bundle: Path, config: str, **overrides: Any) -> None:
    settings = {**small(bundle.name, config), "device": "$torch.device('cpu')", "amp": False, **overrides}
    run_bundle(config_file=config_files(bundle, config), bundle_root=str(bundle), **settings)


def workflow(bundle: Path, config: str, kind: str, **overrides: Any) -> Any:
    settings = {**small(bundle.name, config), "device": "$torch.device('cpu')", "amp": False, **overrides}
    files = config_files(bundle, config)
    return create_workflow(config_file=files, workflow_type=kind, bundle_root=str(bundle), **settings)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign_working_directory")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, datalist: Path, elsewhere: Path) -> Any:
    """``trained(name)``: a copy of a bundle after two steps of training, from a foreign working directory."""
    done: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in done:
            bundle = copy_bundle(name, tmp_path_factory.mktemp("copy"))
            before = os.getcwd()
            os.chdir(elsewhere)
            try:
                run(bundle, "train", datalist=str(datalist))
            finally:
                os.chdir(before)
            done[name] = bundle
        return done[name]

    return get


# -- what the files say ---------------------------------------------------------------------------------


def test_some_bundles_are_found() -> None:
    assert {"lvmmed_pretrain", "lvmmed_segmentation_2d", "voco_pretrain", "voco_segmentation_3d"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_generated_configs_are_committed(name: str) -> None:
    for file, content in generated_configs(SHIPPED[name]):
        assert json.loads((SHIPPED[name] / "configs" / file).read_text()) == content, "run: make bundles"
    for file, place in (("LICENSE", "."), ("logging.conf", "configs")):
        assert (SHIPPED[name] / place / file).read_bytes() == (bundles_root() / "_shared" / file).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_folder(name: str) -> None:
    assert any(word in name for word in TASK_WORDS)
    assert not list(SHIPPED[name].rglob("*.py"))
    assert not (SHIPPED[name] / "scripts").exists()
    readme = (SHIPPED[name] / "docs" / "README.md").read_text()
    for heading in HEADINGS:
        assert f"\n## {heading}\n" in readme
    assert "TorchScript" in readme


@pytest.mark.parametrize("name", NAMES)
def test_metadata(name: str) -> None:
    metadata = json.loads((SHIPPED[name] / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, SCHEMA)
    assert metadata["version"] in metadata["changelog"]
    versions = {**metadata["required_packages_version"], "monai": metadata["monai_version"]}
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in versions.values())
    formats = metadata["network_data_format"]
    assert next(iter(formats["inputs"])) == "image"
    assert next(iter(formats["outputs"])) == "pred"


@pytest.mark.parametrize("name", SEGMENTATION)
def test_labels_are_the_same_everywhere(name: str) -> None:
    read = {
        one: json.loads((SHIPPED[name] / "configs" / f"{one}.json").read_text())
        for one in ("train", "inference", "metadata")
    }
    labels = read["train"]["labels"]
    pred = read["metadata"]["network_data_format"]["outputs"]["pred"]
    assert labels == read["inference"]["labels"] == pred["channel_def"]
    assert list(labels) == [str(number) for number in range(pred["num_channels"])]
    assert labels["0"] == "background"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        for item in value.values():
            yield from _targets(item)
    elif isinstance(value, list):
        for item in value:
            yield from _targets(item)


CONFIGS = [(name, path.stem) for name in NAMES for path in sorted((SHIPPED[name] / "configs").glob("*.json"))]


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_config_text(name: str, config: str) -> None:
    content = json.loads((SHIPPED[name] / "configs" / f"{config}.json").read_text())
    for text in _strings(content):
        assert not text.startswith("%"), f"macro: {text}"
        assert not re.search(r"(^|['\"])(/|~|[A-Za-z]:\\)", text), f"absolute path: {text}"
        assert len(text) <= 150 or config == "metadata", f"long expression: {text}"
    for target in _targets(content):
        module, _, attribute = target.rpartition(".")
        assert module.split(".")[0] in ("lvmmed_monai", "monai", "torch", "ignite"), target
        assert callable(getattr(importlib.import_module(module), attribute)), target


@pytest.mark.parametrize("name", NAMES)
def test_what_hosts_override_is_literal(name: str) -> None:
    train = json.loads((SHIPPED[name] / "configs" / "train.json").read_text())
    inference = json.loads((SHIPPED[name] / "configs" / "inference.json").read_text())
    assert isinstance(train["train"]["handlers"], list)
    assert isinstance(inference["handlers"], list)
    assert isinstance(train["validate"].get("handlers", []), list)
    for config in (train, inference):
        assert {"bundle_root", "dataset_dir", "datalist", "device", "network_def", "network", "run"} <= set(config)
    assert "displayable_configs" not in train
    for value in inference["displayable_configs"].values():
        assert isinstance(value, int | float | bool | str)
        assert not str(value).startswith(("$", "@"))


# -- what MONAI makes of them ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_network_input_and_output(name: str) -> None:
    configs = SHIPPED[name] / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        device="cpu",
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer")])
def test_properties(name: str, config: str, kind: str, datalist: Path, tmp_path: Path) -> None:
    overrides = {"datalist": str(datalist), "output_dir": str(tmp_path / "out")}
    if config == "train" and name in PRETRAINING:
        overrides["cache_dir"] = str(tmp_path / "cache")
    flow = workflow(SHIPPED[name], config, kind, **overrides)
    flow.initialize()
    assert flow.check_properties() == []


@pytest.mark.parametrize("name", SEGMENTATION)
def test_hosts_can_give_items_instead_of_a_datalist(name: str, datalist: Path, tmp_path: Path) -> None:
    item = {
        key: str(datalist.parent / value) for key, value in (("image", "test0.nii.gz"), ("label", "label_test0.nii.gz"))
    }
    overrides = {"train#dataset#data": [item], "validate#dataset#data": [item], "output_dir": str(tmp_path)}
    flow = workflow(SHIPPED[name], "train", "train", **overrides)
    flow.initialize()
    assert flow.train_dataset_data == [item]
    assert len(flow.parser.get_parsed_content("validate#dataset")) == 1
    inference = workflow(SHIPPED[name], "inference", "infer", **{"dataset#data": [item]})
    inference.initialize()
    assert inference.dataset_data == [item]


@pytest.mark.parametrize("name", NAMES)
def test_model_file_is_a_bare_state_dict(name: str, trained: Any) -> None:
    bundle = trained(name)
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "inference"))
    parser.update(small(name, "inference"))
    parser.get_parsed_content("network_def").load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_export(name: str, trained: Any, tmp_path: Path) -> None:
    bundle = trained(name)
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=config_files(bundle, "inference"),
        **small(name, "inference"),
    )
    exported = torch.jit.load(tmp_path / "model.ts")
    spatial_dims = len(
        json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"][
            "spatial_shape"
        ]
    )
    channels = json.loads((bundle / "configs" / "inference.json").read_text())["in_channels"]
    image = torch.rand(1, channels, *[32] * spatial_dims)
    parser = ConfigParser()
    parser.read_config(config_files(bundle, "inference"))
    parser.update(small(name, "inference"))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    torch.testing.assert_close(exported.eval()(image), network.eval()(image), atol=1e-4, rtol=1e-4)


# -- what they do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_training_leaves_its_results(name: str, trained: Any, elsewhere: Path) -> None:
    bundle = trained(name)
    results = read_results(bundle / "output" / "train" / "results.json")
    assert results["name"] == name
    assert results["curves"]["loss"]
    assert results["data"]["datalists"][0]["name"] == "spheres"
    assert not list(elsewhere.iterdir()), "a run wrote into the working directory"


@pytest.mark.parametrize(("name", "overlay"), [(name, one) for name in NAMES for one in OVERLAYS[name]])
def test_overlay_trains(name: str, overlay: str, datalist: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(name, tmp_path)
    config = json.loads((bundle / "configs" / f"{overlay}.json").read_text())
    labelled = {"labelled_datalist": str(datalist)} if "labelled_datalist" in config else {}
    run(bundle, overlay, datalist=str(datalist), **labelled)
    results = read_results(bundle / "output" / "train" / "results.json")
    steps = small(name, overlay)["max_epochs"] * small(name, overlay)["epoch_length"]
    assert results["curves"]["loss"][-1][0] == steps
    assert all(value is not None for _, value in results["curves"]["loss"])
    assert (bundle / "models" / "encoder.pt").is_file()
    if labelled:
        assert [step for step, _ in results["curves"]["pseudo"]] == list(range(steps // 2 + 1, steps + 1))
        assert torch.load(bundle / "models" / "segmentation.pt", weights_only=True)
        assert len(results["data"]["datalists"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name: str, trained: Any, datalist: Path, tmp_path: Path, elsewhere: Path, monkeypatch) -> None:
    monkeypatch.chdir(elsewhere)
    run(trained(name), "evaluate", datalist=str(datalist), output_dir=str(tmp_path))
    results = read_results(tmp_path / "results.json")
    assert results["kind"] == "evaluation"
    assert results["metrics"]
    if name in SEGMENTATION:
        assert [row["case"] for row in results["cases"]] == ["test0", "test1"]
        assert all((tmp_path / row["preview"]).is_file() for row in results["cases"])


@pytest.mark.parametrize("name", SEGMENTATION)
def test_prediction_lies_on_the_grid_of_its_image(name: str, trained: Any, datalist: Path, tmp_path: Path) -> None:
    # a string beside the image, as MONAI Label and many datalists have it
    image = str(datalist.parent / "test0.nii.gz")
    items = [{"image": image, "image_path": image, "image_id": "x"}]
    run(trained(name), "inference", datalist=items, output_dir=str(tmp_path))
    written = nib.load(tmp_path / "test0_seg.nii.gz")
    source = nib.load(image)
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.uint8
    assert not (tmp_path / "dicom_seg").exists()


@pytest.mark.parametrize("name", PRETRAINING)
def test_features_are_written(name: str, trained: Any, datalist: Path, tmp_path: Path) -> None:
    run(trained(name), "inference", datalist=str(datalist), output_dir=str(tmp_path))
    with np.load(tmp_path / "test1.npz") as stored:
        assert stored["feature_map"].shape[0] == stored["embedding"].shape[0]
        assert np.isfinite(stored["feature_map"]).all()
        assert stored["embedding"].std() > 0


@pytest.mark.parametrize(
    ("pretraining", "segmentation"),
    [("lvmmed_pretrain", "lvmmed_segmentation_2d"), ("voco_pretrain", "voco_segmentation_3d")],
)
def test_encoder_goes_from_one_bundle_to_the_other(
    pretraining, segmentation, trained: Any, datalist: Path, tmp_path: Path
) -> None:
    encoder = trained(pretraining) / "models" / "encoder.pt"
    overrides = {"datalist": str(datalist), "pretrained_encoder": str(encoder), "output_dir": str(tmp_path)}
    flow = workflow(SHIPPED[segmentation], "train", "train", **overrides)
    flow.initialize()
    stored = torch.load(encoder, weights_only=True)["state_dict"]
    loaded = flow.network_def.encoder.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in stored.items())


@pytest.mark.parametrize("name", NAMES)
def test_missing_weights_fail(name: str, datalist: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(name, tmp_path)
    with pytest.raises(RuntimeError) as caught:
        run(bundle, "inference", datalist=str(datalist), output_dir=str(tmp_path / "out"))
    reason = user_error_in(caught.value)
    assert isinstance(reason, UserError)
    assert "model weights not found" in str(reason)
    assert not list(tmp_path.glob("out/*"))
    run(bundle, "inference", datalist=str(datalist), output_dir=str(tmp_path / "out"), load_pretrain=False)
    assert list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", SEGMENTATION)
def test_inference_transforms_suit_their_hosts(name: str) -> None:
    parser = ConfigParser()
    parser.read_config(config_files(SHIPPED[name], "inference"))
    parser.update({**small(name, "inference"), "bundle_root": "nowhere"})
    preprocessing = parser.get_parsed_content("preprocessing")
    assert isinstance(preprocessing.transforms[0], LoadImaged)
    assert all(set(transform.keys) == {"image"} for transform in preprocessing.transforms)
    postprocessing = parser.get_parsed_content("postprocessing").transforms
    kinds = [type(transform).__name__ for transform in postprocessing]
    assert kinds.index("Invertd") < kinds.index("AsDiscreted")
    inverter = next(transform for transform in postprocessing if isinstance(transform, Invertd))
    assert inverter.transform is preprocessing
    assert not any(inverter.nearest_interp)
    assert sum(isinstance(transform, SaveImaged) for transform in postprocessing) == 1


def test_two_bundles_in_one_process() -> None:
    flows = [workflow(SHIPPED[name], "inference", "infer", datalist=[]) for name in SEGMENTATION[:2]]
    for flow in flows:
        flow.initialize()
    first, second = (type(flow.network_def.encoder).__name__ for flow in flows)
    assert first != second


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes(name: str, datalist: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(name, tmp_path)
    settings = {
        **small(name, "train"),
        "datalist": str(datalist),
        "device": "$torch.device('cpu')",
        "backend": "gloo",
        "amp": False,
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "monai.bundle",
        "run",
    ]
    command += ["--config_file", str(config_files(bundle, "multi_gpu_train")), "--bundle_root", str(bundle), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert (bundle / "models" / "model.pt").is_file()
    assert read_results(bundle / "output" / "train" / "results.json")["curves"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINING)
def test_killed_pretraining_ends_like_an_uninterrupted_one(name: str, datalist: Path, tmp_path: Path) -> None:
    settings = {**small(name, "train"), "datalist": datalist, "device": "$torch.device('cpu')", "amp": False}
    settings |= {"max_epochs": 3, "epoch_length": 10, "checkpoint_interval": 4, "held_out": None}

    def start(bundle: Path) -> subprocess.Popen[str]:
        words = [
            f"{key}={json.dumps(value) if not isinstance(value, Path) else value}" for key, value in settings.items()
        ]
        command = [sys.executable, "-m", "lvmmed_monai", "run", str(bundle), "train", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with (tmp_path / "log").open("a") as log:
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, text=True)

    whole, cut = (copy_bundle(name, tmp_path / folder) for folder in ("whole", "cut"))
    assert start(whole).wait(300) == 0, (tmp_path / "log").read_text()

    checkpoint = cut / "output" / "train" / "checkpoint.pt"
    process = start(cut)
    while not checkpoint.exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    step = torch.load(checkpoint, weights_only=True)["state"]["step"]
    assert 0 < step < 30
    assert step % 10 != 0
    assert not (cut / "models" / "encoder.pt").exists()

    assert start(cut).wait(300) == 0, (tmp_path / "log").read_text()
    assert f"resuming at step {step} of 30" in (tmp_path / "log").read_text()
    for file in ("encoder.pt", "model.pt"):
        expected, found = (torch.load(bundle / "models" / file, weights_only=True) for bundle in (whole, cut))
        expected, found = (content.get("state_dict", content) for content in (expected, found))
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
