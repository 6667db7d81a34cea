"""Self-supervised methods, each a class in a file of this folder and a line in `METHODS`."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from lvmmed_monai.errors import UserError

__all__ = ["METHODS", "build_method"]

# Dotted places, imported when a method is built.
METHODS: dict[str, str] = {
    "lvm_med": "lvmmed_monai.methods.lvm_med:LVMMed",
    "voco": "lvmmed_monai.methods.voco:VoCo",
    "voco_omni": "lvmmed_monai.methods.voco_omni:VoCoOmni",
}


def build_method(name: str, **options: Any) -> Any:
    """Build a method of `METHODS` with its options.

    Raises:
        UserError: no such method, or an option that it does not have.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; pre-training; choose one of {', '.join(METHODS)}")
    module, attribute = METHODS[name].split(":")
    method = getattr(import_module(module), attribute)
    try:
        inspect.signature(method).bind(**options)
    except TypeError as error:
        raise UserError(
            f"method {name!r} does not take these options ({error}); pre-training; "
            f"it knows {', '.join(inspect.signature(method).parameters)}"
        ) from None
    return method(**options)
