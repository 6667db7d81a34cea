"""Toy volumes with a visible structure, their datalists, and small settings of `VoCoOmni`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader
from scipy.ndimage import gaussian_filter

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.engines import Pretrainer
from lvmmed_monai.methods.voco_omni import VoCoOmni

LABELS = {"0": "background", "1": "bright", "2": "dark"}
SHAPE = (34, 33, 20)
SMALL: dict[str, Any] = {
    "encoder_name": "swinunetr_tiny",
    "encoder_options": {"window_size": 2},
    "grid": 2,
    "crop_size": 16,
    "crops_per_volume": 1,
    "spacing_mm": 2.0,
    "projector": (16, 8),
    "monitor_blocks": 2,
}


def anatomy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """HU of soft tissue with a bright and a dark ball, and their labels."""
    random = np.random.default_rng(seed)
    image = 30 * gaussian_filter(random.standard_normal(SHAPE), 2) - 50
    label = np.zeros(SHAPE, np.uint8)
    grid = np.stack(np.meshgrid(*[np.arange(side) for side in SHAPE], indexing="ij"))
    for number, (middle, hu) in enumerate(((9, 250), (24, -350)), start=1):
        centre = np.array([middle, 16, 10]) + random.integers(-3, 4, 3)
        inside = ((grid - centre[:, None, None, None]) ** 2).sum(0) < 6**2
        image[inside], label[inside] = hu, number
    return image.round(), label


def write_set(
    folder: Path,
    name: str,
    seeds: dict[str, list[int]],
    *,
    labels: dict[str, str] | None = LABELS,
    flip_safe: bool = True,
) -> Path:
    """A datalist of `anatomy` volumes; without labels for ``labels=None``."""
    content: dict[str, Any] = {
        "format": "lvmmed-datalist/1",
        "name": name,
        "task": "segmentation" if labels else "unlabelled",
        "modality": "CT",
        "labels": labels or {},
        "flip_safe": flip_safe,
    }
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for section in ("training", "validation", "test"):
        content[section] = []
        for seed in seeds.get(section, []):
            image, label = anatomy(seed)
            item = {"image": f"{name}_{seed}.nii.gz", "subject": f"{name}{seed}"}
            nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / item["image"])
            if labels:
                item["label"] = f"{name}_{seed}_label.nii.gz"
                nib.save(nib.Nifti1Image(label, affine), folder / item["label"])
            content[section].append(item)
    write_datalist(folder / f"{name}.json", content)
    return folder / f"{name}.json"


def build_run(
    method: VoCoOmni, unlabelled: Path, cache: Path, *, steps: int, batch_size: int = 1, **options: Any
) -> Pretrainer:
    """A pre-trainer of ``steps`` steps of ``method``."""
    dataset = method.dataset([unlabelled], "training", cache, 0)
    sampler = StepBatchSampler(len(dataset), batch_size, steps, seed=0)
    loader = DataLoader(dataset, batch_sampler=sampler)
    weights = [weight for weight in method.network().parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.pop("lr", 1e-3))
    return Pretrainer(method, loader, 1, optimizer, epoch_length=steps, clip_norm=5.0, **options)
