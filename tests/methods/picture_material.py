"""Random pictures, and the 2D methods with settings that make a step take a moment."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.methods import METHODS, build_method
from lvmmed_monai.methods._picture_method import PictureMethod

COMMON: dict[str, Any] = {
    "encoder_name": "resnet18",
    "encoder_options": {"width": 4},
    "views": {"size": 64},
    "cache_size": 64,
    "monitor_images": 16,
}
_HEAD = {"projector": (16, 8)}
OWN: dict[str, dict[str, Any]] = {
    "lvm_med": {"loss_options": {"nodes_per_graph": 4, "neighbours": 2, "regroup": 1}},
    "simclr": _HEAD,
    "moco": {**_HEAD, "queue_size": 20},
    "byol": {**_HEAD, "predictor": (16,)},
    "barlow_twins": {"projector": (16, 16, 16)},
    "vicreg": {"projector": (16, 16, 16)},
    "vicregl": {"projector": (16, 16, 16), "local_projector": (8, 8)},
    "dino": {"projector": (16, 8), "prototypes": 12},
    "swav": {**_HEAD, "prototypes": 6},
}


def _class(name: str) -> Any:
    module, attribute = METHODS[name].split(":")
    return getattr(import_module(module), attribute)


PICTURE_METHODS = [name for name in METHODS if issubclass(_class(name), PictureMethod)]


def small_picture_method(name: str, seed: int = 0, **own: Any) -> Any:
    """A 2D method with small settings, its weights drawn from ``seed``."""
    torch.manual_seed(seed)
    return build_method(name, {**OWN, name: {**OWN.get(name, {}), **own}}, **COMMON)


def random_batch(pictures: int = 8, *, small: int = 0, size: int = 64, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch as `ViewPairs` samples make it, of random pixels, with ``small`` small views each."""
    random = torch.Generator().manual_seed(seed)
    base = torch.rand(pictures, 3, size, size, generator=random)
    batch = {"index": torch.arange(pictures)}
    for number in (1, 2):
        batch[f"view{number}"] = (base + 0.2 * torch.rand(base.shape, generator=random)).clamp(0, 1)
        corner = torch.randint(0, 20, (pictures, 2), generator=random).float()
        side = torch.full((pictures, 2), 60.0)
        flip = torch.randint(0, 2, (pictures, 1), generator=random).float()
        batch[f"location{number}"] = torch.cat([corner, side, flip], dim=1)
    if small:
        batch["small"] = torch.rand(pictures, small, 3, 32, 32, generator=random)
        batch["small_location"] = torch.rand(pictures, small, 5, generator=random)
    return batch


def write_pictures(folder: Path, count: int = 20) -> Path:
    """A datalist of smooth coloured pictures, all for training."""
    random = np.random.default_rng(0)
    items = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3)).astype(np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        items.append({"image": f"{number}.png", "subject": f"p{number}"})
    content = {"format": "lvmmed-datalist/1", "name": "pictures", "task": "unlabelled", "modality": "COLOR"}
    sections = {"training": items, "validation": [], "test": []}
    write_datalist(folder / "pictures.json", {**content, "labels": {}, "flip_safe": True, **sections})
    return folder / "pictures.json"
