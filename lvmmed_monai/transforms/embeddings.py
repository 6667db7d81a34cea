"""Writing what an encoder sees in an image."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from lvmmed_monai.files import atomic_path
from lvmmed_monai.transforms.saving import OneNamePerSource

__all__ = ["SaveEmbeddingd"]


class SaveEmbeddingd(MapTransform):
    """Write each feature map as ``<output_dir>/<stem>.npz``.

    The file holds ``feature_map`` (C, spatial...) and ``embedding`` (C,), its mean over space; both float32.

    Args:
        keys: feature maps (C, spatial...) with metadata.
        output_dir: folder, made when the first file is written.
        allow_missing_keys: leave absent keys alone instead of raising.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str | os.PathLike[str], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        self._names = OneNamePerSource()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write each key; the data come back unchanged."""
        result = dict(data)
        for key in self.key_iterator(result):
            stem = self._names.stem_of(result[key])
            features = result[key].detach().cpu().numpy().astype(np.float32)
            with atomic_path(self.output_dir / f"{stem}.npz") as path:
                np.savez_compressed(
                    path, feature_map=features, embedding=features.reshape(features.shape[0], -1).mean(axis=1)
                )
        return result
