"""Small generated volumes, and the 3D methods with settings that make a step take a moment."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.methods import METHODS, build_method
from lvmmed_monai.methods._volume_method import VolumeMethod

SHAPE = (32, 31, 30)
COMMON: dict[str, Any] = {
    "encoder_options": {"init_filters": 8},
    "crop_size": 8,
    "spacing_mm": 2.0,
    "monitor_blocks": 4,
}
OWN: dict[str, dict[str, Any]] = {
    "voco": {"projector": (32, 16)},
    "mae3d": {"patch_size": 4},
    "simclr3d": {"projector": (32, 16), "places_per_volume": 3},
}


def _class(name: str) -> Any:
    module, attribute = METHODS[name].split(":")
    return getattr(import_module(module), attribute)


# voco_omni needs labelled volumes and has its own tests.
VOLUME_METHODS = [name for name in METHODS if issubclass(_class(name), VolumeMethod) and name != "voco_omni"]


def small_method(name: str, seed: int = 0, **own: Any) -> Any:
    """A method with small settings, its weights drawn from ``seed``."""
    torch.manual_seed(seed)
    return build_method(name, {**OWN, name: {**OWN.get(name, {}), **own}}, **COMMON)


def smooth_volume(seed: int, shape: tuple[int, int, int] = SHAPE, sigma: float = 3.0) -> np.ndarray:
    """Smooth noise in HU within the window of CT; no air."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return (180 * noise / noise.std() - 50).clip(-450, 390)


def write_pool(
    folder: Path, volumes: Sequence[np.ndarray], *, name: str = "set", flip_safe: bool = True, modality: str = "CT"
) -> Path:
    """A datalist of volumes of 2 mm voxels, all for training."""
    items = []
    for number, values in enumerate(volumes):
        image = f"{name}_{number}.nii.gz"
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0])), folder / image)
        items.append({"image": image, "subject": f"{name}{number}"})
    content = {"format": "lvmmed-datalist/1", "name": name, "task": "unlabelled", "modality": modality, "labels": {}}
    sections = {"flip_safe": flip_safe, "training": items, "validation": [], "test": []}
    write_datalist(folder / f"{name}.json", {**content, **sections})
    return folder / f"{name}.json"


def collated(dataset: Any, keys: Sequence[Any]) -> dict[str, torch.Tensor]:
    """A batch of samples."""
    return torch.utils.data.default_collate([dataset[key] for key in keys])
