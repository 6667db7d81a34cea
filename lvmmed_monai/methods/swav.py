"""SwAV: a view predicts to which prototypes the other is assigned (Caron et al., arXiv 2006.09882)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.methods._projection import Prototypes, checked_widths
from lvmmed_monai.methods._siamese import Embedder, SiameseMethod, above_zero, embedding_numbers
from lvmmed_monai.networks import Encoder

__all__ = ["SwAV", "SwAVNetwork", "sinkhorn", "swav_loss"]


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft assignments that use all prototypes equally: equations 3 to 5 of the paper.

    Args:
        scores: (..., M, K) cosines of M samples and K prototypes.
        epsilon: the larger, the softer.
        iterations: rounds of making the prototypes' shares, then the samples' shares equal.

    Returns:
        (..., M, K) at least float32; each row sums to 1.
    """
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    # In logarithms: the share of a prototype far from all samples would else be 0, and could not be made larger.
    codes = scores / epsilon
    for _ in range(iterations):
        codes = codes - codes.logsumexp(dim=-2, keepdim=True)
        codes = codes - codes.logsumexp(dim=-1, keepdim=True)
    return codes.exp()


def swav_loss(scores: Tensor, temperature: float, epsilon: float, iterations: int) -> Tensor:
    """Equations 1 and 2 of the paper (6 with small views): the mean over all pairs of different views.

    Args:
        scores: (V, M, K) cosines of all views and the prototypes; the two large views first, which make the codes.
        temperature: of the softmax that predicts the codes.
        epsilon, iterations: of `sinkhorn`.
    """
    codes = sinkhorn(scores[:2], epsilon, iterations)
    predicted = (scores / temperature).log_softmax(dim=-1)
    entropies = -torch.einsum("tmk,vmk->tv", codes, predicted) / scores.shape[1]
    pairs = ~torch.eye(*entropies.shape, dtype=torch.bool, device=entropies.device)
    return (entropies * pairs).sum() / (2 * (len(scores) - 1))


class SwAVNetwork(Embedder):
    """Encoder, projector and prototypes.

    Args:
        encoder: 2D encoder.
        projector: pooled features to (M, F).
        prototypes: (M, F) to (M, K).
        temperature, epsilon, iterations: of `swav_loss`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        prototypes: nn.Module,
        *,
        temperature: float,
        epsilon: float,
        iterations: int,
    ) -> None:
        super().__init__(encoder, projector)
        self.prototypes = prototypes
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations

    def forward(self, view1: Tensor, view2: Tensor, small: Tensor | None = None) -> dict[str, Tensor]:
        """ "loss" and numbers of the views that `embed_views` takes."""
        z = self.embed_views(view1, view2, small)
        with torch.autocast(z.device.type, enabled=False):
            loss = swav_loss(self.prototypes(z), self.temperature, self.epsilon, self.iterations)
            return {"loss": loss, **embedding_numbers(*z[:2])}


class SwAV(SiameseMethod):
    """The method. Small views are used where the batch has them; codes are made of large ones only.

    Prototypes are used equally within a process's own part of the batch. The paper's queue for batches below some
    thousands is left out, and its number of prototypes (3,000) cut down instead: more prototypes than samples cannot
    all be used. Its prototypes are frozen at first; here the warm-up of the learning rate must do.

    Args:
        prototypes: number of them; not much above the pictures of a batch.
        temperature: of the softmax that predicts the codes.
        epsilon: softness of the codes.
        iterations: rounds of Sinkhorn and Knopp's algorithm.
        **common: of `SiameseMethod`. The paper's projector is (2048, 128).

    Raises:
        UserError: an option that cannot be.
    """

    name = "swav"
    inputs = ("view1", "view2", "small")

    def __init__(
        self,
        *,
        prototypes: int = 64,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.prototypes = checked_widths([prototypes], "prototypes", self.name)[0]
        self.temperature = above_zero(temperature, "temperature", self.name)
        self.epsilon = above_zero(epsilon, "epsilon", self.name)
        if iterations < 1:
            raise UserError(f"iterations must be at least 1, got {iterations}; swav; correct it")
        self.iterations = iterations

    def build(self, encoder: Encoder) -> SwAVNetwork:
        """Encoder, projector and prototypes."""
        return SwAVNetwork(
            encoder,
            self.make_projector(encoder),
            Prototypes(self.projector[-1], self.prototypes),
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
        )
