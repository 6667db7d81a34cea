"""The training loop of the self-supervised methods."""

from __future__ import annotations

from lvmmed_monai.engines.pretrainer import Pretrainer
from lvmmed_monai.engines.process_group import join_process_group, leave_process_group
from lvmmed_monai.engines.schedule import lr_schedule, warmup_cosine, warmup_halving

__all__ = ["Pretrainer", "join_process_group", "leave_process_group", "lr_schedule", "warmup_cosine", "warmup_halving"]
