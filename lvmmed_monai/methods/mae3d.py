"""Masked autoencoding of volumes (He et al., arXiv 2111.06377), in the dense form that suits any encoder.

Cubic windows are divided into patches, most patches are set to 0, and the network paints them. Transformers can leave
hidden patches out; convolutions cannot, so that here the encoder sees the holes (as in SimMIM, arXiv 2111.09886, and
in the masked autoencoders of independent 3D studies, arXiv 2410.23132). The error is taken over hidden patches that
show body: air is trivial. Whole patches, not single voxels, are chosen so, since where the body ends is to be learnt.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.errors import UserError
from lvmmed_monai.methods._mae3d_fill import fill_in, mean_of_visible
from lvmmed_monai.methods._mae3d_network import MaskedAutoencoder, to_voxels
from lvmmed_monai.methods._volume_features import collapse_alarm, evaluating, monitor_generators, pooled_rank
from lvmmed_monai.methods._volume_method import VolumeMethod, last_monitors
from lvmmed_monai.methods._volumes import MIN_BODY_SHARE, VolumeBlocks

__all__ = ["MAE3D"]

_BODY = 0.02
_DECODER_WIDTH = 32


class MaskedWindowDataset(VolumeBlocks):
    """Windows of volumes with the patches to hide.

    A sample holds ``image`` (W, C, size, size, size) and ``masked`` (W, p, p, p), bool, with p = size / patch.

    Args:
        items: datalist items with ``modality`` and ``flip_safe``.
        cache: their volumes. Volumes of air are left out.
        size: edge of a window in voxels, a multiple of ``patch``.
        patch: edge of a patch in voxels.
        mask_ratio: share of the patches that are hidden.
        windows_per_volume: W.
        seed: of all draws.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        cache: VolumeCache,
        *,
        size: int,
        patch: int,
        mask_ratio: float,
        windows_per_volume: int,
        seed: int,
    ) -> None:
        super().__init__(items, cache, seed=seed)
        self.size = size
        self.patch = patch
        self.mask_ratio = mask_ratio
        self.windows_per_volume = windows_per_volume

    def sample(
        self, random: np.random.Generator, index: int, *, augment: bool = True, windows: int | None = None
    ) -> dict[str, Tensor]:
        """One sample of volume ``index`` with everything random drawn from ``random``.

        Args:
            random: the generator.
            index: of the volume.
            augment: axis order, flips, zoom and grey values of each window.
            windows: when not ``windows_per_volume``.
        """
        images, masks = [], []
        for _ in range(windows or self.windows_per_volume):
            images.append(self.block(random, index, (self.size,) * 3, augment=augment)[0])
            masks.append(draw_mask(random, self.size // self.patch, self.mask_ratio))
        return {"image": torch.stack(images), "masked": torch.stack(masks)}


def draw_mask(random: np.random.Generator, patches: int, mask_ratio: float) -> Tensor:
    """Which of patches^3 patches are hidden, bool: the same number in each draw, at least one, never all."""
    count = patches**3
    hidden = min(max(1, round(mask_ratio * count)), count - 1)
    order = torch.from_numpy(random.permutation(count))
    return (order < hidden).reshape(patches, patches, patches)


def patches_with_body(image: Tensor, patch: int) -> Tensor:
    """Which patches of (N, C, X, Y, Z) show more than air, (N, px, py, pz), bool."""
    body = (image > _BODY).any(1, keepdim=True).float()
    return F.avg_pool3d(body, patch)[:, 0] >= MIN_BODY_SHARE


def patch_error(painted: Tensor, image: Tensor, counted: Tensor, patch: int) -> Tensor:
    """Mean squared error over the voxels of counted patches, 0 without any; float32.

    Args:
        painted, image: (N, C, X, Y, Z).
        counted: (N, px, py, pz), bool.
        patch: edge of a patch in voxels.
    """
    weight = to_voxels(counted, patch).float()
    squared = (painted.float() - image.float()).square().mean(1, keepdim=True)
    return (squared * weight).sum() / weight.sum().clamp_min(1)


class MAE3D(VolumeMethod):
    """The method: network, data, step and monitors.

    A step costs about as much as one of VoCo, whose nine bases and four crops hold 13 crop_size^3 voxels: a window of
    twice the edge holds 8 crop_size^3, and the decoder comes on top.

    Args:
        window_size: edge of a window in voxels, a multiple of ``patch_size`` and of the encoder's largest stride; None
            for twice ``crop_size``, rounded up to such a multiple.
        patch_size: edge of a patch in voxels.
        mask_ratio: share of the patches that are hidden, between 0 and 1.
        windows_per_volume: windows of a volume and step.
        **common: of `VolumeMethod`; ``crop_size`` sets the size of the windows.

    Raises:
        UserError: an option that cannot be.
    """

    name = "mae3d"
    metric_directions: Mapping[str, bool] = {
        "masked_error": False,
        "fill_in_error": False,
        "mean_error": False,
        "effective_rank": True,
    }
    chance: Mapping[str, float] = {}

    def __init__(
        self,
        *,
        window_size: int | None = None,
        patch_size: int = 8,
        mask_ratio: float = 0.6,
        windows_per_volume: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        _check_options(patch_size, mask_ratio, windows_per_volume)
        self.patch_size = patch_size
        self.mask_ratio = mask_ratio
        self.windows_per_volume = windows_per_volume
        self.window_size = _window_edge(window_size, self.crop_size, math.lcm(patch_size, self._encoder.strides[-1]))
        if self.window_size == patch_size:
            raise UserError(
                f"a window of {self.window_size} voxels is a single patch; mae3d; use a larger window_size or a "
                "smaller patch_size"
            )
        self._network = MaskedAutoencoder(self._encoder, patch=patch_size, width=_DECODER_WIDTH)
        self._trivial: WeakKeyDictionary[MaskedWindowDataset, dict[str, float]] = WeakKeyDictionary()

    def network(self) -> nn.Module:
        """The trained module: encoder and decoder."""
        return self._network

    def dataset(
        self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path, seed: int
    ) -> MaskedWindowDataset:
        """Windows of the volumes of a section of datalists; see `VolumeMethod.volumes` for the errors."""
        items, cache = self.volumes(datalists, section, cache_dir)
        return MaskedWindowDataset(
            items,
            cache,
            size=self.window_size,
            patch=self.patch_size,
            mask_ratio=self.mask_ratio,
            windows_per_volume=self.windows_per_volume,
            seed=seed,
        )

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor | float]:
        """The error of a batch of `MaskedWindowDataset` samples, in squared grey values (0 to 1)."""
        image, masked = batch["image"].flatten(0, 1), batch["masked"].flatten(0, 1)
        counted = masked & patches_with_body(image, self.patch_size)
        return {"loss": patch_error(network(image, masked), image, counted, self.patch_size)}

    def monitors(self, dataset: MaskedWindowDataset) -> dict[str, float]:
        """Errors on held-out volumes, always on the same windows and masks, without augmentation.

        ``masked_error`` of the network, beside two answers that need no learning: ``fill_in_error`` of a smooth fill-in
        from the visible voxels, ``mean_error`` of their mean. ``effective_rank`` of pooled features of crops.
        """
        known = self._trivial.get(dataset)
        sums: dict[str, float] = defaultdict(float)
        patches = 0
        for random, index in monitor_generators(dataset, self.monitor_blocks):
            # One window at a time: they may be large.
            sample = dataset.sample(random, index, augment=False, windows=1)
            counted = sample["masked"] & patches_with_body(sample["image"], self.patch_size)
            answers = self._answers(**sample, trivial=known is None)
            patches += int(counted.sum())
            for name, answer in answers.items():
                error = patch_error(answer, sample["image"], counted, self.patch_size)
                sums[name] += float(error) * int(counted.sum())
        found = {name: total / patches if patches else float("nan") for name, total in sums.items()}
        if known is None:
            known = self._trivial[dataset] = {name: value for name, value in found.items() if name != "masked_error"}
        rank = pooled_rank(self._encoder, dataset, self.crop_size, self.monitor_blocks)
        return {**found, **known, "effective_rank": rank}

    def _answers(self, image: Tensor, masked: Tensor, *, trivial: bool) -> dict[str, Tensor]:
        device = next(self._network.parameters()).device
        with evaluating(self._network):
            answers = {"masked_error": self._network(image.to(device), masked.to(device)).cpu()}
        if trivial:
            visible = ~to_voxels(masked, self.patch_size)
            answers["fill_in_error"] = fill_in(image, visible, self.patch_size / 2)
            answers["mean_error"] = mean_of_visible(image, visible & (image > _BODY).any(1, keepdim=True))
        return answers

    def alarms(self, history: Mapping[str, Any]) -> list[str]:
        """What is wrong with a run, in plain words; see `Pretrainer.history`."""
        last = last_monitors(history)
        if last is None:
            return []
        found = collapse_alarm(last["effective_rank"])
        if last["masked_error"] >= last["fill_in_error"]:
            found.append(
                f"the error on hidden patches of held-out volumes, {last['masked_error']:.4f}, is not below that of a "
                f"smooth fill-in, {last['fill_in_error']:.4f}: nothing about anatomy is learnt yet; train longer, or "
                "use a higher learning rate or a larger window_size"
            )
        return found


def _check_options(patch_size: int, mask_ratio: float, windows_per_volume: int) -> None:
    if patch_size < 1 or windows_per_volume < 1:
        raise UserError(
            f"patch_size and windows_per_volume must be at least 1, got {patch_size} and {windows_per_volume}; mae3d; "
            "correct them"
        )
    if not 0 < mask_ratio < 1:
        raise UserError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}; mae3d; correct it")


def _window_edge(window_size: int | None, crop_size: int, multiple: int) -> int:
    if window_size is None:
        return math.ceil(2 * crop_size / multiple) * multiple
    if window_size < 1 or window_size % multiple:
        raise UserError(
            f"window_size must be a multiple of {multiple} (patch_size and the encoder's largest stride), "
            f"got {window_size}; mae3d; correct it"
        )
    return window_size
