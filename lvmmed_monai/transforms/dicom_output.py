"""Predictions as DICOM SEG on the slices of the series that ingest made the image from."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from lvmmed_monai.errors import UserError
from lvmmed_monai.transforms.saving import OneNamePerSource

__all__ = ["SaveDicomSegd"]

_log = logging.getLogger(__name__)


class SaveDicomSegd(MapTransform):
    """Write label maps as ``<output_dir>/<volume id>.dcm``, a DICOM SEG that refers to the source series.

    The volume id is the image's file name without its endings, as ingest wrote it. A map without any
    label gives no file, because a SEG without frames is not valid; the log says so.

    Args:
        keys: predictions, (1, x, y, z) label indices with metadata, on the image's own grid (after Invertd).
        output_dir: folder, made when the first file is written.
        sources: ``journal.sqlite`` of the ingest output, which knows the source instances.
        labels: label index to name; keys may be strings, as JSON has them; 0 is background.
        algorithm_name: what made the predictions, for the object's header.
        allow_missing_keys: leave absent keys alone instead of raising.

    Raises:
        UserError: the volume is not in the journal, or the prediction is not on the grid of its source.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike[str],
        sources: str | os.PathLike[str],
        labels: Mapping[int, str] | Mapping[str, str],
        algorithm_name: str = "lvmmed_monai",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.sources = sources
        self.labels = labels
        self.algorithm_name = algorithm_name
        self._names = OneNamePerSource()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write each key; the data come back unchanged."""
        result = dict(data)
        for key in self.key_iterator(result):
            self._write(result[key])
        return result

    def _write(self, prediction: MetaTensor) -> None:
        # Here, so that a bundle can be parsed where highdicom is not installed.
        from lvmmed_monai.dicom.seg_writer import write_segmentation
        from lvmmed_monai.dicom.sources import read_sources

        volume_id = self._names.stem_of(prediction)
        mask = prediction.detach().cpu().numpy()
        if mask.ndim != 4 or mask.shape[0] != 1:
            raise UserError(
                f"a label map for DICOM SEG must be (1, x, y, z), got shape {mask.shape}; {volume_id}; "
                "put AsDiscreted(argmax) before SaveDicomSegd"
            )
        path = write_segmentation(
            self.output_dir / f"{volume_id}.dcm",
            mask[0],
            np.asarray(prediction.affine, dtype=np.float64),
            read_sources(self.sources, volume_id),
            self.labels,
            algorithm_name=self.algorithm_name,
        )
        if path is None:
            _log.warning("volume %s: nothing was found, so there is no DICOM SEG of it", volume_id)
