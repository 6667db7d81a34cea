"""Encoder files: written whole, read with plain tensors only, loaded with a count of what fitted.

An encoder file (format ``lvmmed-encoder/1``) is a dictionary: ``format``, ``name``, ``options``,
``state_dict``, ``input`` (spatial_dims, in_channels, spacing_mm, intensity), ``provenance`` (method,
datalists, steps, seed, versions, licence). Other checkpoints (a bare state dict, or one below
``state_dict``, ``model``, ``network`` or ``encoder``) are read too.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.files import atomic_path
from lvmmed_monai.networks.contract import Encoder

__all__ = ["ENCODER_FORMAT", "LoadReport", "load_encoder", "load_pretrained", "read_encoder_file", "save_encoder"]

logger = logging.getLogger(__name__)

ENCODER_FORMAT = "lvmmed-encoder/1"
# Fewer tensors than this share of the encoder's mean that the file belongs to another architecture.
_LEAST_SHARE = 0.95
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "encoder", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "encoder.", "backbone.")
# Counters of batch normalisation: older files lack them, and they change no result.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file and of the network it went into.

    Attributes:
        matched: tensors of the network that were filled from the file.
        missing: tensors of the network that the file has not, or has in another shape.
        unexpected: tensors of the file that the network has no place for.
        reshaped: those of ``matched`` whose input channels were adapted.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def share(self) -> float:
        """Matched tensors over all tensors of the network, 0 to 1."""
        return len(self.matched) / max(1, len(self.matched) + len(self.missing))

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} tensors matched, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.reshaped)} reshaped"
        )


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
        The file's dictionary; for a foreign checkpoint ``name`` is None and ``options``, ``input`` and
        ``provenance`` are empty.

    Raises:
        UserError: the file is missing, unreadable, or holds no state dict.
    """
    content = _load_file(Path(path))
    state = _find_state_dict(content)
    if state is None:
        raise UserError(f"no state dict in the encoder file; {path}; give an encoder file or a network's state dict")
    if isinstance(content, Mapping) and content.get("format") == ENCODER_FORMAT:
        return dict(content)
    return {"format": None, "name": None, "options": {}, "state_dict": dict(state), "input": {}, "provenance": {}}


def _leading_prefixes(keys: list[str]) -> set[str]:
    """All chains of known prefixes with which some key begins, the empty one among them."""
    found = {""}
    for key in keys:
        prefix = ""
        while True:
            step = next((known for known in _PREFIXES if key.startswith(prefix + known)), None)
            if step is None:
                break
            prefix += step
            found.add(prefix)
    return found


def _adapt_input_channels(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
    """A first convolution for another number of input channels, or None if more than that differs.

    Its response to an image repeated over the channels stays the same.
    """
    only_inputs = (
        source.ndim == target.ndim >= 4 and source.shape[0] == target.shape[0] and source.shape[2:] == target.shape[2:]
    )
    if (
        not only_inputs
        or min(source.shape[1], target.shape[1]) not in (1, 3)
        or max(source.shape[1], target.shape[1]) > 4
    ):
        return None
    return (source.sum(dim=1, keepdim=True) / target.shape[1]).expand_as(target).contiguous()


def _match(
    source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], LoadReport]:
    """Tensors of ``source`` that fit ``target``, under the one prefix with which most of them do."""
    prefix = max(
        sorted(_leading_prefixes(list(source)), key=len),
        key=lambda one: sum(one + key in source and source[one + key].shape == target[key].shape for key in target),
    )
    chosen: dict[str, torch.Tensor] = {}
    reshaped: list[str] = []
    for key, place in target.items():
        value = source.get(prefix + key)
        if value is not None and value.shape == place.shape:
            chosen[key] = value
        elif value is not None and (adapted := _adapt_input_channels(value, place)) is not None:
            chosen[key] = adapted
            reshaped.append(key)
    missing = [
        key for key in target if key not in chosen and not (key.endswith(_COUNTER) and prefix + key not in source)
    ]
    unexpected = [key for key in source if not (key.startswith(prefix) and key[len(prefix) :] in target)]
    return chosen, LoadReport(tuple(chosen), tuple(missing), tuple(unexpected), tuple(reshaped))


def _describe(name: str | None, options: Mapping[str, Any]) -> str:
    return f"{name or 'an unnamed network'}({', '.join(f'{key}={value}' for key, value in options.items())})"


def load_encoder(path: str | os.PathLike[str], into: Encoder) -> LoadReport:
    """Load weights into an encoder and say what fitted.

    Prefixes such as ``module.`` or ``encoder.`` are removed at the start of keys only, the same for
    the whole file. A first convolution for another number of image channels (1, 3 or 4) is adapted and
    reported under ``reshaped``.

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
        if key in into.options and _plain(into.options[key], key) != value
    ]
    chosen, report = _match(content["state_dict"], into.state_dict())
    if report.share < _LEAST_SHARE or other:
        why = f"its options differ: {', '.join(other)}" if other else f"only {report}"
        raise UserError(
            f"the encoder file is of another architecture: it holds {there}, the network's encoder is {here} ({why}); "
            f"{path}; set encoder_name and encoder_options to those of the file, or give another file"
        )
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
