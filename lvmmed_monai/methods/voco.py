"""VoCo: 3D pre-training by the position of crops in a volume (arXiv 2402.17300, 2410.09890).

Apart from the published code: features are standardised over the crops of each volume, before the (channel)
dropout and inside the projector; the teacher starts as a copy of the student and moves once an optimiser step; bases
of air are left out; the base term reaches every base; gradients may pass through the bases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from lvmmed_monai.data.datalist import load_pool
from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.losses.volume_contrast import Mode, VoCoLoss
from lvmmed_monai.methods._voco_alarms import voco_alarms
from lvmmed_monai.methods._voco_data import VolumeCropDataset
from lvmmed_monai.methods._voco_examples import position_examples
from lvmmed_monai.methods._voco_monitors import counted_crops, histogram_scores, network_scores, training_numbers
from lvmmed_monai.methods._voco_network import VoCoNetwork
from lvmmed_monai.methods._volumes import VolumePreparation
from lvmmed_monai.networks import Encoder, build_encoder

__all__ = ["VoCo"]

# Random crops of a monitor's block.
_MONITOR_CROPS = 8
_SCORES = {"loss": False, "correlation": True, "argmax_accuracy": True}


class VoCo:
    """The method: network, data, step and monitors.

    Args:
        encoder_name: a 3D encoder of the registry.
        in_channels: channels of the volumes.
        encoder_options: of the encoder.
        grid: base crops along x and y, a number or a pair.
        crop_size: edge of a crop in voxels, even. A block has grid * crop_size voxels along x and y, crop_size along z.
        crops_per_volume: random crops of a volume and step.
        spacing_mm: voxel size that volumes are resampled to, a number or (R, A, S).
        ct_window: HU that become 0 and 1, or None for the package's window.
        loss_mode: ``fixed``, ``v2``, ``v1`` or ``paper``.
        base_gradient: let the intra term's gradient pass through the bases, which learns faster in short runs; None
            for yes in ``fixed`` without ``encoder_ema``, no otherwise.
        momentum: of the teacher's projector.
        encoder_ema: momentum of a slow copy of the whole encoder for the teacher, as in VoCo's first version; it takes
            the memory of the weights once more and a second forward pass. None: student and teacher share the encoder.
        dropout: of the student's standardised features.
        projector: widths of the projector's hidden layers and of the embedding; (1024, 1024) as published.
        monitor_blocks: blocks that `monitors` looks at, 8 random crops each.

    Raises:
        UserError: an option that cannot be.
    """

    name = "voco"

    def __init__(
        self,
        *,
        encoder_name: str = "segresnet_tiny",
        in_channels: int = 1,
        encoder_options: Mapping[str, Any] | None = None,
        grid: int | Sequence[int] = 3,
        crop_size: int = 24,
        crops_per_volume: int = 4,
        spacing_mm: float | Sequence[float] = 2.0,
        ct_window: Sequence[float] | None = None,
        loss_mode: Mode = "fixed",
        base_gradient: bool | None = None,
        momentum: float = 0.9,
        encoder_ema: float | None = None,
        dropout: float = 0.1,
        projector: Sequence[int] = (256, 128),
        monitor_blocks: int = 32,
    ) -> None:
        self.grid = _pair(grid)
        self.crop_size = crop_size
        self.crops_per_volume = crops_per_volume
        self.loss_mode = loss_mode
        shared = encoder_ema is None
        self.base_gradient = loss_mode == "fixed" and shared if base_gradient is None else base_gradient
        self.momentum, self.encoder_ema = momentum, encoder_ema
        self.dropout = dropout
        self.monitor_blocks = monitor_blocks
        _check_sizes(crop_size, crops_per_volume, monitor_blocks)
        _check_teacher(momentum, encoder_ema, self.base_gradient)
        self.preparation = VolumePreparation(_spacing(spacing_mm), in_channels, _window(ct_window))
        self.loss = VoCoLoss(loss_mode, base_gradient=self.base_gradient)
        if len(projector) != 2 or min(projector) < 1:
            raise UserError(f"projector must be two widths, got {projector!r}; VoCo; correct it")
        encoder = build_encoder(encoder_name, in_channels, **(encoder_options or {}))
        if encoder.spatial_dims != 3:
            raise UserError(f"encoder {encoder_name!r} is not 3D; VoCo; choose a 3D encoder such as segresnet_tiny")
        hidden, out_features = projector
        self._network = VoCoNetwork(
            encoder,
            hidden=hidden,
            out_features=out_features,
            dropout=dropout,
            base_gradient=self.base_gradient,
            own_encoder=not shared,
        )
        self._histogram: WeakKeyDictionary[VolumeCropDataset, dict[str, float]] = WeakKeyDictionary()

    @property
    def metric_directions(self) -> dict[str, bool]:
        """Whether more is better, for each name that `monitors` gives."""
        directions: dict[str, bool] = {"effective_rank": True}
        for view in ("clean", "aug"):
            for score, higher in _SCORES.items():
                directions |= {f"{score}_{view}": higher, f"{score}_{view}_features": higher}
                directions[f"histogram_{score}_{view}"] = higher
        return directions

    @property
    def chance(self) -> dict[str, float]:
        """What guessing always the base in the middle scores."""
        share = 1.0
        for cells in self.grid:
            share *= 1.0 if cells == 1 else 1 / max(2, cells - 1)
        return {f"argmax_accuracy_{view}": share for view in ("clean", "aug")}

    def network(self) -> nn.Module:
        """The trained module; the teacher in it takes no gradient."""
        return self._network

    def encoder(self) -> Encoder:
        """The encoder being trained."""
        return self._network.encoder

    def input_spec(self) -> dict[str, Any]:
        """What the encoder was fed with, for its file."""
        window = self.preparation.ct_window
        return {
            "spatial_dims": 3,
            "in_channels": self.preparation.in_channels,
            "spacing_mm": list(self.preparation.spacing_mm),
            "intensity": "scale_intensity by modality, 0..1",
            "ct_window": list(window) if window else None,
        }

    def dataset(
        self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path, seed: int
    ) -> VolumeCropDataset:
        """Crops of the volumes of a section of datalists; volumes are prepared and stored at the first call.

        Args:
            datalists: paths.
            section: ``training``, ``validation`` or ``test``.
            cache_dir: folder of the prepared volumes.
            seed: of all draws.

        Raises:
            UserError: a datalist is not valid, or a volume has another number of channels.
            DataError: a volume is missing or cannot be read, or none is left.
        """
        items = load_pool(datalists, section)
        if not items:
            raise DataError(f"no volumes; section {section!r} of the datalists; add some or name another section")
        cache = VolumeCache(items, self.preparation, cache_dir, settings=self.preparation.settings)
        return VolumeCropDataset(
            items, cache, grid=self.grid, edge=self.crop_size, crops_per_volume=self.crops_per_volume, seed=seed
        )

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor | float]:
        """Loss of a batch of `VolumeCropDataset` samples, its terms, and the accuracy on the batch."""
        overlap, mask = batch["overlap"], batch["base_mask"]
        count = mask.shape[1]
        student, teacher = network(batch["crops"], counted_crops(overlap, mask))
        crops, bases = student[:, count:], student[:, :count]
        crops_teacher, bases_teacher = teacher[:, count:], teacher[:, :count]
        terms = self.loss(crops, bases, crops_teacher, bases_teacher, overlap, mask)
        return {**terms, **training_numbers(student, teacher, overlap, mask)}

    def after_step(self, network: nn.Module) -> None:
        """Move the teacher; to be called once after each optimiser step."""
        # Under DDP the network is wrapped; it is this one in either case.
        self._network.update_teacher(self.momentum, self.encoder_ema)

    def monitors(self, dataset: VolumeCropDataset) -> dict[str, float]:
        """Scores on held-out volumes, always on the same blocks and crops.

        ``…_clean``: crops as they are; ``…_aug``: each crop augmented on its own, which takes most of the voxels that
        overlapping crops share out of the game: judge there. ``…_features``: the same of the encoder's pooled
        features, without the projector. ``histogram_…``: of grey values alone. ``effective_rank``: of augmented crops.
        """
        found: dict[str, float] = {}
        for view in ("clean", "aug"):
            embedded, pooled, found["effective_rank"] = network_scores(
                self._network, dataset, blocks=self.monitor_blocks, crops=_MONITOR_CROPS, augmented=view == "aug"
            )
            found |= {f"{score}_{view}": value for score, value in embedded.items()}
            found |= {f"{score}_{view}_features": value for score, value in pooled.items()}
        return found | self._histogram_of(dataset)

    def alarms(self, history: Mapping[str, Any]) -> list[str]:
        """What is going wrong in a run, in plain words; see `voco_alarms`."""
        return voco_alarms(history, self.grid, self.crop_size, self.loss_mode)

    def examples(self, dataset: VolumeCropDataset) -> list[dict[str, Any]]:
        """Two held-out volumes with three crops each, for a picture; see `position_examples`."""
        return position_examples(self._network, dataset, volumes=2, crops=3)

    def _histogram_of(self, dataset: VolumeCropDataset) -> dict[str, float]:
        if dataset not in self._histogram:
            found: dict[str, float] = {}
            for view in ("clean", "aug"):
                scores = histogram_scores(
                    dataset, blocks=self.monitor_blocks, crops=_MONITOR_CROPS, augmented=view == "aug"
                )
                found |= {f"histogram_{score}_{view}": value for score, value in scores.items()}
            self._histogram[dataset] = found
        return self._histogram[dataset]


def _pair(grid: int | Sequence[int]) -> tuple[int, int]:
    pair = (grid, grid) if isinstance(grid, int) else tuple(grid)
    if len(pair) != 2 or min(pair) < 1 or pair == (1, 1):
        raise UserError(f"grid must be a number from 2 up or a pair, got {grid!r}; VoCo; correct it")
    return pair[0], pair[1]


def _spacing(spacing: float | Sequence[float]) -> tuple[float, float, float]:
    values = (spacing,) * 3 if isinstance(spacing, int | float) else tuple(spacing)
    if len(values) != 3 or min(values) <= 0:
        raise UserError(f"spacing_mm must be one or three positive numbers, got {spacing!r}; VoCo; correct it")
    return float(values[0]), float(values[1]), float(values[2])


def _window(window: Sequence[float] | None) -> tuple[float, float] | None:
    if window is None:
        return None
    if len(window) != 2 or window[0] >= window[1]:
        raise UserError(f"ct_window must be two growing numbers in HU, got {window!r}; VoCo; correct it")
    return float(window[0]), float(window[1])


def _check_sizes(crop_size: int, crops_per_volume: int, monitor_blocks: int) -> None:
    if crop_size < 2 or crop_size % 2:
        raise UserError(f"crop_size must be even and at least 2, got {crop_size}; VoCo; correct it")
    if crops_per_volume < 1 or monitor_blocks < 1:
        raise UserError(
            f"crops_per_volume and monitor_blocks must be at least 1, got {crops_per_volume} and {monitor_blocks}; "
            "VoCo; correct them"
        )


def _check_teacher(momentum: float, encoder_ema: float | None, base_gradient: bool) -> None:
    for name, value in (("momentum", momentum), ("encoder_ema", encoder_ema)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name} must lie between 0 and 1, got {value}; VoCo; correct it")
    if encoder_ema is not None and base_gradient:
        raise UserError(
            "no gradient passes through the bases when the teacher has an encoder of its own; VoCo; "
            "set base_gradient to false or encoder_ema to null"
        )
