"""What methods that compare views of a picture share: embeddings of the views, slow copies, and what is logged.

All losses are computed in float32, whatever the precision of the encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvmmed_monai.errors import UserError
from lvmmed_monai.losses.gathering import gathered
from lvmmed_monai.methods._picture_features import embedding_spread, pooled_features
from lvmmed_monai.methods._picture_method import PictureMethod
from lvmmed_monai.methods._projection import checked_widths, mlp
from lvmmed_monai.networks import Encoder
from lvmmed_monai.options import true_or_false

__all__ = [
    "Embedder",
    "JointMethod",
    "JointNetwork",
    "MomentumMethod",
    "MomentumNetwork",
    "SiameseMethod",
    "above_zero",
    "embedding_numbers",
    "share",
]


class Embedder(nn.Module):
    """Encoder and projector.

    Args:
        encoder: 2D encoder.
        projector: pooled features (M, C) to embeddings (M, F).
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def embed(self, images: Tensor) -> Tensor:
        """(M, in_channels, H, W) to (M, F), float32."""
        return self.projector(pooled_features(self.encoder, images)).float()

    def embed_views(self, view1: Tensor, view2: Tensor, small: Tensor | None = None) -> Tensor:
        """Embeddings of all views, (2 + K, M, F): of ``view1``, ``view2`` (M, ...) and ``small`` (M, K, ...), if any.

        Views of a size go in one pass: batch normalisation sees one common distribution.
        """
        large = self.embed(torch.cat([view1, view2])).unflatten(0, (2, -1))
        if small is None:
            return large
        others = self.embed(small.transpose(0, 1).flatten(0, 1)).unflatten(0, (small.shape[1], -1))
        return torch.cat([large, others])


class JointNetwork(Embedder):
    """An embedder with the loss of the embeddings of two views.

    Args:
        encoder: 2D encoder.
        projector: pooled features (M, C) to embeddings (M, F).
        loss: two (M, F) to "loss" and named numbers.
        gather: compare the pictures of all processes, not of each alone.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        loss: Callable[[Tensor, Tensor], dict[str, Tensor]],
        *,
        gather: bool,
    ) -> None:
        super().__init__(encoder, projector)
        self.loss = loss
        self.gather = gather

    def forward(self, view1: Tensor, view2: Tensor) -> dict[str, Tensor]:
        """ "loss" and numbers of two views (M, in_channels, H, W)."""
        z1, z2 = self.embed_views(view1, view2)
        with torch.autocast(z1.device.type, enabled=False):
            if self.gather:
                z1, z2 = gathered(z1), gathered(z2)
            return {**self.loss(z1, z2), **embedding_numbers(z1, z2)}


class MomentumNetwork(Embedder):
    """An embedder and its slow copy, ``target``, an exponential moving average that takes no gradient.

    The copy's batch normalisation uses the statistics of the batch, as published; its running statistics are its own,
    and nothing reads them.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__(encoder, projector)
        self.target = copy.deepcopy(Embedder(encoder, projector)).requires_grad_(False)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the copy: ``momentum`` * copy + (1 - ``momentum``) * original."""
        for slow, fast in ((self.target.encoder, self.encoder), (self.target.projector, self.projector)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, 1 - momentum)

    def remember(self, kept: Tensor) -> None:
        """Take in what the forward passes of a step handed over as "kept", of all parts and processes, (N, ...)."""
        raise NotImplementedError(f"{type(self).__name__} must define remember(kept)")


class SiameseMethod(PictureMethod):
    """Base of methods that compare views of a picture. A method defines `build`; its network computes the loss.

    Args:
        projector: widths of the projector's layers.
        **common: of `PictureMethod`.

    Raises:
        UserError: an option that cannot be.
    """

    # What the network takes of a batch; None stands for what is not in it.
    inputs: Sequence[str] = ("view1", "view2")

    def __init__(self, *, projector: Sequence[int] = (512, 128), **common: Any) -> None:
        super().__init__(**common)
        self.projector = checked_widths(projector, "projector", self.name)

    def make_projector(self, encoder: Encoder) -> nn.Module:
        """The projector on the encoder's coarsest features."""
        return mlp(encoder.channels[-1], self.projector)

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Any]:
        """ "loss" and named numbers of one batch."""
        if len(batch["view1"]) < 2:
            raise UserError(f"a batch (or part of it) of one picture; {self.name} compares pictures; raise batch_size")
        return network(*(batch.get(name) for name in self.inputs))


class JointMethod(SiameseMethod):
    """Base of methods whose loss takes nothing but the embeddings of two views. A method defines `loss`.

    Args:
        gather: compare the pictures of all processes; without, statistics and negatives are those of a process's own.
        **common: of `SiameseMethod`.
    """

    def __init__(self, *, gather: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.gather = true_or_false(gather, "gather")

    def loss(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """ "loss" and named numbers of two (M, F)."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(z1, z2)")

    def build(self, encoder: Encoder) -> JointNetwork:
        """Encoder, projector and loss."""
        return JointNetwork(encoder, self.make_projector(encoder), self.loss, gather=self.gather)


class MomentumMethod(SiameseMethod):
    """Base of methods with a slow copy, which moves once an optimiser step. The encoder kept is the trained one.

    Args:
        momentum: share of the copy that stays at each step. The papers take 0.99 to 0.999 (some growing to 1) for
            10^5 steps and more.
        **common: of `SiameseMethod`.

    Raises:
        UserError: a momentum outside 0 to 1.
    """

    def __init__(self, *, momentum: float = 0.99, **common: Any) -> None:
        super().__init__(**common)
        self.momentum = share(momentum, "momentum", self.name)
        # Parts of the batch of the present step; empty between steps, so that it is no part of a run's state.
        self._kept: list[Tensor] = []

    def step(self, batch: Mapping[str, Tensor], network: nn.Module) -> dict[str, Any]:
        """ "loss" and named numbers of one batch."""
        result = super().step(batch, network)
        if "kept" in result:
            self._kept.append(result.pop("kept"))
        return result

    @torch.no_grad()
    def after_step(self, network: nn.Module) -> None:
        """Move the copy, and hand what the step's parts kept, in all processes, to the network."""
        assert isinstance(network, MomentumNetwork)
        network.follow(self.momentum)
        if self._kept:
            network.remember(gathered(torch.cat(self._kept)))
            self._kept.clear()


def above_zero(value: float, name: str, method: str) -> float:
    """An option that must be above 0.

    Raises:
        UserError: it is not.
    """
    if value <= 0:
        raise UserError(f"{name} must be above 0, got {value}; {method}; correct it")
    return value


def share(value: float, name: str, method: str) -> float:
    """An option from 0 to 1.

    Raises:
        UserError: it lies outside.
    """
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie between 0 and 1, got {value}; {method}; correct it")
    return value


@torch.no_grad()
def embedding_numbers(z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """What shows learning and collapse in training, of embeddings (M, F) of the two views.

    Returns:
        "retrieval_in_training": fraction of pictures whose second view is the nearest (cosine) of the M;
        "embedding_spread".
    """
    first, second = functional.normalize(z1, dim=1), functional.normalize(z2, dim=1)
    found = (first @ second.T).argmax(dim=1) == torch.arange(len(first), device=first.device)
    return {"retrieval_in_training": found.float().mean(), "embedding_spread": embedding_spread(torch.cat([z1, z2]))}
