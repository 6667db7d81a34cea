from __future__ import annotations

import subprocess
import sys

import pytest
from picture_material import PICTURE_METHODS

from lvmmed_monai.errors import UserError
from lvmmed_monai.methods import METHODS, build_method


def test_unknown_names_and_options() -> None:
    with pytest.raises(UserError, match=r"unknown method 'simsiam'.*lvm_med, simclr"):
        build_method("simsiam")
    with pytest.raises(UserError, match=r"method 'lvm_med' does not take.*'width'"):
        build_method("lvm_med", width=3)
    with pytest.raises(UserError, match=r"unknown method 'mae2d'.*mae3d"):
        build_method("voco", {"mae2d": {}})
    with pytest.raises(UserError, match=r"method 'mae3d' does not take.*'grid'"):
        build_method("mae3d", {"mae3d": {"grid": 3}})


def test_options_stand_under_the_name_of_their_method() -> None:
    options = {"mae3d": {"mask_ratio": 0.75, "crop_size": 16}, "simclr3d": {"temperature": 0.1}, "none": None}
    mae = build_method("mae3d", options, crop_size=32, spacing_mm=1.0)
    assert (mae.mask_ratio, mae.crop_size) == (0.75, 16)
    simclr = build_method("simclr3d", options, crop_size=32, spacing_mm=1.0)
    assert (simclr.temperature, simclr.crop_size) == (0.1, 32)
    assert build_method("none", options, crop_size=32).crop_size == 32


# "voco_omni" needs labelled volumes: see its own tests.
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"voco_omni"}))
def test_names_agree(name: str) -> None:
    assert build_method(name, encoder_name="resnet18" if name in PICTURE_METHODS else "segresnet_tiny").name == name


def test_registry_needs_no_torch() -> None:
    code = "import sys, lvmmed_monai.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
