"""VoCo on real volumes: HU, 8-bit CT, oblique axes and small MR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lvmmed_monai.data.datalist import write_datalist
from lvmmed_monai.methods.voco import VoCo

pytestmark = pytest.mark.real_data


def pool(folder: Path, modality: str, out: Path, count: int | None = None) -> Path:
    items = [{"image": str(path), "subject": path.name} for path in sorted(folder.glob("*.nii.gz"))[:count]]
    content = {"format": "lvmmed-datalist/1", "name": folder.name, "task": "unlabelled", "modality": modality}
    sections = {"labels": {}, "flip_safe": True, "training": items, "validation": [], "test": []}
    write_datalist(out / "datalist.json", {**content, **sections})
    return out / "datalist.json"


def steps(method: VoCo, datalist: Path, tmp_path: Path) -> tuple[list[float], dict[str, float]]:
    torch.manual_seed(0)
    network = method.network().train()
    dataset = method.dataset([datalist], "training", tmp_path / "cache", 0)
    assert dataset.skipped == 0
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(3):
        keys = [(2 * step + k, (2 * step + k) % len(dataset)) for k in range(2)]
        terms = method.step(torch.utils.data.default_collate([dataset[key] for key in keys]), network)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        method.after_step(network)
        losses.append(float(terms["loss"].detach()))
    return losses, method.monitors(dataset)


def test_ct_volumes(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("ct_volumes_nifti")
    method = VoCo(crop_size=16, spacing_mm=3.0, monitor_blocks=6)
    losses, found = steps(method, pool(folder, "CT", tmp_path), tmp_path)
    assert np.isfinite(losses).all()
    assert all(np.isfinite(value) for value in found.values())
    # The 8-bit head has no HU: an HU window would make it all but white.
    prepared = method.preparation({"image": str(folder / "ct_pitch_head_oblique.nii.gz"), "modality": "CT"})
    assert 0.05 < float((prepared > 0.2).mean()) < 0.9
    assert float((prepared == 1).mean()) < 0.1


def test_hippocampus_mr(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("msd_hippocampus") / "imagesTr"
    method = VoCo(crop_size=12, spacing_mm=1.0, monitor_blocks=4)
    losses, found = steps(method, pool(folder, "MR", tmp_path, 6), tmp_path)
    assert np.isfinite(losses).all()
    assert found["histogram_argmax_accuracy_clean"] > 0.4
