"""The differentiable matching layer: perturb-and-MAP with implicit maximum likelihood gradients (LVM-Med, Eq. 6).

Forward: v = MAP(theta + eps - margin on the true pairs), with Gumbel noise eps on vertex and edge affinities.
Backward, for an incoming gradient g: d = g / max|g| within each graph, v' = MAP(the same noised theta - lam d), and

    d loss / d vertex = max|g| / lam (v - v'),     d loss / d edge = max|g| / lam (w - w')

with w the edge pairs that an assignment uses. The division by max|g|, which the published form lacks, makes the
gradient of degree 1 in g: loss weights and gradient scaling act as they do elsewhere.

At most 2 N vertex and 2 N k edge pairs are touched. With edge features instead of a table the gradient of the features
is gathered from those pairs alone, and no table of E x F numbers stands in the autograd graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching.problem import GraphMatchingProblem, carried_edges
from lvmmed_monai.graph_matching.solver import check_names, on_tensors, solve_tables

__all__ = ["match"]


@dataclass(frozen=True)
class _Tables:
    """Affinities without gradient on the device and in the type that the backend works in, and how they are solved.

    Attributes:
        vertex: (P, N, N), of each problem.
        source_edges, target_edges, edge: (T, E, 2), (T, F, 2) and (T, E, F) of graph pairs that problems may share.
        owner: (P,) numbers of the problems' graph pairs.
        options: of the solver.
    """

    vertex: Tensor
    source_edges: Tensor
    target_edges: Tensor
    edge: Tensor
    owner: Tensor
    options: dict[str, Any]

    @staticmethod
    def of(problem: GraphMatchingProblem, options: dict[str, Any]) -> _Tables:
        vertex = problem.vertex_affinity.detach()
        owner = torch.arange(len(vertex), device=vertex.device)
        if options["mode"] == "linear":
            none = vertex.new_zeros(len(vertex), 0, 2, dtype=torch.int64)
            tables = _Tables(vertex, none, none, vertex.new_zeros(len(vertex), 0, 0), owner, options)
        else:
            with torch.no_grad():
                table = problem.edge_table().detach()
            tables = _Tables(vertex, problem.source_edges, problem.target_edges, table, owner, options)
        return tables if on_tensors(vertex, options["backend"]) else tables._for_compiled()

    def _for_compiled(self) -> _Tables:
        edges = self.source_edges.cpu(), self.target_edges.cpu()
        affinities = self.vertex.to("cpu", torch.float64), self.edge.to("cpu", torch.float64)
        return _Tables(affinities[0], *edges, affinities[1], self.owner.cpu(), self.options)

    def solve(self, given: Tensor | None = None) -> Tensor:
        parts = self.vertex, self.source_edges, self.target_edges, self.edge
        return solve_tables(*parts, given=given, owner=self.owner, **self.options)

    def perturbed(self, gold: Tensor, noise: tuple[float, float], margin: float, samples: int) -> _Tables:
        """``samples`` problems of each, one after the other, with noise and margin: both solves see these numbers."""
        vertex = self.vertex - margin * _matrix(gold, self.vertex.dtype) if margin else self.vertex
        vertex = vertex.unsqueeze(1).expand(-1, samples, -1, -1)
        if noise[0]:
            vertex = _gumbel(vertex, noise[0]).add_(vertex)
        repeated = replace(self, vertex=vertex.flatten(0, 1), owner=self.owner.repeat_interleave(samples))
        return repeated._with_own_edges(noise[1]) if noise[1] and self.edge.numel() else repeated

    def _with_own_edges(self, noise: float) -> _Tables:
        parts = (part[self.owner] for part in (self.source_edges, self.target_edges, self.edge))
        source, target, edge = parts
        own = torch.arange(len(self.owner), device=self.owner.device)
        return _Tables(self.vertex, source, target, edge + _gumbel(edge, noise), own, self.options)

    def towards(self, rows: Tensor, directions: Tensor) -> _Tables:
        """Some problems with their vertex affinities moved against a direction each."""
        return replace(self, vertex=self.vertex[rows] - directions, owner=self.owner[rows])

    def target_of_edges(self, assignment: Tensor) -> Tensor:
        """(P, E): the target edge that each source edge is carried to; -1 where there is none."""
        return carried_edges(self.source_edges[self.owner], self.target_edges[self.owner], assignment)

    def slack(self, gold: Tensor) -> Tensor:
        """(P,) bound on what any solution can gain over the true one, per node at which it differs.

        If a solution differs from the truth on the nodes D, only vertices in D and edges touching D change; so its
        objective exceeds the truth's by at most |D| times this number.
        """
        slack = self.vertex.amax(2) - self.vertex.gather(2, gold.unsqueeze(2)).squeeze(2)
        if self.edge.numel():
            at = self.target_of_edges(gold)
            edge = self.owner.unsqueeze(1), torch.arange(at.shape[1], device=at.device)
            own = torch.where(at >= 0, self.edge[(*edge, at.clamp_min(0))], 0.0)
            gain = self.edge.amax(2).clamp_min(0.0)[self.owner] - own
            for end in (0, 1):
                slack = slack.scatter_add(1, self.source_edges[self.owner, :, end], gain)
        return slack.amax(1)


def match(
    problem: GraphMatchingProblem,
    target: Tensor | None = None,
    *,
    noise_scale_vertex: float = 1.0,
    noise_scale_edge: float = 1.0,
    margin: float = 0.0,
    lam: float = 80.0,
    samples: int = 1,
    mode: str = "default",
    backend: str = "auto",
    seed: int = 0,
    patience: int = 3,
    statistics: dict[str, float] | None = None,
) -> Tensor:
    """Match and let gradients flow to the affinities.

    The table of edge affinities, (N k)^2 numbers per graph (and sample, with noise on edges), stands in memory while a
    problem is solved: 160 MB in all, forward and backward, for one graph of 512 nodes or four of 256 (k = 5).

    Args:
        problem: its affinities may require gradients.
        target: (B, N) int64 true assignment; None is the identity. Used by ``margin`` and to recognise when the
            second solve of the backward pass is known without solving.
        noise_scale_vertex, noise_scale_edge: scales of the Gumbel noise, drawn from torch's global generator of the
            device that solves.
        margin: subtracted from the vertex affinity of true pairs, a structured hinge.
        lam: length of the step in the backward pass, > 0.
        samples: noise samples to average over, solved together.
        mode, backend, seed, patience: of `solve`. In mode "linear" edges play no part and get no gradient.
        statistics: receives "skipped", the share of solves whose second one is known without solving if the loss is
            the Hamming distance to ``target``.

    Returns:
        (B, N, N) of the vertex affinity's type: the assignment matrix, or the mean over ``samples`` of them.

    Raises:
        UserError: an option is out of range, or ``target`` is not (B, N) permutations.
    """
    if lam <= 0 or samples < 1 or min(noise_scale_vertex, noise_scale_edge, margin) < 0:
        raise UserError(
            f"lam {lam}, samples {samples}, noise {noise_scale_vertex} and {noise_scale_edge}, margin {margin}; "
            "matching layer; give lam > 0, samples >= 1 and no negative noise or margin"
        )
    check_names(mode, backend)
    options = {"mode": mode, "backend": backend, "seed": seed, "patience": patience}
    tables = _Tables.of(problem, options)
    gold = _gold(target, problem).to(tables.vertex.device)
    noised = tables.perturbed(gold, (noise_scale_vertex, noise_scale_edge), margin, samples)
    gold = gold.repeat_interleave(samples, dim=0)
    first = noised.solve()
    known = (first == gold).all(1) | (2.0 * lam > noised.slack(gold))
    if statistics is not None:
        statistics["skipped"] = float(known.double().mean())
    edge = problem.edge_affinity
    edges = edge if isinstance(edge, tuple) else (edge,)
    solved = _Solved(noised, first, gold, known, lam, samples)
    found: Tensor = _Matching.apply(problem.vertex_affinity, solved, *edges)
    return found


def _gold(target: Tensor | None, problem: GraphMatchingProblem) -> Tensor:
    shape = (problem.batch_size, problem.nodes)
    identity = torch.arange(problem.nodes, device=problem.vertex_affinity.device)
    if target is None:
        return identity.expand(shape)
    gold = target.detach().to(identity.device)
    if gold.shape != shape or not torch.equal(gold.sort(dim=1).values, identity.expand(shape)):
        raise UserError(
            f"target has shape {tuple(gold.shape)} or holds no permutations; matching layer; "
            f"give {shape} true assignments"
        )
    return gold


def _gumbel(like: Tensor, scale: float) -> Tensor:
    # Uniform numbers and two logarithms take half the time of exponential numbers and one.
    draws = torch.rand(like.shape, dtype=torch.float32, device=like.device)
    limits = torch.finfo(torch.float32)
    draws = draws.clamp_(limits.tiny, 1.0 - limits.eps / 2).log_().neg_().log_()
    return draws.mul_(-scale).to(like.dtype)


def _matrix(assignment: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N) permutations to (B, N, N) matrices of 0 and 1."""
    return functional.one_hot(assignment, assignment.shape[1]).to(dtype)


def _mean_matrix(assignments: Tensor, samples: int, like: Tensor) -> Tensor:
    """(B samples, N) permutations to (B, N, N): the mean of the matrices of each problem's samples."""
    columns = assignments.unflatten(0, (-1, samples)).transpose(1, 2).to(like.device)
    share = torch.full((), 1.0 / samples, dtype=like.dtype, device=like.device)
    return torch.zeros_like(like).scatter_add_(2, columns, share.expand(columns.shape))


@dataclass(frozen=True)
class _Solved:
    """The perturbed problems, ``samples`` of each, with their solutions and whether the second ones are known."""

    tables: _Tables
    first: Tensor
    gold: Tensor
    known: Tensor
    lam: float
    samples: int

    def second(self, direction: Tensor) -> Tensor:
        """MAP(theta - lam direction); solves only the problems for which it is not known to be the truth.

        Args:
            direction: (B, N, N), of largest magnitude 1, or 0.
        """
        truth = _matrix(self.gold[:: self.samples], direction.dtype)
        hamming = (direction - (1.0 - 2.0 * truth)).abs().amax((1, 2)) < 1e-5
        # A Hamming gradient adds 2 lam per correct node: the truth stays optimal if it was, and becomes so by `slack`.
        open_ = torch.nonzero(~(hamming.repeat_interleave(self.samples) & self.known)).squeeze(1)
        result = self.gold.clone()
        if len(open_):
            given = torch.stack([self.first[open_], self.gold[open_]], dim=1)
            steps = self.lam * direction.to(self.tables.vertex.dtype)[open_ // self.samples]
            result[open_] = self.tables.towards(open_, steps).solve(given)
        moved = direction.flatten(1).any(1).repeat_interleave(self.samples)
        return torch.where(moved.unsqueeze(1), result, self.first)


class _Matching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vertex: Tensor, solved: _Solved, *edge: Tensor) -> Tensor:
        ctx.solved = solved
        ctx.save_for_backward(vertex, *edge)
        return _mean_matrix(solved.first, solved.samples, vertex)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        solved: _Solved = ctx.solved
        vertex, *edge = ctx.saved_tensors
        incoming = gradients[0].detach()
        if not bool(torch.isfinite(incoming).all()):
            # An overflowed loss scale: gradient scaling must see it and skip the step.
            bad = [torch.full_like(one, torch.nan) for one in (vertex, *edge)]
            return bad[0], None, *bad[1:]
        size = incoming.abs().amax((1, 2))
        direction = incoming / torch.where(size > 0, size, 1.0).view(-1, 1, 1)
        second = solved.second(direction.to(solved.first.device))
        factor = (size / solved.lam).view(-1, 1, 1)
        means = [_mean_matrix(one, solved.samples, vertex) for one in (solved.first, second)]
        of_vertex = factor.to(vertex.dtype) * (means[0] - means[1])
        if not any(ctx.needs_input_grad[2:]) or not solved.tables.edge.numel():
            return of_vertex, None, *[None] * len(edge)
        used = [solved.tables.target_of_edges(p).to(vertex.device) for p in (solved.first, second)]
        pairs = [_touched(at.unflatten(0, (-1, solved.samples))) for at in used]
        of_edge = _table_gradient(edge[0], pairs) if len(edge) == 1 else _feature_gradients(edge, pairs)
        return of_vertex, None, *(factor.to(one.dtype) / solved.samples * one for one in of_edge)


def _touched(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Problem, source edge and target edge of all pairs in use, of (B, samples, E) target edges or -1."""
    problem, sample, edge = torch.nonzero(at >= 0, as_tuple=True)
    return problem, edge, at[problem, sample, edge]


def _table_gradient(table: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    """Pairs of edges in use by the first solutions, less those in use by the second, as a (B, E, F) table."""
    change = torch.zeros_like(table)
    for sign, at in zip((1.0, -1.0), pairs, strict=True):
        change.index_put_(at, change.new_tensor(sign), accumulate=True)
    return [change]


def _feature_gradients(features: list[Tensor], pairs: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    """The same for the features (B, E, D) and (B, F, D) whose inner products the affinities are."""
    left, right = features
    of_left, of_right = torch.zeros_like(left), torch.zeros_like(right)
    for sign, (problem, source, target) in zip((1.0, -1.0), pairs, strict=True):
        of_left.index_put_((problem, source), sign * right[problem, target], accumulate=True)
        of_right.index_put_((problem, target), sign * left[problem, source], accumulate=True)
    return [of_left, of_right]
