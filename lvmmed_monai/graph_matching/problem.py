"""The second-order graph matching problem, as a value.

Notation of Nguyen et al. 2023 (LVM-Med), Eq. 4, as a maximisation over permutations p:

    F(p) = sum_i vertex_affinity[i, p_i]
         + sum over source edges e = (i, j) and target edges f = (p_i, p_j) of edge_affinity[e, f]

Edges are directed; a pair joined both ways counts twice, by definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lvmmed_monai.errors import UserError

__all__ = ["GraphMatchingProblem", "carried_edges"]


@dataclass(frozen=True)
class GraphMatchingProblem:
    """A batch of B matching problems between graphs of N nodes each; affinities of any sign are maximised.

    Args:
        vertex_affinity: (B, N, N) floating point; entry [i, a] speaks for source node i going to target node a.
        source_edges: (B, E, 2) int64, directed edges of the source graphs, no self-loops, no repeated edge.
        target_edges: (B, F, 2) int64, the same for the target graphs. E and F may differ and may be 0.
        edge_affinity: (B, E, F), or the pair ((B, E, D), (B, F, D)) of edge features whose inner products it is.

    Raises:
        UserError: shapes, types or node numbers do not fit, an edge is a self-loop or stands twice,
            or an affinity is not finite.
    """

    vertex_affinity: Tensor
    source_edges: Tensor
    target_edges: Tensor
    edge_affinity: Tensor | tuple[Tensor, Tensor]

    def __post_init__(self) -> None:
        shape = self.vertex_affinity.shape
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] == 0:
            raise UserError(f"vertex_affinity has shape {tuple(shape)}; graph matching; give (B, N, N) with N > 0")
        _require_float(self.vertex_affinity, "vertex_affinity")
        _check_edges(self.source_edges, "source_edges", shape[0], shape[1])
        _check_edges(self.target_edges, "target_edges", shape[0], shape[1])
        self._check_edge_affinity()

    def _check_edge_affinity(self) -> None:
        batch, sources, targets = self.batch_size, self.source_edges.shape[1], self.target_edges.shape[1]
        if isinstance(self.edge_affinity, Tensor):
            _require_shape(self.edge_affinity, "edge_affinity", (batch, sources, targets))
            _require_float(self.edge_affinity, "edge_affinity")
            return
        left, right = self.edge_affinity
        features = left.shape[-1]
        _require_shape(left, "edge_affinity[0]", (batch, sources, features))
        _require_shape(right, "edge_affinity[1]", (batch, targets, features))
        _require_float(left, "edge_affinity[0]")
        _require_float(right, "edge_affinity[1]")

    @property
    def batch_size(self) -> int:
        """B, the number of problems."""
        return self.vertex_affinity.shape[0]

    @property
    def nodes(self) -> int:
        """N, the number of nodes of each graph."""
        return self.vertex_affinity.shape[1]

    def edge_table(self) -> Tensor:
        """The edge affinity as one (B, E, F) tensor."""
        if isinstance(self.edge_affinity, Tensor):
            return self.edge_affinity
        left, right = self.edge_affinity
        return left @ right.transpose(1, 2)

    def objective(self, assignment: Tensor) -> Tensor:
        """F of each assignment, in float64.

        Args:
            assignment: (B, N) int64; ``assignment[b, i]`` is the target node of source node i.

        Returns:
            (B,) float64.

        Raises:
            UserError: a row of ``assignment`` is not a permutation.
        """
        _require_shape(assignment, "assignment", (self.batch_size, self.nodes))
        numbers = torch.arange(self.nodes, device=assignment.device)
        if not torch.equal(assignment.sort(dim=1).values, numbers.expand_as(assignment)):
            raise UserError(f"an assignment is not a permutation of 0..{self.nodes - 1}; graph matching; use solve()")
        vertex = self.vertex_affinity.double().gather(2, assignment.unsqueeze(2)).sum((1, 2))
        if 0 in (self.source_edges.shape[1], self.target_edges.shape[1]):
            return vertex
        at = carried_edges(self.source_edges, self.target_edges, assignment)
        column = at.clamp_min(0).unsqueeze(2)
        if isinstance(self.edge_affinity, Tensor):
            edge = self.edge_affinity.double().gather(2, column)
        else:
            left, right = (features.double() for features in self.edge_affinity)
            edge = (left * right.gather(1, column.expand_as(left))).sum(2, keepdim=True)
        return vertex + torch.where(at >= 0, edge.squeeze(2), 0.0).sum(1)


def carried_edges(source_edges: Tensor, target_edges: Tensor, assignment: Tensor) -> Tensor:
    """(B, E): the target edge that an assignment (B, N) carries each source edge to; -1 where there is none."""
    nodes = assignment.shape[1]
    number = torch.full((len(assignment), nodes * nodes), -1, device=assignment.device)
    code = target_edges[..., 0] * nodes + target_edges[..., 1]
    number.scatter_(1, code, torch.arange(code.shape[1], device=code.device).expand_as(code))
    mapped = assignment.gather(1, source_edges.flatten(1)).view_as(source_edges)
    return number.gather(1, mapped[..., 0] * nodes + mapped[..., 1])


def _require_shape(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise UserError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}; graph matching; check the axes")


def _require_float(tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point():
        raise UserError(f"{name} has type {tensor.dtype}; graph matching; give floating point numbers")
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise UserError(
            f"{name} holds NaN or infinity; graph matching; check the embeddings or lower the learning rate"
        )


def _check_edges(edges: Tensor, name: str, batch: int, nodes: int) -> None:
    if edges.dim() != 3 or edges.shape[0] != batch or edges.shape[2] != 2:
        raise UserError(f"{name} has shape {tuple(edges.shape)}; graph matching; give ({batch}, number of edges, 2)")
    if edges.dtype != torch.int64:
        raise UserError(f"{name} has type {edges.dtype}; graph matching; give int64 node numbers")
    if edges.numel() == 0:
        return
    if int(edges.min()) < 0 or int(edges.max()) >= nodes:
        raise UserError(f"{name} names nodes outside 0..{nodes - 1}; graph matching; check the node numbers")
    if bool((edges[..., 0] == edges[..., 1]).any()):
        raise UserError(f"{name} holds a self-loop; graph matching; leave out edges (i, i)")
    code = (edges[..., 0] * nodes + edges[..., 1]).sort(dim=1).values
    if bool((code[:, 1:] == code[:, :-1]).any()):
        raise UserError(f"{name} holds an edge twice; graph matching; give every edge once and add up its affinities")
