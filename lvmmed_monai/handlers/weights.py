"""Weights into a network before a run."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.handlers.checkpoint import bare

__all__ = ["ModelLoader"]

logger = logging.getLogger(__name__)


class ModelLoader:
    """Loads a bare state dict (``models/model.pt``) strictly into a network when the engine starts.

    A key ``module.`` that distributed training left at the start of every name is removed. Anything
    else that does not fit is an error: a model that was loaded in part would predict noise.

    Args:
        path: the state dict, or a dictionary with the key ``model`` that holds it.
        network: the network, bare or wrapped for distributed training.

    Raises:
        UserError: at the start, when the file is missing, unreadable or of another network.
    """

    def __init__(self, path: str | os.PathLike[str], network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or an evaluator."""
        engine.add_event_handler(Events.STARTED, self._load)

    def _read(self, device: Any) -> dict[str, torch.Tensor]:
        if not self.path.is_file():
            raise UserError(
                f"model weights not found; {self.path}; train the bundle first or set load_pretrain to false"
            )
        try:
            content = torch.load(self.path, map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(
                f"the model weights cannot be read ({type(error).__name__}); {self.path}; "
                "train again or give another file"
            ) from None
        state = content.get("model", content) if isinstance(content, dict) else {}
        torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
        return state

    def _load(self, engine: Any) -> None:
        state = self._read(engine.state.device)
        network = bare(self.network)
        here = network.state_dict()
        other = [
            *(here.keys() ^ state.keys()),
            *(key for key in here.keys() & state.keys() if here[key].shape != state[key].shape),
        ]
        if other:
            raise UserError(
                f"the model weights are of another network ({len(other)} tensors differ, e.g. {min(other)}); "
                f"{self.path}; "
                "set encoder_name, encoder_options and labels to those it was trained with"
            )
        network.load_state_dict(state)
        logger.info("loaded %d tensors from %s", len(state), self.path)
