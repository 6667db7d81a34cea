"""No pre-training: the random weights of the seed, through the same trainer and with the same outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvmmed_monai.methods._volume_features import pooled_rank
from lvmmed_monai.methods._volume_method import VolumeMethod
from lvmmed_monai.methods._volumes import VolumeBlocks
from lvmmed_monai.networks import Encoder

__all__ = ["Scratch"]


class UnreadVolumes(VolumeBlocks):
    """Samples that say which volume it is and read nothing: ``volume``, a number."""

    def sample(self, random: np.random.Generator, index: int) -> dict[str, Tensor]:
        """The number of the volume; nothing is drawn."""
        return {"volume": torch.tensor(index)}


class ScratchNetwork(nn.Module):
    """A frozen encoder, and one weight that stays 0, since an optimiser needs something to hold."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.idle = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        """0, with a gradient of 0 in ``idle``."""
        return self.idle.square()


class Scratch(VolumeMethod):
    """The baseline of all baselines: comparisons treat it as a method, and its steps take no time.

    The encoder is frozen here; networks built from its file are not.

    Args:
        **common: of `VolumeMethod`; ``monitors`` looks at 4 crops of each of its blocks.

    Raises:
        UserError: an option that cannot be.
    """

    name = "none"
    metric_directions: Mapping[str, bool] = {"effective_rank": True}
    chance: Mapping[str, float] = {}

    def __init__(
        self,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self._network = ScratchNetwork(self._encoder)

    def network(self) -> nn.Module:
        """The encoder in its wrapper."""
        return self._network

    def dataset(self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path, seed: int) -> UnreadVolumes:
        """The volumes of a section of datalists; see `VolumeMethod.volumes` for the errors."""
        items, cache = self.volumes(datalists, section, cache_dir)
        return UnreadVolumes(items, cache, seed=seed)

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor | float]:
        """A loss of 0."""
        return {"loss": network()}

    def monitors(self, dataset: VolumeBlocks) -> dict[str, float]:
        """``effective_rank`` of pooled features of held-out crops."""
        return {"effective_rank": pooled_rank(self._encoder, dataset, self.crop_size, self.monitor_blocks)}

    def alarms(self, history: Mapping[str, Any]) -> list[str]:
        """None: nothing is learnt here."""
        return []
