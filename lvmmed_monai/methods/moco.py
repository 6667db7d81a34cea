"""MoCo v2: views are told from the keys of earlier batches (He et al., arXiv 1911.05722; Chen et al., 2003.04297)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lvmmed_monai.errors import UserError
from lvmmed_monai.methods._siamese import Embedder, MomentumMethod, MomentumNetwork, above_zero, embedding_numbers
from lvmmed_monai.networks import Encoder

__all__ = ["MoCo", "MoCoNetwork", "moco_loss"]


def moco_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Equation 1 of the paper (InfoNCE).

    Args:
        queries, keys: (M, F) of length 1; row i of both is of one picture.
        queue: (Q, F) of length 1, the negatives.
        temperature: of the softmax.
    """
    positive = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, queries @ queue.T], dim=1) / temperature
    return functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


class MoCoNetwork(MomentumNetwork):
    """Encoder, projector, their slow copy that makes the keys, and the queue of keys.

    The queue is a buffer, so that a checkpoint holds it; it begins with random directions.

    Args:
        encoder: 2D encoder.
        projector: pooled features to (M, features).
        features: width of the embeddings.
        queue_size: keys in the queue.
        key_groups: parts of a batch whose keys are normalised apart.
        temperature: of the softmax.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        *,
        features: int,
        queue_size: int,
        key_groups: int,
        temperature: float,
    ) -> None:
        super().__init__(encoder, projector)
        self.key_groups, self.temperature = key_groups, temperature
        self.queue: Tensor
        self.queue_start: Tensor
        self.register_buffer("queue", functional.normalize(torch.randn(queue_size, features), dim=1))
        self.register_buffer("queue_start", torch.zeros((), dtype=torch.long))

    def forward(self, view1: Tensor, view2: Tensor) -> dict[str, Tensor]:
        """ "loss", numbers and the keys of two views (M, in_channels, H, W)."""
        z = self.embed_views(view1, view2)
        with torch.no_grad():
            keys = functional.normalize(shuffled_keys(self.target, torch.cat([view2, view1]), self.key_groups), dim=1)
        with torch.autocast(z.device.type, enabled=False):
            queries = functional.normalize(z.flatten(0, 1), dim=1)
            loss = moco_loss(queries, keys, self.queue, self.temperature)
            return {"loss": loss, "kept": keys, **embedding_numbers(*z)}

    def remember(self, kept: Tensor) -> None:
        """Replace the oldest keys of the queue by ``kept`` (N, F), of which the last fit where N is larger."""
        size = len(self.queue)
        kept = kept[-size:]
        places = (self.queue_start + torch.arange(len(kept), device=kept.device)) % size
        self.queue[places] = kept
        self.queue_start.copy_((self.queue_start + len(kept)) % size)


def shuffled_keys(target: Embedder, images: Tensor, groups: int) -> Tensor:
    """(M, F) keys of images, embedded in ``groups`` random parts.

    With common statistics of batch normalisation for queries and keys, those would give away which keys are of the
    same batch (section 3.3 of the paper, which shuffles over GPUs for this reason).
    """
    order = torch.randperm(len(images)).to(images.device)
    # Of a single picture there are no statistics.
    parts = order.tensor_split(min(groups, len(images) // 2))
    keys = torch.cat([target.embed(images[part]) for part in parts])
    return keys[order.argsort()]


class MoCo(MomentumMethod):
    """The method. Each view is a query once and a key once, as in the authors' symmetric variant.

    Keys of all processes go into one queue, as published; the normalisation's statistics are a process's own.

    Args:
        temperature: of the softmax over cosines.
        queue_size: keys in the queue. The paper's 65,536 are a twentieth of its pictures; where the queue holds a
            picture's own earlier keys, these count as negatives.
        key_groups: random parts of a batch whose keys are normalised apart: "shuffling BN" in one process.
        momentum: of the key encoder; the paper's is 0.999.
        **common: of `MomentumMethod`. The paper's projector is (2048, 128).

    Raises:
        UserError: an option that cannot be.
    """

    name = "moco"

    def __init__(self, *, temperature: float = 0.2, queue_size: int = 1024, key_groups: int = 4, **common: Any) -> None:
        super().__init__(**common)
        self.temperature = above_zero(temperature, "temperature", self.name)
        self.queue_size, self.key_groups = queue_size, key_groups
        if min(queue_size, key_groups) < 1:
            raise UserError(
                f"queue_size and key_groups must be at least 1, got {queue_size} and {key_groups}; moco; correct them"
            )

    def build(self, encoder: Encoder) -> MoCoNetwork:
        """Encoder, projector, the slow copy and the queue."""
        return MoCoNetwork(
            encoder,
            self.make_projector(encoder),
            features=self.projector[-1],
            queue_size=self.queue_size,
            key_groups=self.key_groups,
            temperature=self.temperature,
        )
