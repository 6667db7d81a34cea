"""The training loop of the self-supervised methods."""

from __future__ import annotations

from lvmmed_monai.engines.pretrainer import Pretrainer
from lvmmed_monai.engines.schedule import warmup_cosine

__all__ = ["Pretrainer", "warmup_cosine"]
