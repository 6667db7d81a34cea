"""How much a training writes, computed before the first step."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lvmmed_monai.engines.memory import optimizer_bytes
from lvmmed_monai.files import output_folder

__all__ = ["announce_disk"]

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def announce_disk(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    checkpoints: PathLike | None,
    encoder: nn.Module,
    outputs: Sequence[PathLike | None],
) -> None:
    """Log what a training will write and check that there is room for it.

    A file is whole at every moment, so while one checkpoint replaces another both are there. The cache of the data is
    not in it: it stands when a training begins, and its own size is announced before it is built.

    Args:
        network, optimizer: what a checkpoint holds.
        checkpoints: folder of the checkpoint; None where there is none.
        encoder: what is written at the end.
        outputs: the files that hold it; None for one that is not written.

    Raises:
        UserError: too little space.
    """
    checkpoint, weights = _bytes(network) + optimizer_bytes(optimizer), _bytes(encoder)
    files = [Path(path).parent for path in outputs if path is not None]
    needs = [] if checkpoints is None else [(Path(checkpoints), 2 * checkpoint)]
    needs += [(folder, weights) for folder in files]
    if not needs:
        return
    logger.info(
        "the training writes a checkpoint of about %.1f MB (two while one replaces the other) and %d files of %.1f MB",
        checkpoint / 1e6,
        len(files),
        weights / 1e6,
    )
    of_disk: dict[int, int] = {}
    for folder, size in needs:
        disk = output_folder(folder).stat().st_dev
        of_disk[disk] = of_disk.get(disk, 0) + size
        output_folder(folder, need_bytes=of_disk[disk])


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
