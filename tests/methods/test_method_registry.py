from __future__ import annotations

import subprocess
import sys

import pytest

from lvmmed_monai.errors import UserError
from lvmmed_monai.methods import METHODS, build_method


def test_unknown_names_and_options() -> None:
    with pytest.raises(UserError, match=r"unknown method 'simclr'.*lvm_med, voco"):
        build_method("simclr")
    with pytest.raises(UserError, match=r"method 'lvm_med' does not take.*'width'"):
        build_method("lvm_med", width=3)


# "voco_omni" needs labelled volumes: see its own tests.
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"voco_omni"}))
def test_names_agree(name: str) -> None:
    assert build_method(name, encoder_name="resnet18" if name == "lvm_med" else "segresnet_tiny").name == name


def test_registry_needs_no_torch() -> None:
    code = "import sys, lvmmed_monai.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
