"""The table of encoders. A new one is a function in a file of this folder and one line here."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks.contract import Encoder

__all__ = ["ENCODERS", "build_encoder", "encoder_names"]

# Dotted places, imported at first use: a family may need a package that others do not.
ENCODERS: dict[str, str] = {
    "resnet18": "lvmmed_monai.networks.resnet:resnet18",
    "resnet50": "lvmmed_monai.networks.resnet:resnet50",
    "sam_vit_b": "lvmmed_monai.networks.sam:sam_vit_b",
    "sam_vit_l": "lvmmed_monai.networks.sam:sam_vit_l",
    "sam_vit_h": "lvmmed_monai.networks.sam:sam_vit_h",
    "segresnet_tiny": "lvmmed_monai.networks.segresnet:segresnet_tiny",
    "segresnet_b": "lvmmed_monai.networks.segresnet:segresnet_b",
    "swinunetr_tiny": "lvmmed_monai.networks.swin:swinunetr_tiny",
    "swinunetr_b": "lvmmed_monai.networks.swin:swinunetr_b",
    "swinunetr_l": "lvmmed_monai.networks.swin:swinunetr_l",
    "swinunetr_h": "lvmmed_monai.networks.swin:swinunetr_h",
}


def encoder_names() -> list[str]:
    """Names that `build_encoder` knows, in the table's order."""
    return list(ENCODERS)


def _builder(name: str) -> Callable[..., Encoder]:
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}; encoder_name; use one of {', '.join(ENCODERS)}")
    module, function = ENCODERS[name].split(":")
    return getattr(importlib.import_module(module), function)


def build_encoder(name: str, in_channels: int = 1, **options: Any) -> Encoder:
    """Build an encoder with random weights (from torch's global generator).

    Args:
        name: one of `encoder_names()`.
        in_channels: channels of the input, at least 1.
        **options: options of this encoder, e.g. ``width=16`` for ``resnet18``.

    Raises:
        UserError: no such encoder, or an option that it does not have.
    """
    builder = _builder(name)
    try:
        inspect.signature(builder).bind(in_channels=in_channels, **options)
    except TypeError as error:
        known = [parameter for parameter in inspect.signature(builder).parameters if parameter != "in_channels"]
        raise UserError(
            f"encoder {name!r} does not take these options ({error}); encoder_options; "
            f"it knows {', '.join(known) or 'none'}"
        ) from None
    return builder(in_channels=in_channels, **options)
