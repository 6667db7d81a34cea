"""Every method runs in its bundle, `voco_pretrain` or `lvmmed_pretrain`, with nothing but its name changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bundle_material import small
from monai.bundle import ConfigParser
from monai.bundle import run as run_bundle

from lvmmed_monai.cli._bundle_files import copy_bundle
from lvmmed_monai.errors import user_error_in
from lvmmed_monai.networks import read_encoder_file
from lvmmed_monai.results import read_results

NAME = "voco_pretrain"
METHODS = ("voco", "mae3d", "simclr3d", "none")
PICTURE_METHODS = ("lvm_med", "simclr", "moco", "byol", "barlow_twins", "vicreg", "vicregl", "dino", "swav", "mae")


def run(bundle: Path, *configs: str, **overrides: Any) -> None:
    settings = {**small(bundle.name, configs[-1]), "device": "$torch.device('cpu')", "amp": False, **overrides}
    files = [str(bundle / "configs" / f"{config}.json") for config in configs]
    run_bundle(config_file=files, bundle_root=str(bundle), **settings)


@pytest.mark.parametrize(
    ("name", "method"),
    [*((NAME, method) for method in METHODS), *(("lvmmed_pretrain", method) for method in PICTURE_METHODS)],
)
def test_trains_and_evaluates(name: str, method: str, datalist: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(name, tmp_path / "bundles")
    run(bundle, "train", datalist=str(datalist), method=method)
    assert read_encoder_file(bundle / "models" / "encoder.pt")["provenance"]["method"] == method
    assert (bundle / "models" / "model.pt").is_file()
    run(bundle, "train", "evaluate", datalist=str(datalist), method=method)
    metrics = read_results(bundle / "output" / "evaluate" / "results.json")["metrics"]
    untrained = {key for key in metrics if key.endswith("_untrained")}
    assert {key + "_untrained" for key in metrics if key + "_untrained" in untrained} == untrained != set()
    if method == "none":
        assert metrics["effective_rank"]["value"] == metrics["effective_rank_untrained"]["value"]


def test_options_of_each_method_can_be_set(tmp_path: Path) -> None:
    parser = ConfigParser()
    parser.read_config(str(copy_bundle(NAME, tmp_path / "bundles") / "configs" / "train.json"))
    parser.update({**small(NAME, "train"), "grid": 3, "loss_mode": "v2", "crops_per_volume": 5})
    parser.update(
        {
            "method_options#mae3d#mask_ratio": 0.75,
            "method_options#mae3d#patch_size": 4,
            "method_options#voco#dropout": 0.3,
        }
    )
    voco = parser.get_parsed_content("ssl_method")
    assert (voco.grid, voco.loss_mode, voco.crops_per_volume, voco.dropout) == ((3, 3), "v2", 5, 0.3)
    parser["method"] = "mae3d"
    parser.parse(True)
    mae = parser.get_parsed_content("ssl_method")
    assert (mae.mask_ratio, mae.patch_size, mae.windows_per_volume) == (0.75, 4, 3)


@pytest.mark.parametrize("method", ["mae3d", "none"])
def test_refuses_an_option_that_a_method_does_not_have(method: str, datalist: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(NAME, tmp_path / "bundles")
    wrong = {f"method_options#{method}": {"ratio": 0.75}}
    with pytest.raises(RuntimeError) as caught:
        run(bundle, "train", datalist=str(datalist), method=method, **wrong)
    assert "does not take" in str(user_error_in(caught.value))
