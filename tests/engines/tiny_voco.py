"""VoCo on four small volumes with a small encoder, and processes that train it and can be killed."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from killed_training import train_with_saves
from monai.data import DataLoader
from scipy.ndimage import gaussian_filter

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.data.sampling import StepBatchSampler
from lvmmed_monai.engines import Pretrainer, warmup_cosine
from lvmmed_monai.methods.voco import VoCo

STEPS = 40
_MODULES = ["torch", "lvmmed_monai.engines", "lvmmed_monai.handlers", "lvmmed_monai.methods.voco"]


def quick_processes() -> Any:
    """Processes that are forked from one that has imported the heavy modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_MODULES)
    return context


def write_volumes(folder: Path) -> Path:
    """Four volumes of smooth noise and their datalist."""
    items = []
    for seed in range(4):
        noise = gaussian_filter(np.random.default_rng(seed).standard_normal((26, 26, 10)), 3)
        values = (180 * noise / noise.std() - 50).clip(-450, 390).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), folder / f"{seed}.nii.gz")
        items.append({"image": f"{seed}.nii.gz", "subject": f"s{seed}"})
    content = {"format": "lvmmed-datalist/1", "name": "set", "task": "unlabelled", "modality": "CT", "labels": {}}
    sections = {"training": items, "validation": [], "test": []}
    write_datalist(folder / "set.json", {**content, "flip_safe": True, **sections})
    return folder / "set.json"


def build(
    datalist: Path, *, steps: int = STEPS, batch_size: int = 2, voco: dict[str, Any] | None = None, **options: Any
) -> Pretrainer:
    """A pre-trainer of VoCo on `write_volumes`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = {"encoder_options": {"init_filters": 8}, "crop_size": 8, "crops_per_volume": 2, "projector": (16, 8)}
    method = VoCo(**{**small, **(voco or {})})
    data = method.dataset([datalist], "training", datalist.parent / "cache", 0)
    sampler = StepBatchSampler(len(data), batch_size, steps, seed=0)
    weights = [weight for weight in method.network().parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, eps=options.pop("eps", 1e-8))
    schedule = warmup_cosine(optimizer, 3, steps)
    loader = DataLoader(data, batch_sampler=sampler)
    options = {"clip_norm": 1.0, **options}
    return Pretrainer(method, loader, 1, optimizer, epoch_length=steps, lr_scheduler=schedule, **options)


def train_until_killed(datalist: str, folder: str, break_save: bool) -> None:
    """See `train_with_saves`."""
    train_with_saves(lambda handlers: build(Path(datalist), handlers=handlers), Path(folder), break_save)
