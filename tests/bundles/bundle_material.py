"""Small volumes and settings with which every bundle runs within a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from lvmmed_monai.cli._bundle_files import bundle_folders

SHIPPED = {folder.name: folder for folder in bundle_folders()}
NAMES = sorted(SHIPPED)
SEGMENTATION = [name for name in NAMES if "segmentation" in name]
PRETRAINING = [name for name in NAMES if "pretrain" in name]
# Configurations of one bundle alone that are laid over its train.
OVERLAYS = {
    name: sorted(json.loads((folder / "params.json").read_text()).get("overlays", {}))
    for name, folder in SHIPPED.items()
}
SHAPE = (40, 36, 10)
AFFINE = np.array([[-4.5, 0, 0, 80.5], [0, -4.5, 0, 70.25], [0, 0, 9, -33], [0, 0, 0, 1]])


def _volume(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A body of fat in air with seven spheres, one for each class."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side) for side in SHAPE], indexing="ij"))
    label = np.zeros(SHAPE, np.uint8)
    image = np.where(grid[0] ** 2 + grid[1] ** 2 < 0.8, -50.0, -1000.0)
    for number, hu in enumerate((-800, 60, 120, 180, 175, 600, 20), start=1):
        angle = 2 * np.pi * number / 7 + random.normal() * 0.1
        centre = (0.55 * np.cos(angle), 0.55 * np.sin(angle), 0.0)
        inside = sum((axis - place) ** 2 for axis, place in zip(grid, centre, strict=True)) < 0.24**2
        label[inside], image[inside] = number, hu
    return (image + random.normal(size=SHAPE) * 20).astype(np.int16), label


def write_volumes(folder: Path) -> Path:
    """Small CT volumes with the labels of the generated torso, and their datalist."""
    random = np.random.default_rng(0)
    labels = json.loads((SHIPPED[SEGMENTATION[0]] / "configs" / "train.json").read_text())["labels"]
    content: dict[str, Any] = {
        "format": "lvmmed-datalist/1",
        "name": "spheres",
        "task": "segmentation",
        "modality": "CT",
        "labels": labels,
        "flip_safe": False,
    }
    for section, count in (("training", 4), ("validation", 2), ("test", 2)):
        content[section] = []
        for number in range(count):
            image, label = _volume(random)
            name = f"{section}{number}.nii.gz"
            nib.save(nib.Nifti1Image(image, AFFINE), folder / name)
            nib.save(nib.Nifti1Image(label, AFFINE), folder / f"label_{name}")
            content[section].append({"image": name, "label": f"label_{name}", "subject": name})
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder / "datalist.json"


def small(name: str, config: str) -> dict[str, Any]:
    """Settings that make a bundle run within a second."""
    smoke = json.loads((SHIPPED[name] / "params.json").read_text())["smoke"]
    own = smoke.get(config, {}) if config in OVERLAYS[name] else {}
    return {**smoke["all"], **({} if config == "inference" else smoke["train"]), **own}
