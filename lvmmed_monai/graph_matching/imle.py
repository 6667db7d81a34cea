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
from lvmmed_monai.graph_matching.problem import GraphMatchingProblem
from lvmmed_monai.graph_matching.solver import check_names, on_tensors, solve_tables

__all__ = ["match"]


@dataclass(frozen=True)
class _Tables:
    """Affinities without gradient on the device and in the type that the backend works in, and how they are solved."""

    vertex: Tensor
    source_edges: Tensor
    target_edges: Tensor
    edge: Tensor
    options: dict[str, Any]

    @staticmethod
    def of(problem: GraphMatchingProblem, options: dict[str, Any]) -> _Tables:
        vertex = problem.vertex_affinity.detach()
        if options["mode"] == "linear":
            none = vertex.new_zeros(len(vertex), 0, 2, dtype=torch.int64)
            tables = _Tables(vertex, none, none, vertex.new_zeros(len(vertex), 0, 0), options)
        else:
            with torch.no_grad():
                table = problem.edge_table().detach()
            tables = _Tables(vertex, problem.source_edges, problem.target_edges, table, options)
        return tables if on_tensors(vertex, options["backend"]) else tables._for_compiled()

    def _for_compiled(self) -> _Tables:
        edges = self.source_edges.cpu(), self.target_edges.cpu()
        return _Tables(self.vertex.to("cpu", torch.float64), *edges, self.edge.to("cpu", torch.float64), self.options)

    def solve(self, given: Tensor | None = None) -> Tensor:
        return solve_tables(self.vertex, self.source_edges, self.target_edges, self.edge, given=given, **self.options)

    def perturbed(self, gold: Tensor, noise: tuple[float, float], margin: float) -> _Tables:
        """Noise and margin added once: both solves see these very numbers."""
        vertex = self.vertex + _gumbel(self.vertex, noise[0]) if noise[0] else self.vertex
        edge = self.edge + _gumbel(self.edge, noise[1]) if noise[1] and self.edge.numel() else self.edge
        return replace(self, vertex=vertex - margin * _matrix(gold, vertex.dtype) if margin else vertex, edge=edge)

    def repeated(self, samples: int) -> _Tables:
        """Each problem ``samples`` times, one after the other."""
        vertex, edge = self.vertex.repeat_interleave(samples, dim=0), self.edge.repeat_interleave(samples, dim=0)
        edges = [one.repeat_interleave(samples, dim=0) for one in (self.source_edges, self.target_edges)]
        return _Tables(vertex, edges[0], edges[1], edge, self.options)

    def towards(self, rows: Tensor, direction: Tensor) -> _Tables:
        """Some problems with their vertex affinities moved against ``direction``."""
        edges = self.source_edges[rows], self.target_edges[rows]
        return _Tables(self.vertex[rows] - direction[rows], *edges, self.edge[rows], self.options)

    def target_of_edges(self, assignment: Tensor) -> Tensor:
        """(B, E): the target edge that each source edge is carried to; -1 where there is none."""
        batch, nodes = assignment.shape
        number = torch.full((batch, nodes * nodes), -1, device=assignment.device)
        code = self.target_edges[..., 0] * nodes + self.target_edges[..., 1]
        number.scatter_(1, code, torch.arange(code.shape[1], device=code.device).expand_as(code))
        mapped = assignment.gather(1, self.source_edges.flatten(1)).view_as(self.source_edges)
        return number.gather(1, mapped[..., 0] * nodes + mapped[..., 1])

    def slack(self, gold: Tensor) -> Tensor:
        """(B,) bound on what any solution can gain over the true one, per node at which it differs.

        If a solution differs from the truth on the nodes D, only vertices in D and edges touching D change; so its
        objective exceeds the truth's by at most |D| times this number.
        """
        slack = self.vertex.amax(2) - self.vertex.gather(2, gold.unsqueeze(2)).squeeze(2)
        if self.edge.numel():
            at = self.target_of_edges(gold)
            own = self.edge.gather(2, at.clamp_min(0).unsqueeze(2)).squeeze(2)
            gain = self.edge.amax(2).clamp_min(0.0) - torch.where(at >= 0, own, 0.0)
            for end in (0, 1):
                slack = slack.scatter_add(1, self.source_edges[..., end], gain)
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

    The table of edge affinities, (N k)^2 numbers per graph and sample, stands in memory while a problem is solved:
    160 MB in all, forward and backward, for one graph of 512 nodes or four of 256 (k = 5).

    Args:
        problem: its affinities may require gradients.
        target: (B, N) int64 true assignment; None is the identity. Used by ``margin`` and to recognise when the
            second solve of the backward pass is known without solving.
        noise_scale_vertex, noise_scale_edge: scales of the Gumbel noise, drawn from torch's global generator of the
            device that solves.
        margin: subtracted from the vertex affinity of true pairs, a structured hinge.
        lam: length of the step in the backward pass, > 0.
        samples: noise samples to average over, solved together: tables stand in memory as often.
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
    tables = _Tables.of(problem, options).repeated(samples)
    gold = _gold(target, problem).to(tables.vertex.device).repeat_interleave(samples, dim=0)
    edge = problem.edge_affinity
    given = (problem.vertex_affinity, *(edge if isinstance(edge, tuple) else (edge,)))
    vertex, *edges = (one.repeat_interleave(samples, dim=0) for one in given)
    noised = tables.perturbed(gold, (noise_scale_vertex, noise_scale_edge), margin)
    first = noised.solve()
    known = (first == gold).all(1) | (2.0 * lam > noised.slack(gold))
    if statistics is not None:
        statistics["skipped"] = float(known.double().mean())
    found = _Matching.apply(vertex, noised, first, gold, known, lam, *edges)
    return found.unflatten(0, (problem.batch_size, samples)).mean(dim=1)


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


def _second_solve(tables: _Tables, first: Tensor, gold: Tensor, known: Tensor, direction: Tensor, lam: float) -> Tensor:
    """MAP(theta - lam direction); solves only the problems for which it is not known to be the truth."""
    hamming = (direction - (1.0 - 2.0 * _matrix(gold, direction.dtype))).abs().amax((1, 2)) < 1e-5
    # A Hamming gradient adds 2 lam per correct node: the truth stays optimal if it was, and becomes so by `slack`.
    open_ = torch.nonzero(~(hamming & known)).squeeze(1)
    result = gold.clone()
    if len(open_):
        given = torch.stack([first[open_], gold[open_]], dim=1)
        result[open_] = tables.towards(open_, lam * direction.to(tables.vertex.dtype)).solve(given)
    return result


class _Matching(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vertex: Tensor,
        tables: _Tables,
        first: Tensor,
        gold: Tensor,
        known: Tensor,
        lam: float,
        *edge: Tensor,
    ) -> Tensor:
        ctx.solved = (tables, first, gold, known, lam)
        ctx.save_for_backward(vertex, *edge)
        return _matrix(first, vertex.dtype).to(vertex.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tables, first, gold, known, lam = ctx.solved
        vertex, *edge = ctx.saved_tensors
        incoming = gradients[0].detach()
        if not bool(torch.isfinite(incoming).all()):
            # An overflowed loss scale: gradient scaling must see it and skip the step.
            bad = [torch.full_like(one, torch.nan) for one in (vertex, *edge)]
            return bad[0], None, None, None, None, None, *bad[1:]
        size = incoming.abs().amax((1, 2))
        direction = (incoming / torch.where(size > 0, size, 1.0).view(-1, 1, 1)).to(first.device)
        second = _second_solve(tables, first, gold, known, direction, lam)
        second = torch.where(size.to(first.device).view(-1, 1) > 0, second, first)
        factor = size / lam
        change = (_matrix(first, vertex.dtype) - _matrix(second, vertex.dtype)).to(vertex.device)
        of_vertex = factor.to(vertex.dtype).view(-1, 1, 1) * change
        if not any(ctx.needs_input_grad[6:]) or not tables.edge.numel():
            return of_vertex, *[None] * (5 + len(edge))
        used = [tables.target_of_edges(p).to(vertex.device) for p in (first, second)]
        of_edge = _table_gradient(edge[0], used) if len(edge) == 1 else _feature_gradients(edge, used)
        scaled = [factor.to(one.dtype).view(-1, 1, 1) * one for one in of_edge]
        return of_vertex, None, None, None, None, None, *scaled


def _table_gradient(table: Tensor, used: list[Tensor]) -> list[Tensor]:
    """Pairs of edges in use by the first solution, less those in use by the second, as a (B, E, F) table."""
    change = torch.zeros_like(table)
    for sign, at in zip((1.0, -1.0), used, strict=True):
        column = at.clamp_min(0).unsqueeze(2)
        change.scatter_add_(2, column, sign * (at >= 0).to(table.dtype).unsqueeze(2))
    return [change]


def _feature_gradients(features: list[Tensor], used: list[Tensor]) -> list[Tensor]:
    """The same for the features (B, E, D) and (B, F, D) whose inner products the affinities are."""
    left, right = features
    of_left, of_right = torch.zeros_like(left), torch.zeros_like(right)
    for sign, at in zip((1.0, -1.0), used, strict=True):
        column = at.clamp_min(0).unsqueeze(2).expand(-1, -1, left.shape[2])
        weight = sign * (at >= 0).to(left.dtype).unsqueeze(2)
        of_left += weight * right.gather(1, column)
        of_right.scatter_add_(1, column, weight * left)
    return [of_left, of_right]
