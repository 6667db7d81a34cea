"""The network of omni- and semi-supervised pre-training, and the loss on pseudo labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from lvmmed_monai.methods._voco_network import VoCoNetwork
from lvmmed_monai.networks import Encoder, SegmentationNet, SwinUNETRNet
from lvmmed_monai.networks.swin import SwinUNETREncoder

__all__ = ["OmniNetwork", "SegmentationNetwork", "Teacher", "confident_labels", "masked_dice_ce", "segmentation_on"]

Teacher = Literal["frozen", "ema"]
SegmentationNetwork = SwinUNETRNet | SegmentationNet


def segmentation_on(encoder: Encoder, classes: int, options: Mapping[str, Any]) -> SegmentationNetwork:
    """A segmentation network that has ``encoder`` itself in it: a SwinUNETR on a Swin encoder, else a U-Net.

    Args:
        encoder: 3D.
        classes: background included.
        options: that the encoder was built with.
    """
    kind = SwinUNETRNet if isinstance(encoder, SwinUNETREncoder) else SegmentationNet
    network = kind(encoder.name, encoder.in_channels, classes, options)
    network.encoder = encoder
    return network


def confident_labels(logits: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Pseudo labels of logits (N, K, *spatial): class numbers (N, *spatial), and where they are sure enough, bool."""
    probability, labels = logits.detach().float().softmax(1).max(1)
    return labels, probability >= confidence


def masked_dice_ce(logits: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """Dice loss of the structures, taken over the whole batch, plus cross-entropy, of some voxels only.

    Args:
        logits: (N, K, *spatial).
        labels: (N, *spatial), class numbers.
        kept: (N, *spatial), bool: the voxels that count.

    Returns:
        Scalar; 0 when no voxel counts. With all voxels, MONAI's DiceCELoss of softmax without background.
    """
    logits = logits.float()
    count = kept.unsqueeze(1)
    onehot = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    dice = DiceLoss(include_background=False, batch=True)(logits.softmax(1) * count, onehot * count)
    entropy = F.cross_entropy(logits, labels, reduction="none")
    return dice + (entropy * kept).sum() / kept.sum().clamp_min(1)


@contextmanager
def _detached(encoder: nn.Module) -> Iterator[None]:
    """Let no gradient into ``encoder`` through any of its maps."""
    hook = encoder.register_forward_hook(lambda module, inputs, maps: [one.detach() for one in maps])
    try:
        yield
    finally:
        hook.remove()


class OmniNetwork(nn.Module):
    """A segmentation network, its teacher, and VoCo's projectors on the same encoder.

    Args:
        segmentation: the network that is learnt.
        contrast: VoCo's network on the encoder of ``segmentation``; None for semi-supervised pre-training.
        switch_step: optimiser steps before the teacher's labels are used.
        teacher: "frozen", the network as it was at the switch; or "ema", its moving average.
        momentum: of the moving average.
        detach: keep the gradient of the pseudo labels out of the encoder.
    """

    steps_done: Tensor

    def __init__(
        self,
        segmentation: SegmentationNetwork,
        contrast: VoCoNetwork | None,
        *,
        switch_step: int,
        teacher: Teacher,
        momentum: float,
        detach: bool,
    ) -> None:
        super().__init__()
        self.segmentation = segmentation
        self.contrast = contrast
        self.teacher = copy.deepcopy(segmentation).requires_grad_(False)
        self.switch_step = switch_step
        self.kind = teacher
        self.momentum = momentum
        self.detach = detach
        # In the state dict, so that a resumed run knows how far it is.
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    @property
    def encoder(self) -> Encoder:
        """The encoder, which all parts share."""
        return self.segmentation.encoder

    @property
    def switched(self) -> bool:
        """Whether the teacher's labels are used now."""
        return int(self.steps_done) >= self.switch_step

    def segmentation_state(self) -> dict[str, Tensor]:
        """Weights of the segmentation network, by MONAI's names for its SwinUNETR where it has the four stages of that.

        Those load into ``monai.networks.nets.SwinUNETR(use_v2=True)``, others into the network's own class.
        """
        network = self.segmentation
        if isinstance(network, SwinUNETRNet) and network.encoder.stages == 4:
            return network.monai_state_dict()
        return network.state_dict()

    def forward(self, batch: Mapping[str, Tensor], *crops: Tensor) -> dict[str, Any]:
        """All that a step needs, in one pass, as distributed training wants it.

        Args:
            batch: of `OmniCrops` samples.
            *crops: what ``contrast`` is to embed.

        Returns:
            ``labelled``: logits (N, K, *spatial) of the labelled crops; with ``crops``, ``contrast``: their
            embeddings; after the switch ``teacher`` and ``student``: logits of the weak and strong crops.
        """
        found: dict[str, Any] = {"labelled": self.segmentation(batch["labelled"].flatten(0, 1))}
        if self.contrast is not None:
            found["contrast"] = self.contrast(*crops)
        if self.switched:
            with torch.no_grad():
                found["teacher"] = self.teacher(batch["weak"].flatten(0, 1))
            with _detached(self.encoder) if self.detach else nullcontext():
                found["student"] = self.segmentation(batch["strong"].flatten(0, 1))
        return found

    @torch.no_grad()
    def advance(self) -> None:
        """Count an optimiser step, and move the teacher if it is its time."""
        self.steps_done += 1
        steps = int(self.steps_done)
        if self.kind == "ema":
            # A plain mean of the first steps: the weights before the first, perhaps random, never count.
            self._move_teacher(1 - min(self.momentum, 1 - 1 / steps))
        elif steps == self.switch_step:
            self._move_teacher(1.0)

    def _move_teacher(self, share: float) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.segmentation.parameters(), strict=True):
            slow.lerp_(fast, share)
        for kept, new in zip(self.teacher.buffers(), self.segmentation.buffers(), strict=True):
            kept.copy_(new)
