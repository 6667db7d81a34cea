"""Affinities between two graphs of images: cosines of embeddings, of local features and of edges (LVM-Med, Eq. 2-3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lvmmed_monai.errors import UserError

__all__ = [
    "edge_affinity",
    "edge_differences",
    "edge_directions",
    "global_affinity",
    "local_affinity",
    "softplus_affinity",
]

# Squared length of a difference below this fraction of its ends' squared lengths is rounding error: no direction.
_NO_DIRECTION = 1e-12


def _unit(vectors: Tensor, scale: Tensor | None = None) -> Tensor:
    """Unit vectors along the last axis; those without a direction become 0, with gradient 0."""
    squared = vectors.square().sum(dim=-1, keepdim=True)
    reference = squared if scale is None else scale
    directed = squared > (_NO_DIRECTION * reference).clamp_min(torch.finfo(vectors.dtype).tiny)
    return torch.where(directed, vectors * torch.where(directed, squared, 1.0).rsqrt(), 0.0)


def global_affinity(source: Tensor, target: Tensor) -> Tensor:
    """Cosines of embeddings: (B, N, F) and (B, N, F) to (B, N, N) in [-1, 1]; a zero vector has cosine 0."""
    return _unit(source) @ _unit(target).transpose(1, 2)


def edge_affinity(source: Tensor, target: Tensor, source_edges: Tensor, target_edges: Tensor) -> Tensor:
    """Cosines of differences along edges.

    Args:
        source, target: (B, N, F) embeddings.
        source_edges, target_edges: (B, E, 2) and (B, K, 2) int64.

    Returns:
        (B, E, K) in [-1, 1]; an edge between equal embeddings has cosine 0 with every other.
    """
    return edge_directions(source, source_edges) @ edge_directions(target, target_edges).transpose(1, 2)


def edge_directions(z: Tensor, edges: Tensor) -> Tensor:
    """Unit differences along edges: (B, N, F) and (B, E, 2) to (B, E, F); 0 where the ends are equal."""
    head, tail = _ends(z, edges)
    scale = head.detach().square().sum(-1, keepdim=True) + tail.detach().square().sum(-1, keepdim=True)
    return _unit(head - tail, scale)


def edge_differences(z: Tensor, edges: Tensor) -> Tensor:
    """Differences along edges: (B, N, F) and (B, E, 2) to (B, E, F)."""
    head, tail = _ends(z, edges)
    return head - tail


def _ends(z: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    at = edges.unsqueeze(-1).expand(-1, -1, -1, z.shape[-1])
    return z.gather(1, at[:, :, 0]), z.gather(1, at[:, :, 1])


def softplus_affinity(source: Tensor, target: Tensor) -> Tensor:
    """softplus(inner product) - 1/2, unbounded above: (B, N, F) and (B, M, F) to (B, N, M)."""
    return functional.softplus(source @ target.transpose(1, 2)) - 0.5


def local_affinity(
    source_maps: Tensor,
    target_maps: Tensor,
    source_grid: Tensor,
    target_grid: Tensor,
    gamma: int | None = 20,
) -> Tensor:
    """Agreement of local features over two matchings of map positions: by place in the image, and by feature.

    For every image pair, each position of one map is compared with the position of the other that is nearest in
    original-image coordinates, and with the one whose feature is nearest. The mean over both matchings and both
    directions lies in [-1, 1]; the published equation gives the sum of the four terms.

    Graphs are worked on one after the other: a graph's tables hold (N P)^2 numbers for P positions. Forward and
    backward of 4 graphs of 16 images take 280 MB beside maps of 2048 x 7 x 7 and 620 MB beside 1024 x 14 x 14.

    Args:
        source_maps, target_maps: (B, N, C, H, W) feature maps.
        source_grid, target_grid: (B, N, H, W, 2) pixel coordinates of the map positions in the original image.
        gamma: positions kept in the matching by place, those with the nearest partner; None keeps all. The matching
            by feature keeps all.

    Returns:
        (B, N, N).

    Raises:
        UserError: maps and grids do not fit.
    """
    for maps, grid in ((source_maps, source_grid), (target_maps, target_grid)):
        if maps.dim() != 5 or grid.shape != (*maps.shape[:2], *maps.shape[3:], 2):
            raise UserError(
                f"maps {tuple(maps.shape)} and grid {tuple(grid.shape)}; local affinity; "
                "give (B, N, C, H, W) and (B, N, H, W, 2)"
            )
    # Graph by graph: the table of one graph holds (N H W)^2 similarities.
    pairs = zip(source_maps, target_maps, source_grid, target_grid, strict=True)
    return torch.stack([_local_of_graph(*pair, gamma) for pair in pairs])


def _local_of_graph(
    source: Tensor, target: Tensor, source_grid: Tensor, target_grid: Tensor, gamma: int | None
) -> Tensor:
    nodes = len(source)
    left, right = source.flatten(2).transpose(1, 2).flatten(0, 1), target.flatten(2).transpose(1, 2).flatten(0, 1)
    shape = (nodes, len(left) // nodes, nodes, len(right) // nodes)
    # (i, p, a, q) -> (i, a, p, q): one P x Q table for every image pair.
    cosine = (_unit(left) @ _unit(right).T).view(shape).transpose(1, 2)
    with torch.no_grad():
        # Without the matrix product: places far from the origin would lose the digits that tell neighbours apart.
        ends = source_grid.reshape(-1, 2).float(), target_grid.reshape(-1, 2).float()
        place = torch.cdist(*ends, compute_mode="donot_use_mm_for_euclid_dist")
        feature = torch.cdist(left, right)
        place, feature = (table.view(shape).transpose(1, 2) for table in (place, feature))
    terms = []
    for axis in (3, 2):
        by_place, at = place.min(dim=axis)
        agreement = cosine.gather(axis, at.unsqueeze(axis)).squeeze(axis)
        if gamma is not None and gamma < agreement.shape[2]:
            nearest = by_place.topk(gamma, dim=2, largest=False).indices
            agreement = agreement.gather(2, nearest)
        terms.append(agreement.mean(dim=2))
        at = feature.argmin(dim=axis)
        terms.append(cosine.gather(axis, at.unsqueeze(axis)).squeeze(axis).mean(dim=2))
    return torch.stack(terms).mean(dim=0)
