"""What a step of omni- or semi-supervised pre-training sees: volumes without labels beside labelled ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lvmmed_monai.methods._labelled_volumes import LabelledCrops, vary_grey
from lvmmed_monai.methods._voco_data import VolumeCropDataset
from lvmmed_monai.methods._volumes import VolumeBlocks
from lvmmed_monai.transforms.crops_3d import augment_crop, draw_crop_augmentation

__all__ = ["CropPairs", "OmniCrops"]

# So that the parts of a sample draw apart from each other.
_PAIRS, _LABELLED = 1, 2


class CropPairs:
    """Crops in two versions that lie alike: ``weak`` as it is, ``strong`` with other grey values.

    Both (S, C, edge, edge, edge): the teacher labels the first, the student is asked for the second.

    Args:
        volumes: where they are taken from.
        edge: of a crop, in voxels.
        crops: of a sample, S.
    """

    def __init__(self, volumes: VolumeBlocks, *, edge: int, crops: int) -> None:
        self.volumes = volumes
        self.edge = edge
        self.crops = crops

    def sample(self, random: np.random.Generator, index: int) -> dict[str, Tensor]:
        """Crops of volume ``index`` with everything random drawn from ``random``."""
        weak = torch.stack([self._crop(random, index) for _ in range(self.crops)])
        modality = self.volumes.data[index].get("modality", "OTHER")
        return {"weak": weak, "strong": torch.stack([vary_grey(random, crop, modality) for crop in weak])}

    def _crop(self, random: np.random.Generator, index: int) -> Tensor:
        crop, _ = self.volumes.block(random, index, (self.edge,) * 3, augment=False)
        geometry = draw_crop_augmentation(random, mirror=self.volumes.may_mirror(index))
        return augment_crop(crop, replace(geometry, shift=0.0))


class OmniCrops(Dataset):
    """Samples that join a volume without labels with a labelled one.

    The labelled volumes are gone through again and again, each time in another order: which one a sample takes is a
    function of the seed and of the sample's number in the run, so the list never ends and a resumed run goes on in it.

    Args:
        contrast: VoCo's crops of the volumes without labels; None leaves them out.
        pairs: crops in two versions of the same volumes; None leaves them out.
        labelled: crops of the labelled volumes; None leaves them out.
        seed: of all draws.
    """

    def __init__(
        self,
        contrast: VolumeCropDataset | None,
        pairs: CropPairs | None,
        labelled: LabelledCrops | None,
        *,
        seed: int,
    ) -> None:
        self.contrast, self.pairs, self.labelled = contrast, pairs, labelled
        self.seed = seed

    def __len__(self) -> int:
        volumes = self.pairs.volumes if self.pairs is not None else self.contrast or self.labelled
        return len(volumes) if volumes is not None else 0

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        draw, index = key if isinstance(key, tuple) else (0, key)
        sample: dict[str, Tensor] = {}
        if self.contrast is not None:
            sample |= self.contrast[draw, index]
        if self.pairs is not None:
            sample |= self.pairs.sample(np.random.default_rng([self.seed, draw, index, _PAIRS]), index)
        if self.labelled is not None:
            random = np.random.default_rng([self.seed, draw, index, _LABELLED])
            sample |= self.labelled.sample(random, self.labelled_index(draw))
        return sample

    def labelled_index(self, draw: int) -> int:
        """Which labelled volume sample ``draw`` of the run takes."""
        if self.labelled is None:
            raise RuntimeError("there are no labelled volumes")
        turn, place = divmod(draw, len(self.labelled))
        return int(np.random.default_rng([self.seed, turn, _LABELLED]).permutation(len(self.labelled))[place])
