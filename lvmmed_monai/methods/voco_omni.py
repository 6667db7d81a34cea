"""Omni-supervised pre-training (arXiv 2410.09890): VoCo on volumes without labels, segmentation on labelled ones.

From a step on, the segmentation network as it is then, or its moving average, also labels crops of the volumes without
labels. With ``voco_weight=0`` and ``detach=False`` it is semi-supervised training (mean teacher, arXiv 1703.01780).

Apart from the published code: the gradient of pseudo labels stays out of the encoder altogether (hidden state 3 was
not detached); only labels that the teacher is sure of count; it sees crops before their grey values are varied, the
student after; the lists never end; the switch goes by the step of the whole run, and a resumed run has its teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from torch import Tensor, nn

from lvmmed_monai.data.datalist import load_items
from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.methods._labelled_volumes import LabelledCrops, LabelledPreparation, labelled_pool, shared_labels
from lvmmed_monai.methods._omni_alarms import omni_alarms
from lvmmed_monai.methods._omni_data import CropPairs, OmniCrops
from lvmmed_monai.methods._omni_network import (
    OmniNetwork,
    Teacher,
    confident_labels,
    masked_dice_ce,
    segmentation_on,
)
from lvmmed_monai.methods.voco import VoCo
from lvmmed_monai.options import true_or_false

__all__ = ["VoCoOmni"]

_MONITOR_VOLUMES = 8
_WINDOW_BATCH = 4


class VoCoOmni(VoCo):
    """The method: network, data, step and monitors.

    A step takes ``crops_per_volume`` crops of a labelled volume for each volume without labels; after the switch as
    many crops of the latter, apart from those of VoCo, are labelled by the teacher.

    Args:
        labelled_datalists: paths of datalists for segmentation, which all have the same labels.
        switch_step: optimiser steps before pseudo labels are used, at least 1; half of a run as published.
        teacher: "frozen", the network at the switch, as published; or "ema", its moving average.
        teacher_momentum: of the moving average.
        confidence: probability from which a pseudo label counts; 0 takes all, as published.
        detach: pseudo labels teach the decoder alone.
        voco_weight: of VoCo's loss; with 0 there is none.
        pseudo_weight: of the loss on pseudo labels; that on labels has 1.
        positive_share: of the labelled crops that have some structure in their middle.
        **voco_options: of `VoCo`.

    Raises:
        UserError: an option that cannot be, or labelled datalists that do not fit each other.
    """

    name = "voco_omni"

    def __init__(
        self,
        *,
        labelled_datalists: str | Path | Sequence[str | Path] = (),
        switch_step: int = 5000,
        teacher: Teacher = "frozen",
        teacher_momentum: float = 0.999,
        confidence: float = 0.9,
        detach: bool = True,
        voco_weight: float = 1.0,
        pseudo_weight: float = 1.0,
        positive_share: float = 0.9,
        **voco_options: Any,
    ) -> None:
        self._labelled_datalists: list[str | Path] = (
            [labelled_datalists] if isinstance(labelled_datalists, str | Path) else list(labelled_datalists)
        )
        self.labels = shared_labels(self._labelled_datalists)
        self.switch_step = switch_step
        self.teacher = teacher
        self.teacher_momentum = teacher_momentum
        self.confidence = confidence
        self.detach = true_or_false(detach, "detach")
        self.voco_weight = voco_weight
        self.pseudo_weight = pseudo_weight
        self.positive_share = positive_share
        self._check_options()
        super().__init__(**voco_options)
        segmentation = segmentation_on(self.encoder(), len(self.labels), voco_options.get("encoder_options") or {})
        self._omni = OmniNetwork(
            segmentation,
            self._network if voco_weight else None,
            switch_step=switch_step,
            teacher=teacher,
            momentum=teacher_momentum,
            detach=self.detach,
        )
        # The Dice is that of the batch because most crops lack most classes.
        self._supervised = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def _check_options(self) -> None:
        if self.switch_step < 1:
            raise UserError(f"switch_step must be at least 1, got {self.switch_step}; {self.name}; correct it")
        if self.teacher not in ("frozen", "ema"):
            raise UserError(f'teacher must be "frozen" or "ema", got {self.teacher!r}; {self.name}; correct it')
        for option in ("teacher_momentum", "confidence", "positive_share"):
            if not 0 <= getattr(self, option) <= 1:
                raise UserError(
                    f"{option} must lie within 0 and 1, got {getattr(self, option)}; {self.name}; correct it"
                )
        if min(self.voco_weight, self.pseudo_weight) < 0:
            raise UserError(
                f"weights must not be negative, got {self.voco_weight} and {self.pseudo_weight}; {self.name}; "
                "correct voco_weight or pseudo_weight"
            )

    @property
    def metric_directions(self) -> dict[str, bool]:
        """Whether more is better, for each name that `monitors` gives."""
        return {**(super().metric_directions if self.voco_weight else {}), "dice": True}

    @property
    def chance(self) -> dict[str, float]:
        """What guessing scores, where that is known."""
        return super().chance if self.voco_weight else {}

    def network(self) -> nn.Module:
        """The trained module; the teachers in it take no gradient."""
        return self._omni

    def exports(self) -> dict[str, dict[str, Tensor]]:
        """The whole segmentation network as a bare state dict; see `OmniNetwork.segmentation_state`."""
        return {"segmentation": self._omni.segmentation_state()}

    # A dataset of another kind than VoCo's, which is a part of it.
    def dataset(  # type: ignore[override]
        self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path, seed: int
    ) -> OmniCrops:
        """Crops of a section of the datalists, and of the same section of the labelled ones.

        Held-out sections have no crops for pseudo labels, and may lack either kind of volumes.

        Args:
            datalists: paths of those without labels; labels that they have are not looked at.
            section: ``training``, ``validation`` or ``test``.
            cache_dir: folder of the prepared volumes.
            seed: of all draws.

        Raises:
            UserError: a datalist is not valid, or a volume has another number of channels.
            DataError: a volume is missing or cannot be read, or none is left.
        """
        training = section == "training"
        labelled = self._labelled(section, cache_dir, seed)
        if training and labelled is None:
            raise DataError(f"no labelled volumes; section {section!r} of the labelled datalists; add some")
        present = any(load_items(path, section, check_files=False) for path in datalists)
        # With nothing at all VoCo says so.
        wanted = training or labelled is None or (self.voco_weight and present)
        volumes = super().dataset(datalists, section, cache_dir, seed) if wanted else None
        pairs = CropPairs(volumes, edge=self.crop_size, crops=self.crops_per_volume) if training and volumes else None
        return OmniCrops(volumes if self.voco_weight else None, pairs, labelled, seed=seed)

    def _labelled(self, section: str, cache_dir: str | Path, seed: int) -> LabelledCrops | None:
        items = labelled_pool(self._labelled_datalists, section)
        if not items:
            return None
        preparation = LabelledPreparation(self.preparation, len(self.labels))
        return LabelledCrops(
            items,
            VolumeCache(items, preparation, cache_dir, settings=preparation.settings),
            edge=self.crop_size,
            crops=self.crops_per_volume,
            positive_share=self.positive_share,
            seed=seed,
        )

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor | float]:
        """Loss of a batch of `OmniCrops` samples, its terms, and VoCo's numbers.

        ``supervised`` and, after the switch, ``pseudo`` are the losses on labels and on pseudo labels; ``kept_share``
        of the voxels has a pseudo label that counts, ``structure_share`` of these belongs to a structure.
        """
        found: dict[str, Any] = {}

        def embeddings(*crops: Tensor) -> Any:
            found.update(network(batch, *crops))
            return found["contrast"]

        terms: dict[str, Tensor | float] = {}
        if self.voco_weight:
            # Where VoCo calls its network, the one forward pass of the step is made.
            terms = super().step(batch, embeddings)  # type: ignore[arg-type]
            terms["voco"] = terms.pop("loss")
        else:
            found.update(network(batch))
        terms["supervised"] = self._supervised(found["labelled"].float(), batch["label"].flatten(0, 1).unsqueeze(1))
        loss = self.voco_weight * terms.get("voco", 0.0) + terms["supervised"]
        if "student" in found:
            labels, kept = confident_labels(found["teacher"], self.confidence)
            terms["pseudo"] = masked_dice_ce(found["student"], labels, kept)
            terms["kept_share"] = kept.float().mean()
            terms["structure_share"] = ((labels > 0) & kept).sum() / kept.sum().clamp_min(1)
            loss = loss + self.pseudo_weight * terms["pseudo"]
        return {"loss": loss, **terms}

    def after_step(self, network: nn.Module) -> None:
        """Move VoCo's teacher and the segmentation's, and count; to be called once after each optimiser step."""
        super().after_step(network)
        self._omni.advance()

    def monitors(self, dataset: OmniCrops) -> dict[str, float]:  # type: ignore[override]
        """VoCo's scores on held-out volumes, and ``dice`` on held-out labelled ones.

        The Dice is the mean over the structures that occur, each over the first 8 volumes taken together.
        """
        found = super().monitors(dataset.contrast) if dataset.contrast is not None else {}
        if dataset.labelled is not None:
            found["dice"] = self._dice(dataset.labelled)
        return found

    def examples(self, dataset: OmniCrops) -> list[dict[str, Any]]:  # type: ignore[override]
        """As of `VoCo`; none where there is no contrast or no held-out volume without labels."""
        return super().examples(dataset.contrast) if dataset.contrast is not None else []

    @torch.no_grad()
    def _dice(self, volumes: LabelledCrops) -> float:
        network = self._omni.segmentation
        device = next(network.parameters()).device
        inferer = SlidingWindowInferer((self.crop_size,) * 3, _WINDOW_BATCH, overlap=0.25)
        training = network.training
        network.eval()
        shared, total = torch.zeros(len(self.labels)), torch.zeros(len(self.labels))
        for index in range(min(len(volumes), _MONITOR_VOLUMES)):
            image, label = volumes.volume(index)
            predicted = inferer(image.unsqueeze(0).to(device), network).argmax(1)[0].cpu()  # type: ignore[union-attr]
            for number in range(len(self.labels)):
                ours, truth = predicted == number, label == number
                shared[number] += (ours & truth).sum()
                total[number] += ours.sum() + truth.sum()
        network.train(training)
        occurs = total > 0
        occurs[0] = False
        return float((2 * shared / total)[occurs].mean()) if occurs.any() else float("nan")

    def alarms(self, history: Mapping[str, Any]) -> list[str]:
        """What is going wrong in a run, in plain words."""
        found = super().alarms(history) if self.voco_weight else []
        return [*found, *omni_alarms(history, self.confidence)]
