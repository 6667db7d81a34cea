"""Encoder files: written whole, read with plain tensors only, loaded with a count of what fitted.

An encoder file (format ``lvmmed-encoder/1``) is a dictionary: ``format``, ``name``, ``options``,
``state_dict``, ``input`` (spatial_dims, in_channels, spacing_mm, intensity), ``provenance`` (method,
datalists, steps, seed, versions, licence). Other checkpoints (a bare state dict, or one below
``state_dict``, ``model``, ``network``, ``encoder`` or ``student``; a file of safetensors) are read too.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lvmmed_monai._optional import optional_import
from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path
from lvmmed_monai.networks._matching import LoadReport, match
from lvmmed_monai.networks.contract import STATED, Encoder
from lvmmed_monai.networks.published import check_published

__all__ = [
    "ENCODER_FORMAT",
    "LEAST_SHARE",
    "LoadReport",
    "load_encoder",
    "load_pretrained",
    "read_encoder_file",
    "save_encoder",
]

logger = logging.getLogger(__name__)

ENCODER_FORMAT = "lvmmed-encoder/1"
# Fewer tensors than this share of the encoder's mean that the file belongs to another architecture.
LEAST_SHARE = 0.95
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "encoder", "net", "student")


def _plain(value: Any, where: str) -> Any:
    """``value`` with only what ``torch.load(weights_only=True)`` reads: numbers, strings, lists and dictionaries."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(
        f"encoder file: {where} must hold plain numbers, strings, lists and dictionaries, got {type(value)}"
    )


def save_encoder(
    path: str | os.PathLike[str], encoder: Encoder, *, input: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write an encoder file, atomically.

    Args:
        path: where to.
        encoder: the module; its tensors are copied to the CPU.
        input: what it was trained on: ``spacing_mm``, ``intensity``; ``spatial_dims`` and
            ``in_channels`` are added from the encoder.
        provenance: how it came to be: method, datalists, steps, seed, versions, licence.

    Raises:
        TypeError: ``input`` or ``provenance`` holds something that is not a plain value.
    """
    content = {
        "format": ENCODER_FORMAT,
        "name": encoder.name,
        "options": _plain(encoder.options, "options"),
        "state_dict": {key: tensor.detach().cpu() for key, tensor in encoder.state_dict().items()},
        "input": _plain(
            {"spatial_dims": encoder.spatial_dims, "in_channels": encoder.in_channels, **input},
            "input",
        ),
        "provenance": _plain(provenance, "provenance"),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(
            f"encoder file not found; {path}; give the path of an encoder file, or null to start from random weights"
        )
    check_published(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"the encoder file holds more than tensors and plain values; {path}; "
            "save its state dict alone and give that file"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the encoder file cannot be read ({reason}); {path}; it is damaged or no PyTorch file"
        ) from None


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """What ``save_pretrained`` of transformers writes."""
    safetensors = optional_import("safetensors.torch", extra="sam")
    try:
        return safetensors.load_file(path)
    except (optional_import("safetensors", extra="sam").SafetensorError, OSError) as error:
        raise UserError(
            f"the encoder file cannot be read ({error}); {path}; it is damaged or no file of safetensors"
        ) from None


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping) and len(value) > 0 and all(isinstance(item, torch.Tensor) for item in value.values())
    )


def _find_state_dict(content: Any) -> Mapping[str, torch.Tensor] | None:
    """The state dict in a checkpoint: itself, or below up to two wrapping keys."""
    if _is_state_dict(content):
        return content
    if not isinstance(content, Mapping):
        return None
    for key in _WRAPPERS:
        found = _find_state_dict(content[key]) if isinstance(content.get(key), Mapping) else None
        if found is not None:
            return found
    return None


def read_encoder_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an encoder file or another checkpoint.

    Returns:
        The file's dictionary. For another checkpoint ``format`` is None, ``name`` and ``options`` are those of the
        encoder of this package in it, else None and empty; ``provenance`` holds the version of MONAI where the
        checkpoint has a ``monai_version``.

    Raises:
        UserError: the file is missing, unreadable, holds no state dict, or has the name of a published file and
            other content.
    """
    content = _load_file(Path(path))
    state = _find_state_dict(content)
    if state is None:
        raise UserError(f"no state dict in the encoder file; {path}; give an encoder file or a network's state dict")
    if isinstance(content, Mapping) and content.get("format") == ENCODER_FORMAT:
        return dict(content)
    version = content.get("monai_version")
    return {
        "format": None,
        **_stated(state),
        "state_dict": dict(state),
        "input": {},
        "provenance": {"versions": {"monai": version}} if isinstance(version, str) else {},
    }


def _stated(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Name and options that an encoder of this package left in the metadata of a state dict."""
    entries = getattr(state, "_metadata", {}).values()
    return next((dict(entry[STATED]) for entry in entries if STATED in entry), {"name": None, "options": {}})


def _describe(name: str | None, options: Mapping[str, Any]) -> str:
    return f"{name or 'an unnamed network'}({', '.join(f'{key}={value}' for key, value in options.items())})"


def load_encoder(path: str | os.PathLike[str], into: Encoder) -> LoadReport:
    """Load weights into an encoder and say what fitted.

    Prefixes such as ``module.`` or ``encoder.`` are removed at the start of keys only, the same for
    the whole file. First convolutions for another number of image channels are adapted, so that an image repeated
    over the channels gives the same maps, and tables of positions of another image size are interpolated; both are
    reported under ``reshaped``. What shapes do not show and the encoder can change, such as the order of patch
    merging, it takes over from the file (`Encoder.adopt`).

    Args:
        path: an encoder file or another checkpoint.
        into: the encoder to fill.

    Raises:
        UserError: the file is missing or unreadable, was written for other options, or fewer than 95 %
            of the encoder's tensors fit; ``into`` is then untouched.
    """
    content = read_encoder_file(path)
    there, here = _describe(content["name"], content["options"]), _describe(into.name, into.options)
    other = [
        key
        for key, value in content["options"].items()
        if key in into.options and key not in into.adjustable and _plain(into.options[key], key) != value
    ]
    chosen, report = match(
        content["state_dict"],
        into.state_dict(),
        in_channels=into.in_channels,
        present_name=into.present_name,
        fit=into.fitted,
    )
    if report.share < LEAST_SHARE or other:
        why = f"its options differ: {', '.join(other)}" if other else f"only {report}"
        raise UserError(
            f"the encoder file is of another architecture: it holds {there}, the network's encoder is {here} ({why}); "
            f"{path}; set encoder_name and encoder_options to those of the file, or give another file"
        )
    into.adopt(content)
    into.load_state_dict(chosen, strict=False)
    logger.info("encoder %s: %s", here, report)
    return report


def load_pretrained(network: nn.Module, path: str | os.PathLike[str] | None) -> LoadReport | None:
    """Load an encoder file into ``network.encoder``; nothing to do when ``path`` is None.

    Args:
        network: a network with an ``encoder``, bare or wrapped for distributed training.
        path: the file, or None to keep the random weights.

    Raises:
        UserError: as `load_encoder`.
    """
    if path is None:
        logger.info("no pre-trained encoder: the network starts from random weights")
        return None
    inner: Any = getattr(network, "module", network)
    return load_encoder(path, inner.encoder)
