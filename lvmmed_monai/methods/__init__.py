"""Self-supervised methods, each a class in a file of this folder and a line in `METHODS`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lvmmed_monai.errors import UserError

__all__ = ["METHODS", "build_method"]

# Dotted places, imported when a method is built.
METHODS: dict[str, str] = {
    "lvm_med": "lvmmed_monai.methods.lvm_med:LVMMed",
    "simclr": "lvmmed_monai.methods.simclr:SimCLR",
    "moco": "lvmmed_monai.methods.moco:MoCo",
    "byol": "lvmmed_monai.methods.byol:BYOL",
    "barlow_twins": "lvmmed_monai.methods.barlow_twins:BarlowTwins",
    "vicreg": "lvmmed_monai.methods.vicreg:VICReg",
    "vicregl": "lvmmed_monai.methods.vicregl:VICRegL",
    "dino": "lvmmed_monai.methods.dino:DINO",
    "swav": "lvmmed_monai.methods.swav:SwAV",
    "mae": "lvmmed_monai.methods.mae:MAE",
    "voco": "lvmmed_monai.methods.voco:VoCo",
    "voco_omni": "lvmmed_monai.methods.voco_omni:VoCoOmni",
    "mae3d": "lvmmed_monai.methods.mae3d:MAE3D",
    "simclr3d": "lvmmed_monai.methods.simclr3d:SimCLR3D",
    "none": "lvmmed_monai.methods.none:Scratch",
}


def build_method(name: str, method_options: Mapping[str, Mapping[str, Any] | None] | None = None, **common: Any) -> Any:
    """Build a method of `METHODS` with its options.

    Args:
        name: of the method.
        method_options: options of single methods under their names, ``{"mae3d": {"mask_ratio": 0.75}}``; those of
            other methods are left aside, so that one config serves all.
        **common: options that methods share; one under the method's name wins.

    Raises:
        UserError: no such method, or an option that it does not have.
    """
    own = method_options or {}
    for one in (name, *own):
        if one not in METHODS:
            raise UserError(f"unknown method {one!r}; pre-training; choose one of {', '.join(METHODS)}")
    options = {**common, **(own.get(name) or {})}
    module, attribute = METHODS[name].split(":")
    method = getattr(import_module(module), attribute)
    known = _options(method)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(
            f"method {name!r} does not take {', '.join(map(repr, unknown))}; pre-training; it knows {', '.join(known)}"
        )
    return method(**options)


def _options(method: type) -> list[str]:
    """Names of the options of a method, and of the classes that it hands its further options to."""
    names: list[str] = []
    for one in method.__mro__:
        kinds = inspect.signature(vars(one)["__init__"]).parameters if "__init__" in vars(one) else {}
        names += [name for name, parameter in kinds.items() if parameter.kind is parameter.KEYWORD_ONLY]
        if kinds and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in kinds.values()):
            break
    return names
