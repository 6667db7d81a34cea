"""What graphs are built of: patches as nodes, nearest neighbours as edges, message passing (LVM-Med, Eq. 1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lvmmed_monai.errors import UserError

__all__ = ["MessagePassing", "knn_graph", "patch_pairs", "symmetric_edges"]


# Patches within about this many steps of the map from each other show the same place.
_PATCH_REACH = 0.5
_PATCH_CHANCE = 1e-6


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


@torch.no_grad()
def symmetric_edges(edges: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Edges in both directions wherever there is one in either.

    Args:
        edges: (B, E, 2) directed edges, none twice.
        nodes: N of each graph.

    Returns:
        (B, E', 2) edges sorted by node pair, E' those of the graph that has most, and (B, E') bool: False where a
        graph has fewer. Pairs without an edge stand there, which affinities of 0 make count for nothing.
    """
    code = edges[..., 0] * nodes + edges[..., 1]
    joined = torch.zeros(len(edges), nodes * nodes, dtype=torch.bool, device=edges.device).scatter_(1, code, True)
    joined = joined.view(-1, nodes, nodes)
    joined = joined | joined.transpose(1, 2)
    # Edges first, pairs without one after them, pairs of a node with itself never.
    rank = (~joined).to(torch.uint8)
    rank.diagonal(dim1=1, dim2=2).fill_(2)
    most = int(joined.sum((1, 2)).max())
    order = rank.flatten(1).sort(dim=1, stable=True)
    pairs, real = order.indices[:, :most], order.values[:, :most] == 0
    return torch.stack([pairs // nodes, pairs % nodes], dim=2), real


def patch_pairs(maps: tuple[Tensor, Tensor], grids: tuple[Tensor, Tensor], draws: int) -> tuple[Tensor, Tensor]:
    """Features of patches that both views of an image show: nodes of further graphs with known matches.

    A position of the first map is drawn at random, the rarer the further the nearest position of the second map lies
    from it in the original image; that position is its partner.

    Args:
        maps: (M, C, H, W) feature maps of the two views of M images.
        grids: (M, H, W, 2) places of the map positions in the original images.
        draws: positions to draw for each image, with replacement.

    Returns:
        Two (draws, M, C): features of the patches in the first and in the second view.
    """
    first, second = (one.flatten(2).transpose(1, 2) for one in maps)
    with torch.no_grad():
        here, there = (grid.flatten(1, 2).float() for grid in grids)
        distance, partner = torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist").min(dim=2)
        spread = torch.stack([place.amax(1) - place.amin(1) for place in (here, there)]).mean(dim=(0, 2))
        step = (spread / max(max(maps[0].shape[2:]) - 1, 1)).clamp_min(torch.finfo(spread.dtype).eps)
        # No image is without a patch to draw, whatever its views share.
        chance = torch.exp(-((distance / (_PATCH_REACH * step[:, None])) ** 2)) + _PATCH_CHANCE
        position = torch.multinomial(chance, draws, replacement=True)
        partner = partner.gather(1, position)
    pairs = ((first, position), (second, partner))
    left, right = (one.gather(1, at.unsqueeze(2).expand(-1, -1, one.shape[2])) for one, at in pairs)
    return left.transpose(0, 1), right.transpose(0, 1)


class MessagePassing(nn.Module):
    """Graph convolutions H <- A H W with A = (adjacency + identity) / (k + 1): means of a node and its neighbours.

    The published normalisation uses the degree without the added identity (row sums above 1); here rows sum to 1.
    ReLU stands between the layers and not after the last, so that cosines keep both signs, unless ``last_relu``.

    Args:
        features: width F of the embeddings.
        form: "gcn", the published form; "residual", H + 0.1 GCN(H), which leaves nearly equal embeddings of an
            untrained encoder distinguishable; or "sum", H V + adjacency H W, without normalisation.
        layers: number of convolutions.
        dropout: probability of a feature between layers to be left out.
        last_relu: ReLU after the last layer, too, as the published equation has it.
    """

    def __init__(
        self,
        features: int,
        form: Literal["gcn", "residual", "sum"] = "gcn",
        layers: int = 2,
        dropout: float = 0.0,
        last_relu: bool = False,
    ) -> None:
        super().__init__()
        if form not in ("gcn", "residual", "sum"):
            raise UserError(f"unknown form {form!r}; message passing; choose 'gcn', 'residual' or 'sum'")
        self.form, self.dropout, self.last_relu = form, nn.Dropout(dropout), last_relu
        self.layers = nn.ModuleList(nn.Linear(features, features, bias=False) for _ in range(layers))
        own = layers if form == "sum" else 0
        self.own = nn.ModuleList(nn.Linear(features, features) for _ in range(own))

    def forward(self, z: Tensor, edges: Tensor, real: Tensor | None = None) -> Tensor:
        """(B, N, F) embeddings and (B, E, 2) directed edges, of which (B, E) are ``real``, to (B, N, F)."""
        batch, nodes = z.shape[:2]
        summed = self.form == "sum"
        start = torch.zeros(nodes, nodes) if summed else torch.eye(nodes)
        gather = start.to(z).repeat(batch, 1, 1)
        rows = torch.arange(batch, device=z.device).unsqueeze(1).expand(edges.shape[:2])
        gather[rows, edges[..., 0], edges[..., 1]] = 1.0 if real is None else real.to(z.dtype)
        gather = gather if summed else gather / gather.sum(dim=2, keepdim=True)
        hidden = z
        for number, layer in enumerate(self.layers):
            given = hidden if number == 0 else self.dropout(hidden.relu())
            hidden = gather @ layer(given) + (self.own[number](given) if summed else 0.0)
        hidden = hidden.relu() if self.last_relu else hidden
        return z + 0.1 * hidden if self.form == "residual" else hidden
