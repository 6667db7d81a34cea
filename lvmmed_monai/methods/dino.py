"""DINO: all views give the answer that a slow copy gives to a large one (Caron et al., arXiv 2104.14294)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvmmed_monai.methods._projection import Prototypes, checked_widths
from lvmmed_monai.methods._siamese import MomentumMethod, MomentumNetwork, above_zero, embedding_numbers, share
from lvmmed_monai.networks import Encoder

__all__ = ["DINO", "DINONetwork", "dino_loss"]


def dino_loss(
    student: Tensor, teacher: Tensor, centre: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Equation 3 of the paper with centring and sharpening: the mean over all pairs of different views.

    Args:
        student: (V, M, K) scores of all views, the two large ones first.
        teacher: (2, M, K) scores of the large views; no gradient is taken through them.
        centre: (K,), taken off the teacher's scores (equation 4).
        student_temperature, teacher_temperature: of the softmaxes.
    """
    wanted = ((teacher.detach() - centre) / teacher_temperature).softmax(dim=-1)
    given = (student / student_temperature).log_softmax(dim=-1)
    # (2, V): teacher view by student view.
    entropies = -torch.einsum("tmk,vmk->tv", wanted, given) / student.shape[1]
    pairs = ~torch.eye(*entropies.shape, dtype=torch.bool, device=entropies.device)
    return (entropies * pairs).sum() / (2 * (len(student) - 1))


def dino_head(channels: int, widths: Sequence[int], prototypes: int) -> nn.Sequential:
    """Linear layers with GELU between them, and normalised prototypes (appendix C of the paper)."""
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths), widths, strict=False):
        linear = nn.Linear(before, after)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.GELU()]
    return nn.Sequential(*layers[:-1], Prototypes(widths[-1], prototypes))


class DINONetwork(MomentumNetwork):
    """Student (encoder and projector), teacher (``target``) and the centre of the teacher's scores, a buffer.

    Args:
        encoder: 2D encoder.
        projector: the head: pooled features to scores (M, prototypes).
        prototypes: width of the scores.
        temperatures: of student and teacher.
        centre_momentum: share of the centre that stays at each step.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        prototypes: int,
        temperatures: tuple[float, float],
        centre_momentum: float,
    ) -> None:
        super().__init__(encoder, projector)
        self.temperatures, self.centre_momentum = temperatures, centre_momentum
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(prototypes))

    def forward(self, view1: Tensor, view2: Tensor, small: Tensor | None = None) -> dict[str, Tensor]:
        """ "loss", numbers and the mean of the teacher's scores, of the views that `embed_views` takes."""
        student = self.embed_views(view1, view2, small)
        with torch.no_grad():
            teacher = self.target.embed_views(view1, view2)
        with torch.autocast(student.device.type, enabled=False):
            loss = dino_loss(student, teacher, self.centre, *self.temperatures)
            mean = teacher.mean(dim=(0, 1)).unsqueeze(0)
            return {"loss": loss, "kept": mean, **embedding_numbers(*student[:2])}

    def remember(self, kept: Tensor) -> None:
        """Equation 4 of the paper: move the centre towards the mean of ``kept`` (N, prototypes)."""
        self.centre.lerp_(kept.mean(dim=0), 1 - self.centre_momentum)


class DINO(MomentumMethod):
    """The method. Small views are used where the batch has them; the teacher sees large ones only.

    The paper's schedules of the teacher's momentum and temperature are left out: both stay. The encoder kept is the
    student's. The centre is that of all processes, as published.

    Args:
        prototypes: width of the scores; the paper's is 65,536.
        student_temperature, teacher_temperature: of the softmaxes.
        centre_momentum: share of the centre that stays at each step.
        projector: widths of the head before the prototypes; the paper's are (2048, 2048, 256).
        **common: of `MomentumMethod`.

    Raises:
        UserError: an option that cannot be.
    """

    name = "dino"
    inputs = ("view1", "view2", "small")

    def __init__(
        self,
        *,
        prototypes: int = 1024,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        centre_momentum: float = 0.9,
        projector: Sequence[int] = (512, 512, 128),
        **common: Any,
    ) -> None:
        super().__init__(projector=projector, **common)
        self.prototypes = checked_widths([prototypes], "prototypes", self.name)[0]
        self.student_temperature = above_zero(student_temperature, "student_temperature", self.name)
        self.teacher_temperature = above_zero(teacher_temperature, "teacher_temperature", self.name)
        self.centre_momentum = share(centre_momentum, "centre_momentum", self.name)

    def build(self, encoder: Encoder) -> DINONetwork:
        """Student, teacher and centre."""
        return DINONetwork(
            encoder,
            dino_head(encoder.channels[-1], self.projector, self.prototypes),
            prototypes=self.prototypes,
            temperatures=(self.student_temperature, self.teacher_temperature),
            centre_momentum=self.centre_momentum,
        )
