"""Graphs of embeddings: nearest neighbours, and message passing along them (LVM-Med, Eq. 1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lvmmed_monai.errors import UserError

__all__ = ["MessagePassing", "knn_graph"]


@torch.no_grad()
def knn_graph(z: Tensor, k: int) -> Tensor:
    """Directed edges from every node to its k nearest other nodes (Euclidean).

    Args:
        z: (B, N, F) embeddings; no gradient flows through the choice of neighbours.
        k: neighbours per node; capped at N - 1.

    Returns:
        (B, N * min(k, N - 1), 2) int64 edges (node, neighbour), sorted by node and then by distance. A node is
        kept from its own neighbours by its number, not by distance 0; equal distances go by node number.

    Raises:
        UserError: ``z`` is not (B, N, F) or k < 1.
    """
    if z.dim() != 3:
        raise UserError(f"embeddings have shape {tuple(z.shape)}; kNN graph; give (B, N, F)")
    if k < 1:
        raise UserError(f"k = {k}; kNN graph; give at least 1 neighbour")
    batch, nodes = z.shape[:2]
    k = min(k, nodes - 1)
    # The form without a matrix product gives equal embeddings exactly equal distances.
    distance = torch.cdist(z.double(), z.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    neighbours = distance.sort(dim=2, stable=True).indices[..., :k]
    centres = torch.arange(nodes, device=z.device).view(1, nodes, 1).expand(batch, nodes, k)
    return torch.stack([centres, neighbours], dim=3).reshape(batch, nodes * k, 2)


class MessagePassing(nn.Module):
    """Graph convolutions H <- A H W with A = (adjacency + identity) / (k + 1): means of a node and its neighbours.

    The published normalisation uses the degree without the added identity (row sums above 1); here rows sum to 1.
    ReLU stands between the layers and not after the last, so that cosines keep both signs.

    Args:
        features: width F of the embeddings.
        form: "gcn", the published form; or "residual", H + 0.1 GCN(H), which leaves nearly equal embeddings of an
            untrained encoder distinguishable.
        layers: number of convolutions.
    """

    def __init__(self, features: int, form: Literal["gcn", "residual"] = "gcn", layers: int = 2) -> None:
        super().__init__()
        if form not in ("gcn", "residual"):
            raise UserError(f"unknown form {form!r}; message passing; choose 'gcn' or 'residual'")
        self.form = form
        self.layers = nn.ModuleList(nn.Linear(features, features, bias=False) for _ in range(layers))

    def forward(self, z: Tensor, edges: Tensor) -> Tensor:
        """(B, N, F) embeddings and (B, E, 2) directed edges to (B, N, F)."""
        batch, nodes = z.shape[:2]
        average = torch.eye(nodes, dtype=z.dtype, device=z.device).repeat(batch, 1, 1)
        rows = torch.arange(batch, device=z.device).unsqueeze(1).expand(edges.shape[:2])
        average[rows, edges[..., 0], edges[..., 1]] = 1.0
        average = average / average.sum(dim=2, keepdim=True)
        hidden = z
        for number, layer in enumerate(self.layers):
            hidden = average @ layer(hidden if number == 0 else hidden.relu())
        return z + 0.1 * hidden if self.form == "residual" else hidden
