"""Which tensors of a file fill which of a network, whatever stands in front of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["LoadReport", "match"]

_PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "network.",
    "net.",
    "encoder.",
    "image_encoder.",
    "vision_encoder.",
    "backbone.",
    "student.",
)
# Counters of batch normalisation: older files lack them, and they change no result.
_COUNTER = "num_batches_tracked"

_Tensors = Mapping[str, torch.Tensor]
_Fit = Callable[[str, torch.Tensor, torch.Size], torch.Tensor | None]


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file and of the network it went into.

    Attributes:
        matched: tensors of the network that were filled from the file.
        missing: tensors of the network that the file has not, or has in another shape.
        unexpected: tensors of the file that the network has no place for.
        reshaped: those of ``matched`` that were brought to another shape: to other input channels, or tables of
            positions to another image size.
        mismatched: those of ``missing`` that the file has in another shape.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    mismatched: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Matched tensors over all tensors of the network, 0 to 1."""
        return len(self.matched) / max(1, len(self.matched) + len(self.missing))

    def __str__(self) -> str:
        other_shape = f" ({len(self.mismatched)} of another shape)" if self.mismatched else ""
        return (
            f"{len(self.matched)} tensors matched, {len(self.missing)} missing{other_shape}, "
            f"{len(self.unexpected)} unexpected, {len(self.reshaped)} reshaped"
        )


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


def _without_prefix(source: _Tensors, target: _Tensors) -> tuple[str, dict[str, torch.Tensor]]:
    """The prefix under which most tensors fit ``target``, and the tensors below it without it."""
    prefix = max(
        sorted(_leading_prefixes(list(source)), key=len),
        key=lambda one: sum(one + key in source and source[one + key].shape == target[key].shape for key in target),
    )
    return prefix, {key[len(prefix) :]: value for key, value in source.items() if key.startswith(prefix)}


def _differs_in_inputs_only(value: torch.Tensor, place: torch.Tensor, in_channels: int) -> bool:
    same_otherwise = value.shape[:1] == place.shape[:1] and value.shape[2:] == place.shape[2:]
    return value.ndim == place.ndim >= 4 and place.shape[1] == in_channels != value.shape[1] and same_otherwise


def _adapted_first_layers(source: _Tensors, target: _Tensors, in_channels: int) -> dict[str, torch.Tensor]:
    """First convolutions for another number of image channels; none if they do not agree on that number.

    Their response to an image repeated over the channels stays the same.
    """
    first = [key for key in target if key in source and _differs_in_inputs_only(source[key], target[key], in_channels)]
    if len({source[key].shape[1] for key in first}) > 1:
        return {}
    return {
        key: (source[key].sum(dim=1, keepdim=True) / in_channels).expand_as(target[key]).contiguous() for key in first
    }


def _fitted(source: _Tensors, target: _Tensors, fit: _Fit) -> dict[str, torch.Tensor]:
    other = {key: place.shape for key, place in target.items() if key in source and source[key].shape != place.shape}
    found = {key: fit(key, source[key], shape) for key, shape in other.items()}
    return {key: value for key, value in found.items() if value is not None}


def match(
    source: _Tensors,
    target: _Tensors,
    *,
    in_channels: int,
    present_name: Callable[[str], str],
    fit: _Fit = lambda key, value, shape: None,
) -> tuple[dict[str, torch.Tensor], LoadReport]:
    """Tensors of ``source`` that fit ``target``, under the one prefix with which most of them do.

    Args:
        source: state dict of a file.
        target: state dict of the network.
        in_channels: image channels of the network, to which first convolutions are adapted.
        present_name: a tensor's present name from the one in the file.
        fit: brings a tensor to another shape, as `Encoder.fitted`.
    """
    prefix, below = _without_prefix({present_name(key): value for key, value in source.items()}, target)
    adapted = {**_adapted_first_layers(below, target, in_channels), **_fitted(below, target, fit)}
    chosen = {
        key: adapted.get(key, below[key])
        for key, place in target.items()
        if key in adapted or (key in below and below[key].shape == place.shape)
    }
    missing = [key for key in target if key not in chosen and not (key.endswith(_COUNTER) and key not in below)]
    unexpected = [
        key for key in source if not ((name := present_name(key)).startswith(prefix) and name[len(prefix) :] in target)
    ]
    mismatched = [key for key in missing if key in below]
    return chosen, LoadReport(tuple(chosen), tuple(missing), tuple(unexpected), tuple(adapted), tuple(mismatched))
