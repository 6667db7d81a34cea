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

from lvmmed_monai.errors import UserError
from lvmmed_monai.losses.volume_contrast import Mode, VoCoLoss
from lvmmed_monai.methods._voco_alarms import voco_alarms
from lvmmed_monai.methods._voco_data import VolumeCropDataset, block_size, labels_of
from lvmmed_monai.methods._voco_examples import position_examples
from lvmmed_monai.methods._voco_monitors import counted_crops, histogram_scores, network_scores, training_numbers
from lvmmed_monai.methods._voco_network import VoCoNetwork
from lvmmed_monai.methods._volume_method import VolumeMethod
from lvmmed_monai.options import true_or_false

__all__ = ["VoCo"]

# Random crops of a monitor's block.
_MONITOR_CROPS = 8
_SCORES = {"loss": False, "correlation": True, "argmax_accuracy": True}


class VoCo(VolumeMethod):
    """The method: network, data, step and monitors.

    Args:
        grid: base crops along x and y, a number or a pair; or along x, y and z. A block has grid * crop_size voxels
            along x and y, and along z crop_size, or grid * crop_size with three numbers.
        crops_per_volume: random crops of a volume and step; 2 as published.
        crop_scale: (low, high); a random crop covers crop_size times a factor within, and is resampled to crop_size.
            (1, 1) as published.
        z_offset: random crops lie up to so many voxels above or below the bases; 0 as published. For a grid of one
            layer; labels stay axial.
        loss_mode: ``fixed``, ``v2``, ``v1`` or ``paper``.
        base_gradient: let the intra term's gradient pass through the bases, which learns faster in short runs; None
            for yes in ``fixed`` without ``encoder_ema``, no otherwise.
        momentum: of the teacher's projector.
        encoder_ema: momentum of a slow copy of the whole encoder for the teacher, as in VoCo's first version; it takes
            the memory of the weights once more and a second forward pass. None: student and teacher share the encoder.
        dropout: of the student's standardised features.
        projector: widths of the projector's hidden layers and of the embedding; (1024, 1024) as published.
        pooling: what is taken of each channel over space: ``mean`` as published, ``std``, or both.
        gather: compare with volumes of all processes in the inter term, not of each process's own part alone.
        **common: of `VolumeMethod`; ``monitors`` draws 8 random crops in each of its blocks.

    Raises:
        UserError: an option that cannot be.
    """

    name = "voco"

    def __init__(
        self,
        *,
        grid: int | Sequence[int] = 3,
        crops_per_volume: int = 16,
        crop_scale: Sequence[float] = (1.0, 1.0),
        z_offset: int = 0,
        loss_mode: Mode = "fixed",
        base_gradient: bool | None = None,
        momentum: float = 0.9,
        encoder_ema: float | None = None,
        dropout: float = 0.1,
        projector: Sequence[int] = (256, 128),
        pooling: Sequence[str] = ("mean", "std"),
        gather: bool = False,
        **common: Any,
    ) -> None:
        self.grid = _cells(grid)
        self.crops_per_volume = crops_per_volume
        self.crop_scale = _scale(crop_scale, self.grid)
        self.z_offset = _offset(z_offset, self.grid)
        super().__init__(**common)
        self.loss_mode, self.pooling = loss_mode, list(pooling)
        self.momentum, self.encoder_ema, self.dropout = momentum, encoder_ema, dropout
        through = loss_mode == "fixed" and encoder_ema is None if base_gradient is None else base_gradient
        self.base_gradient = true_or_false(through, "base_gradient")
        self._check_numbers(projector)
        self.loss = VoCoLoss(
            loss_mode,
            base_gradient=self.base_gradient,
            depth_aware=len(self.grid) == 3,
            gather=true_or_false(gather, "gather"),
        )
        hidden, out_features = projector
        self._network = VoCoNetwork(
            self._encoder,
            hidden=hidden,
            out_features=out_features,
            dropout=dropout,
            base_gradient=self.base_gradient,
            own_encoder=encoder_ema is not None,
            pooling=pooling,
        )
        self._histogram: WeakKeyDictionary[VolumeCropDataset, dict[str, float]] = WeakKeyDictionary()

    def block_size(self, crop_size: int) -> tuple[int, int, int]:
        """(X, Y, Z) of a block, to which presets that resize a volume do so."""
        return block_size(self.grid, crop_size, self.crop_scale, self.z_offset)

    def _check_numbers(self, projector: Sequence[int]) -> None:
        if self.crops_per_volume < 1:
            raise UserError(f"crops_per_volume must be at least 1, got {self.crops_per_volume}; VoCo; correct it")
        if len(projector) != 2 or min(projector) < 1:
            raise UserError(f"projector must be two widths, got {projector!r}; VoCo; correct it")
        for name, value in (("momentum", self.momentum), ("encoder_ema", self.encoder_ema), ("dropout", self.dropout)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} must lie between 0 and 1, got {value}; VoCo; correct it")
        if self.encoder_ema is not None and self.base_gradient:
            raise UserError(
                "no gradient passes through the bases when the teacher has an encoder of its own; VoCo; "
                "set base_gradient to false or encoder_ema to null"
            )

    @property
    def metric_directions(self) -> dict[str, bool]:
        """Whether more is better, for each name that `monitors` gives."""
        directions: dict[str, bool] = {"embedding_rank": True}
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

    def dataset(
        self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path, seed: int
    ) -> VolumeCropDataset:
        """Crops of the volumes of a section of datalists; see `VolumeMethod.volumes` for the errors."""
        items, cache = self.volumes(datalists, section, cache_dir)
        return VolumeCropDataset(
            items,
            cache,
            grid=self.grid,
            edge=self.crop_size,
            crops_per_volume=self.crops_per_volume,
            seed=seed,
            crop_scale=self.crop_scale,
            z_offset=self.z_offset,
        )

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor | float]:
        """Loss of a batch of `VolumeCropDataset` samples, its terms, and `training_numbers`."""
        labels, mask = labels_of(batch), batch["base_mask"]
        count = mask.shape[1]
        student, teacher = network(batch["crops"], counted_crops(labels, mask))
        terms = self.loss(
            student[:, count:],
            student[:, :count],
            teacher[:, count:],
            teacher[:, :count],
            batch["overlap"],
            mask,
            depth=batch.get("depth"),
        )
        return {**terms, **training_numbers(student, teacher, labels, mask)}

    def after_step(self, network: nn.Module) -> None:
        """Move the teacher; to be called once after each optimiser step."""
        # Under DDP the network is wrapped; it is this one in either case.
        self._network.update_teacher(self.momentum, self.encoder_ema)

    def monitors(self, dataset: VolumeCropDataset) -> dict[str, float]:
        """Scores on held-out volumes, always on the same blocks and crops.

        ``…_clean``: crops as they are; ``…_aug``: each crop augmented on its own, which takes most of the voxels that
        overlapping crops share out of the game: judge there. ``…_features``: the same of the encoder's pooled
        features, without the projector. ``histogram_…``: of grey values alone. ``embedding_rank``: of augmented crops.
        """
        found: dict[str, float] = {}
        for view in ("clean", "aug"):
            embedded, pooled, found["embedding_rank"] = network_scores(
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


def _cells(grid: int | Sequence[int]) -> tuple[int, ...]:
    cells = (grid, grid) if isinstance(grid, int) else tuple(grid)
    if len(cells) not in (2, 3) or min(cells) < 1 or max(cells) == 1:
        raise UserError(f"grid must be a number from 2 up, or two or three numbers, got {grid!r}; VoCo; correct it")
    return cells


def _scale(scale: Sequence[float], grid: tuple[int, ...]) -> tuple[float, float]:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= min(grid):
        raise UserError(
            f"crop_scale must be two growing numbers above 0, at most {min(grid)} for a grid {grid}, got {scale!r}; "
            "VoCo; correct it"
        )
    return float(scale[0]), float(scale[1])


def _offset(offset: int, grid: tuple[int, ...]) -> int:
    if offset < 0 or (offset and len(grid) == 3):
        raise UserError(
            f"z_offset must be at least 0, and 0 for a grid of three numbers, got {offset} for {grid}; VoCo; correct it"
        )
    return offset
