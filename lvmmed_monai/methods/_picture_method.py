"""What all 2D methods share: encoder, views of pictures, and held-out measures of the encoder's features."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.losses.graph_matching import matching_accuracy
from lvmmed_monai.methods._balance import check_shares
from lvmmed_monai.methods._picture_examples import picture_examples
from lvmmed_monai.methods._picture_features import batch_statistics, pooled_features
from lvmmed_monai.methods._picture_probes import PictureProbes
from lvmmed_monai.methods._pictures import PicturePreparation, ViewPairs, missing_space, view_pairs
from lvmmed_monai.metrics import retrieval_at_k
from lvmmed_monai.networks import Encoder, build_encoder
from lvmmed_monai.transforms.views_2d import ViewSettings

__all__ = ["PictureMethod", "effective_rank"]

_LOG = logging.getLogger(__name__)
# Monitors draw the same views, groups and node orders at every step of every run.
_MONITOR_SEED = 20230619
_MONITOR_BATCH = 64
_MONITOR_NODES = 16
# A rank below this share of the untrained network's is a collapse.
_COLLAPSED = 0.5


class PictureMethod:
    """Base class of 2D methods. The encoder's random weights are the first that are drawn.

    So methods whose networks are built under the same seed start from the same encoder. A method defines ``name``,
    `build` and `step`.

    Args:
        encoder_name: a 2D encoder of `networks.ENCODERS`.
        in_channels: 3 or 1; grey images are repeated.
        encoder_options: of `networks.build_encoder`.
        views: options of `transforms.views_2d.ViewSettings`; ``size`` is the side of the views in pixels.
        planes: anatomical planes in which volumes are cut.
        cache_size: longer side of the cached pictures.
        weights: relative share of each datalist in what is drawn; None goes by their numbers of pictures.
        balance: how far the modalities are drawn equally often, 0 to 1; see `methods._balance.repeats_of`.
        intensity: rules in place of those of single modalities, as `transforms.intensity_rules` takes them.
        monitor_images: held-out pictures that `monitors` looks at, at most.
        probe_datalist: pictures with classes on which `monitors` probes the features, see `PictureProbes`; None probes
            nothing.

    Raises:
        UserError: an unknown option of the views, an unknown plane, a rule or balance that cannot be, or a
            probe_datalist that is not valid.
    """

    name: str
    metric_directions: Mapping[str, bool] = {
        "matching_accuracy": True,
        "linear_matching_accuracy": True,
        "retrieval_at_1": True,
        "effective_rank": True,
    }

    def __init__(
        self,
        *,
        encoder_name: str = "resnet50",
        in_channels: int = 3,
        encoder_options: Mapping[str, Any] | None = None,
        views: Mapping[str, Any] | None = None,
        planes: Sequence[str] = ("axial",),
        cache_size: int = 256,
        weights: Sequence[float] | None = None,
        balance: float = 0.0,
        intensity: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        monitor_images: int = 512,
        probe_datalist: str | Path | None = None,
    ) -> None:
        try:
            self._view_settings = ViewSettings(**dict(views or {}))
        except TypeError as error:
            raise UserError(f"unknown option in views ({error}); {self.name}; see ViewSettings") from None
        self.encoder_name, self.in_channels = encoder_name, in_channels
        self.encoder_options = dict(encoder_options or {})
        self.views, self.planes, self.cache_size = dict(views or {}), tuple(planes), cache_size
        self.weights, self.balance = None if weights is None else list(weights), balance
        self.intensity = PicturePreparation(self.planes, intensity).rules
        check_shares(self.weights, balance)
        self.monitor_images = monitor_images
        self.chance: dict[str, float] = dict.fromkeys(
            ("matching_accuracy", "linear_matching_accuracy"), 1 / _MONITOR_NODES
        )
        self._probe_datalist = probe_datalist
        self._probes: PictureProbes | None = None
        self.metric_counts: dict[str, int] = {}
        if probe_datalist is not None:
            self.metric_directions = {**self.metric_directions, **PictureProbes.directions}
            self.chance |= PictureProbes.chance(probe_datalist)
        self._network: nn.Module | None = None

    def build(self, encoder: Encoder) -> nn.Module:
        """The trained module around the encoder, which is its attribute ``encoder``."""
        raise NotImplementedError(f"{type(self).__name__} must define build(encoder)")

    def network(self) -> nn.Module:
        """The trained module, built at the first call from torch's global generator."""
        if self._network is None:
            self._random_state = torch.get_rng_state()
            encoder = build_encoder(self.encoder_name, self.in_channels, **self.encoder_options)
            if encoder.spatial_dims != 2:
                raise UserError(
                    f"encoder {self.encoder_name!r} is 3D; {self.name} trains 2D encoders; choose a 2D encoder"
                )
            self._network = self.build(encoder)
        return self._network

    def encoder(self) -> Encoder:
        """The encoder of `network`."""
        return self.network().encoder  # type: ignore[return-value]

    def untrained_encoder(self) -> Encoder:
        """A second encoder with the random weights that the first one began with, on its device."""
        device = next(self.network().parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random_state)
            return build_encoder(self.encoder_name, self.in_channels, **self.encoder_options).to(device)

    def input_spec(self) -> dict[str, Any]:
        """What the encoder was trained on, for its file."""
        return {
            "spatial_dims": 2,
            "in_channels": self.in_channels,
            "spacing_mm": None,
            "intensity": "scale_intensity by modality, 0..1; grey repeated",
            "intensity_rules": self.intensity,
            "size": [self._view_settings.size] * 2,
        }

    def dataset(self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path, seed: int) -> ViewPairs:
        """View pairs of one section of datalists; see `methods._pictures.view_pairs`.

        Shares of datalists and modalities are for training: held-out pictures come once each. The first dataset's
        cache folder also serves the probes.

        Raises:
            UserError: as `view_pairs` and `PictureProbes`; or subjects that the probes are measured on are in this
                training section.
            DataError: as `view_pairs`.
        """
        training = section == "training"
        pairs = view_pairs(
            datalists,
            section,
            cache_dir,
            views=self._view_settings,
            in_channels=self.in_channels,
            seed=seed,
            weights=self.weights if training else None,
            balance=self.balance if training else 0.0,
            **self._cache_options(),
        )
        if self._probe_datalist is not None and self._probes is None:
            form = {"size": self._view_settings.size, "in_channels": self.in_channels, "cache_size": self.cache_size}
            self._probes = PictureProbes(self._probe_datalist, cache_dir, most=self.monitor_images, **form)
            self.metric_counts = dict.fromkeys(self._probes.directions, len(self._probes.validation.labels))
        if self._probes is not None and section == "training":
            self._probes.check_apart(pairs)
        return pairs

    def missing_space(self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path) -> int:
        """Bytes that the cache of `dataset` will still take, at most; nothing is decoded."""
        return missing_space(datalists, section, cache_dir, **self._cache_options())

    def _cache_options(self) -> dict[str, Any]:
        return {"planes": self.planes, "cache_size": self.cache_size, "intensity": self.intensity}

    def batch_problem(self, batch_size: int) -> str | None:
        """Why ``step`` would refuse a batch of so many pictures, as a `UserError` says it; None if it would not."""
        return None

    def after_step(self, network: nn.Module) -> None:
        """Nothing moves but the weights."""

    @torch.no_grad()
    def monitors(self, dataset: ViewPairs) -> dict[str, float]:
        """Held-out measures of the encoder's pooled, centred features; fixed views, groups and node orders.

        Batch normalisation uses the statistics of the monitored batches, whatever the encoder has gone through: the
        running statistics of an untrained network are not those of any data, and it would look worse than it is.
        The network's mode and buffers are left as they were.

        Returns:
            "matching_accuracy": noise-free second-order matching in random groups of 16; "linear_matching_accuracy":
            the same without edges; "retrieval_at_1": fraction of images whose second view is the nearest of all;
            "effective_rank": exp entropy of the principal variances. NaN where there are too few images. With a
            probe_datalist also what `PictureProbes.measure` gives.
        """
        probed = self._probes.measure(self.encoder()) if self._probes is not None else {}
        return {**self._measured_pairs(dataset), **probed}

    def _measured_pairs(self, dataset: ViewPairs) -> dict[str, float]:
        order = self._monitored(dataset)
        if len(order) < _MONITOR_NODES:
            _LOG.warning("%d held-out pictures are too few for graphs of %d: no monitors", len(order), _MONITOR_NODES)
            return dict.fromkeys(PictureMethod.metric_directions, float("nan"))
        f1, f2 = self._centred_features(dataset, order)
        match = partial(matching_accuracy, f1, f2, _MONITOR_NODES, seed=_MONITOR_SEED)
        return {
            "matching_accuracy": match(),
            "linear_matching_accuracy": match(mode="linear"),
            "retrieval_at_1": retrieval_at_k(f1, f2),
            "effective_rank": effective_rank(f1),
        }

    def _monitored(self, dataset: ViewPairs) -> np.ndarray:
        """Numbers of the held-out pictures that are looked at, in random order."""
        return np.random.default_rng(_MONITOR_SEED).permutation(len(dataset))[: self.monitor_images]

    def examples(self, dataset: ViewPairs) -> list[dict[str, Any]]:
        """Nearest neighbours and a map of held-out pictures, by trained and by random weights; see `picture_examples`.

        With initial weights out of a file "random weights" are those that the file replaced.
        """
        encoders = {"trained": self.encoder(), "untrained": self.untrained_encoder()}
        return picture_examples(encoders, dataset, self._monitored(dataset))

    def alarms(self, history: Mapping[str, Any]) -> list[str]:
        """Whether the features collapse: far fewer directions than without training, and no better at matching."""
        monitors = history["monitors"]
        if len(monitors) < 2:
            return []
        untrained, now = monitors[0][1], monitors[-1][1]
        rank, rank_before = now["effective_rank"], untrained["effective_rank"]
        matching, matching_before = now["matching_accuracy"], untrained["matching_accuracy"]
        if not (rank < _COLLAPSED * rank_before and matching <= matching_before):
            return []
        return [
            f"the features collapse: held-out pictures differ in {rank:.1f} directions, {rank_before:.1f} without "
            f"training, and matching is right in {matching:.0%}, {matching_before:.0%} without training; likely "
            "causes: a high learning rate, too few or too similar pictures in a batch; lower learning_rate or raise "
            "batch_size"
        ]

    def _centred_features(self, dataset: ViewPairs, order: np.ndarray) -> tuple[Tensor, Tensor]:
        encoder = self.encoder()
        device = next(encoder.parameters()).device
        parts = []
        with batch_statistics(encoder):
            for chunk in np.array_split(order, max(1, len(order) // _MONITOR_BATCH)):
                rngs = ((int(i), np.random.default_rng([_MONITOR_SEED, int(i)])) for i in chunk)
                samples = [dataset.draw(i, rng) for i, rng in rngs]
                images = torch.stack([s["view1"] for s in samples] + [s["view2"] for s in samples]).to(device)
                parts.append(torch.stack(pooled_features(encoder, images).cpu().chunk(2)))
        features = torch.cat(parts, dim=1)
        f1, f2 = features - features.mean(dim=(0, 1))
        return f1, f2


def effective_rank(features: Tensor) -> float:
    """Along how many directions centred (M, C) vary: exp of the entropy of the shares of variance."""
    variances = torch.linalg.svdvals(features.double()).square()
    share = variances / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.exp(torch.special.entr(share).sum()))
