"""Labelled pictures, and how well the features of an encoder tell their classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lvmmed_monai.data.datalist import datalist_labels, load_items
from lvmmed_monai.errors import UserError
from lvmmed_monai.methods._picture_features import batch_features, whole_view
from lvmmed_monai.methods._pictures import ViewPairs, view_pairs
from lvmmed_monai.metrics import area_under_curve, balanced_accuracy, knn_probe, linear_probe
from lvmmed_monai.transforms.views_2d import ViewSettings

__all__ = ["LabelledPictures", "PictureProbes", "labelled_pictures"]

_PROBE_SEED = 20230619
_NEIGHBOURS = 20


@dataclass(frozen=True)
class LabelledPictures:
    """Whole pictures (n, C, size, size) uint8, their class numbers (n,), and the dataset that they came from."""

    images: Tensor
    labels: NDArray[np.intp]
    pairs: ViewPairs


def labelled_pictures(
    datalist: str | Path,
    section: str,
    cache_dir: str | Path,
    *,
    size: int,
    in_channels: int,
    cache_size: int = 256,
    most: int | None = None,
) -> LabelledPictures:
    """Pictures of one section of a datalist for classification.

    Args:
        datalist: its path.
        section: "training", "validation" or "test".
        cache_dir: of the slice cache.
        size: height and width of the pictures.
        in_channels: 3 or 1.
        cache_size: longer side of the cached pictures.
        most: a larger section is represented by so many, always the same.

    Raises:
        UserError: the datalist is for another task, holds volumes, or an item has several classes.
        DataError: an image is missing.
    """
    items = load_items(datalist, section, task="classification", check_files=False)
    if not all(isinstance(item.get("label"), int) for item in items):
        raise UserError(
            f"an item of the {section} section has not one class; {datalist}; probes need one class number an image"
        )
    views = ViewSettings(size=size)
    options: dict[str, Any] = {"planes": ("axial",), "cache_size": cache_size, "in_channels": in_channels}
    pairs = view_pairs([datalist], section, cache_dir, views=views, seed=0, **options)
    if len(pairs) != len(items):
        raise UserError(f"{len(pairs)} pictures of {len(items)} images; {datalist}; probes need images of one slice")
    chosen = np.sort(np.random.default_rng(_PROBE_SEED).permutation(len(pairs))[:most])
    images = torch.stack([whole_view(pairs, int(index)) for index in chosen])
    return LabelledPictures(images, np.array([items[index]["label"] for index in chosen], np.intp), pairs)


class PictureProbes:
    """Probes of an encoder on a labelled datalist: trained on its training section, measured on its validation section.

    Args:
        datalist: for classification, of pictures; its test section is not looked at.
        cache_dir: of the slice cache.
        size, in_channels, cache_size: as for `labelled_pictures`.
        most: pictures of each section at most.

    Raises:
        UserError: see `labelled_pictures`; or a section has fewer than two classes.
    """

    directions: Mapping[str, bool] = {"probe_auc": True, "knn_accuracy": True}

    def __init__(
        self, datalist: str | Path, cache_dir: str | Path, *, size: int, in_channels: int, cache_size: int, most: int
    ) -> None:
        form: dict[str, Any] = {"size": size, "in_channels": in_channels, "cache_size": cache_size, "most": most}
        self.training, self.validation = (
            labelled_pictures(datalist, section, cache_dir, **form) for section in ("training", "validation")
        )
        self.classes = len(datalist_labels(datalist))
        for section, part in (("training", self.training), ("validation", self.validation)):
            if len(np.unique(part.labels)) < 2:
                raise UserError(f"the {section} section has only one class; {datalist}; probes need two or more")

    @staticmethod
    def chance(datalist: str | Path) -> dict[str, float]:
        """What guessing gives."""
        return {"probe_auc": 0.5, "knn_accuracy": 1 / max(1, len(datalist_labels(datalist)))}

    def check_apart(self, trained_on: ViewPairs) -> None:
        """Raise where a subject that the probes are measured on is among those that the encoder is trained on.

        Raises:
            UserError: there is one.
        """
        # Whatever the datalists are called: a hospital's pseudonyms are the same in all of them.
        measured = {item["subject"] for item in self.validation.pairs.data}
        shared = measured & {item["subject"] for item in trained_on.data}
        if shared:
            raise UserError(
                f"{len(shared)} subjects of the probes' validation section are in the training data; "
                "probe_datalist; split by subjects and pre-train on the same split"
            )

    @torch.no_grad()
    def measure(self, encoder: nn.Module) -> dict[str, float]:
        """ "probe_auc": area under the ROC curve of a logistic regression of the pooled features (one class against
        the rest, averaged); "knn_accuracy": balanced accuracy of the vote of 20 nearest training pictures by cosine of
        centred features. NaN where features are not finite. The encoder's mode and buffers are left as they were.
        """
        training, validation = (
            batch_features(encoder, part.images).double().numpy() for part in (self.training, self.validation)
        )
        if not (np.isfinite(training).all() and np.isfinite(validation).all()):
            return dict.fromkeys(self.directions, math.nan)
        probe = linear_probe(training, self.training.labels, classes=self.classes)
        center = training.mean(axis=0)
        votes = knn_probe(training - center, self.training.labels, validation - center, k=_NEIGHBOURS)
        return {
            "probe_auc": area_under_curve(probe.scores(validation), self.validation.labels),
            "knn_accuracy": balanced_accuracy(votes.argmax(axis=1), self.validation.labels),
        }
