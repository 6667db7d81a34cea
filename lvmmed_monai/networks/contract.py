"""What every encoder of this package offers, so that decoders, methods and files need to know no family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["STATED", "Encoder", "contract_problems"]

# Key of an encoder's name and options in the metadata of a state dict.
STATED = "lvmmed_encoder"


class Encoder(nn.Module):
    """Base class: ``(B, in_channels, *spatial)`` in, a list of feature maps out, fine to coarse.

    A family calls `describe` at the end of its constructor and defines ``forward``. Map ``i`` has
    ``channels[i]`` channels and, for an input whose sides are multiples of ``strides[-1]``, spatial
    sides ``input // strides[i]``.

    Attributes are set on the instance, not annotated on the class: TorchScript reads class annotations
    and cannot compile a dictionary of options.
    """

    def describe(
        self,
        *,
        name: str,
        options: Mapping[str, Any],
        in_channels: int,
        spatial_dims: int,
        channels: Sequence[int],
        strides: Sequence[int],
        adjustable: Sequence[str] = (),
    ) -> None:
        """State what this encoder is.

        Args:
            name: its name in the registry.
            options: plain values that rebuild it, ``build_encoder(name, in_channels, **options)``; only what
                changes its output, for weights are refused where they differ.
            in_channels: channels of the input.
            spatial_dims: 2 or 3.
            channels: channels of each map, fine to coarse.
            strides: input side over map side of each map, fine to coarse, strictly growing.
            adjustable: those of ``options`` in which weights may differ, because `adopt` takes them over or `fitted`
                makes up for them, or the report of loading shows them.
        """
        self.name: str = name
        self.options: dict[str, Any] = dict(options)
        self.in_channels: int = in_channels
        self.spatial_dims: int = spatial_dims
        self.channels: tuple[int, ...] = tuple(channels)
        self.strides: tuple[int, ...] = tuple(strides)
        self.adjustable: tuple[str, ...] = tuple(adjustable)

    def adopt(self, origin: Mapping[str, Any]) -> None:
        """Become what weights were trained with, where the shapes of their tensors do not show it; here nothing.

        Called before weights go in, from an encoder file, another checkpoint, or a state dict of this package.

        Args:
            origin: ``name`` (None for foreign weights), ``options`` and ``provenance``, as in `read_encoder_file`.
        """

    def present_name(self, key: str) -> str:
        """The name that a tensor has in this encoder, from its name in older files; here the same."""
        return key

    def fitted(self, key: str, value: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
        """A tensor of weights in another shape, for an encoder of this family; None where there is no way, as here.

        Args:
            key: its present name.
            value: the tensor.
            shape: what is needed.
        """
        return None

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps, fine to coarse."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x) -> list of feature maps")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # Beside the tensors, where torch keeps the versions of modules: bare state dicts, too, say what they are of.
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata") and hasattr(self, "options"):
            destination._metadata[prefix[:-1]][STATED] = {"name": self.name, "options": dict(self.options)}

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Mapping[str, Any], *others: Any
    ) -> None:
        if STATED in local_metadata:
            self.adopt({**local_metadata[STATED], "provenance": {}})
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def contract_problems(encoder: nn.Module, batch: torch.Tensor) -> list[str]:
    """Where ``encoder`` breaks the contract on ``batch``; an empty list when it keeps it.

    Args:
        encoder: the module to look at.
        batch: input ``(B, in_channels, *spatial)`` with sides that are multiples of the largest stride.
    """
    if not isinstance(encoder, Encoder):
        return [f"expected an Encoder, got {type(encoder).__name__}"]
    problems = []
    if len(encoder.channels) != len(encoder.strides):
        problems.append(f"channels {encoder.channels} and strides {encoder.strides} differ in length")
    if any(coarse <= fine or coarse % fine for fine, coarse in zip(encoder.strides, encoder.strides[1:], strict=False)):
        problems.append(f"strides must grow by whole factors, got {encoder.strides}")
    with torch.no_grad():
        maps = encoder(batch)
    expected = [
        (batch.shape[0], channels, *(side // stride for side in batch.shape[2:]))
        for channels, stride in zip(encoder.channels, encoder.strides, strict=False)
    ]
    got = [tuple(one.shape) for one in maps]
    if got != expected:
        problems.append(f"feature maps: expected shapes {expected}, got {got}")
    return problems
