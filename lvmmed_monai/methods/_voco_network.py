"""VoCo's network: an encoder, a projector, and the projector's slow copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lvmmed_monai.errors import UserError
from lvmmed_monai.networks import Encoder

__all__ = ["Projector", "VoCoNetwork", "standardise"]

_EPS = 1e-5
# The root's slope is infinite at 0; the constant is far below the spread of any channel that says something.
_POOLING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda flat: flat.mean(-1),
    "std": lambda flat: (flat.var(-1, correction=0) + 1e-6).sqrt(),
}


def standardise(features: Tensor, counted: Tensor) -> Tensor:
    """Remove the mean and spread of each feature over the crops of its volume (batch normalisation per volume).

    What all crops of a volume share says nothing about position, and is most of a pooled feature. Done per volume it
    depends neither on the other volumes of the batch nor on the number of processes, and needs no running statistics.

    Args:
        features: (B, K, F).
        counted: (B, K), bool: the crops that the statistics are taken over.

    Returns:
        (B, K, F), at least float32.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        weight = counted.to(features.dtype).unsqueeze(-1)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
        centred = features - (features * weight).sum(1, keepdim=True)
        variance = (centred.square() * weight).sum(1, keepdim=True)
        return centred * torch.rsqrt(variance + _EPS)


def _checked_pooling(pooling: Sequence[str]) -> tuple[str, ...]:
    if not pooling or len(set(pooling)) != len(pooling) or not set(pooling) <= set(_POOLING):
        raise UserError(f"pooling must be of {', '.join(_POOLING)}, got {list(pooling)}; VoCo; correct it")
    return tuple(pooling)


class Projector(nn.Module):
    """Three linear layers with `standardise` and ReLU between them.

    Args:
        in_features: of the pooled features.
        hidden: width of both hidden layers.
        out_features: of the embedding.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(in_features, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out_features)]
        )

    def forward(self, features: Tensor, counted: Tensor) -> Tensor:
        """(B, K, in_features) and (B, K) to (B, K, out_features)."""
        for layer in list(self.layers)[:-1]:
            features = F.relu(standardise(layer(features), counted))
        return self.layers[-1](features)


class VoCoNetwork(nn.Module):
    """Crops to the embeddings of student and teacher, which share the encoder unless the teacher has its own.

    The statistics of `standardise` are those of one volume's crops: nothing here depends on the other volumes of a
    batch or on the other processes.

    Args:
        encoder: any 3D encoder.
        hidden: width of the projector.
        out_features: of the embedding.
        dropout: rate for the student, on standardised features. On raw ones it would drown the little that
            tells the crops of a volume apart.
        base_gradient: let gradients pass through the teacher's projector to the shared encoder.
        own_encoder: the teacher has a slow copy of the encoder, too, as in VoCo's first version. It takes the memory of
            the weights once more, and the time of a forward pass.
        pooling: what is taken of each channel of a map, of ``mean`` (published) and ``std`` (its spread over space,
            which the mean of a crop's texture does not tell).
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        hidden: int,
        out_features: int,
        dropout: float,
        base_gradient: bool,
        pooling: Sequence[str] = ("mean", "std"),
        own_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooled_maps: tuple[int, ...] = getattr(encoder, "pooled_maps", tuple(range(len(encoder.channels))))
        self.pooling = _checked_pooling(pooling)
        width = sum(encoder.channels[index] for index in self.pooled_maps) * len(self.pooling)
        self.dropout = nn.Dropout(dropout)
        self.projector = Projector(width, hidden, out_features)
        self.teacher = copy.deepcopy(self.projector).requires_grad_(False)
        self.teacher_encoder = copy.deepcopy(encoder).requires_grad_(False) if own_encoder else None
        self.base_gradient = base_gradient

    def pooled(self, crops: Tensor) -> Tensor:
        """Statistics over space of the feature maps of (B, K, C, X, Y, Z), side by side: (B, K, F)."""
        return self._pooled(self.encoder, crops)

    def features(self, crops: Tensor, counted: Tensor) -> Tensor:
        """`pooled` features, standardised: (B, K, F)."""
        return standardise(self.pooled(crops), counted)

    def teach(self, crops: Tensor, counted: Tensor, features: Tensor) -> Tensor:
        """The teacher's embeddings (B, K, out_features): of ``features``, or by its own encoder where it has one."""
        if self.teacher_encoder is not None:
            features = standardise(self._pooled(self.teacher_encoder, crops), counted)
        return self.teacher(features, counted)

    def _pooled(self, encoder: nn.Module, crops: Tensor) -> Tensor:
        maps = encoder(crops.flatten(0, 1))
        flat = [maps[index].float().flatten(2) for index in self.pooled_maps]
        pooled = [_POOLING[name](channels) for channels in flat for name in self.pooling]
        return torch.cat(pooled, 1).unflatten(0, crops.shape[:2])

    def forward(self, crops: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of student and teacher.

        Args:
            crops: (B, K, C, X, Y, Z).
            counted: (B, K), bool: the crops that show something.

        Returns:
            Two tensors (B, K, out_features).
        """
        features = self.features(crops, counted)
        student = self.projector(self.dropout(features), counted)
        with torch.set_grad_enabled(self.base_gradient and torch.is_grad_enabled()):
            teacher = self.teach(crops, counted, features)
        return student, teacher

    @torch.no_grad()
    def update_teacher(self, momentum: float, encoder_momentum: float | None = None) -> None:
        """Move the teacher towards the student: ``momentum`` * teacher + (1 - momentum) * student.

        Args:
            momentum: of the projector.
            encoder_momentum: of the teacher's own encoder; unused where it has none.
        """
        moved: list[tuple[nn.Module, nn.Module, float]] = [(self.teacher, self.projector, momentum)]
        if self.teacher_encoder is not None and encoder_momentum is not None:
            moved.append((self.teacher_encoder, self.encoder, encoder_momentum))
        for slow, fast, kept in moved:
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, 1 - kept)
