"""The differentiable matching layer: perturb-and-MAP with implicit maximum likelihood gradients (LVM-Med, Eq. 6).

Forward: v = MAP(theta + eps - margin on the true pairs), with Gumbel noise eps on vertex and edge affinities.
Backward, for an incoming gradient g: d = g / max|g| within each graph, v' = MAP(the same noised theta - lam d), and

    d loss / d vertex = max|g| / lam (v - v'),     d loss / d edge = max|g| / lam (w - w')

with w the edge pairs that an assignment uses. The division by max|g|, which the published form lacks, makes the
gradient of degree 1 in g: loss weights and gradient scaling act as they do elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching.problem import GraphMatchingProblem
from lvmmed_monai.graph_matching.solver import problem_arrays, solve_arrays

__all__ = ["match"]

_Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class _Solver:
    """How both solves of a layer are done; called on (vertex, source edges, target edges, edge) arrays."""

    mode: str
    backend: str
    seed: int
    patience: int

    def __call__(self, arrays: _Arrays, given: np.ndarray | None = None) -> np.ndarray:
        options: dict[str, Any] = {"mode": self.mode, "backend": self.backend, "seed": self.seed}
        return solve_arrays(*arrays, **options, patience=self.patience, given=given)


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
) -> Tensor:
    """Match and let gradients flow to the affinities.

    Args:
        problem: its ``vertex_affinity`` and ``edge_affinity`` may require gradients.
        target: (B, N) int64 true assignment; None is the identity. Used by ``margin`` and to recognise when the
            second solve of the backward pass is known without solving.
        noise_scale_vertex, noise_scale_edge: scales of the Gumbel noise, drawn from torch's global generator.
        margin: subtracted from the vertex affinity of true pairs, a structured hinge.
        lam: length of the step in the backward pass, > 0.
        samples: noise samples to average over.
        mode, backend, seed, patience: of `solve`. In mode "linear" edges play no part and get no gradient.

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
    gold = _gold(target, problem)
    linear = mode == "linear"
    table = problem.vertex_affinity.new_zeros(problem.batch_size, 0, 0) if linear else problem.edge_table()
    arrays = problem_arrays(problem, table)
    if linear:
        none = np.empty((problem.batch_size, 0, 2), np.int64)
        arrays = (arrays[0], none, none, arrays[3])
    solver = _Solver(mode, backend, seed, patience)
    noise = (noise_scale_vertex, noise_scale_edge)
    results = [
        _Matching.apply(problem.vertex_affinity, table, _perturbed(arrays, gold, noise, margin), gold, lam, solver)
        for _ in range(samples)
    ]
    return torch.stack(results).mean(dim=0) if samples > 1 else results[0]


def _gold(target: Tensor | None, problem: GraphMatchingProblem) -> np.ndarray:
    identity = np.arange(problem.nodes)
    if target is None:
        return np.tile(identity, (problem.batch_size, 1))
    gold = target.detach().cpu().numpy()
    if gold.shape != (problem.batch_size, problem.nodes) or (np.sort(gold, axis=1) != identity).any():
        raise UserError(
            f"target has shape {gold.shape} or holds no permutations; matching layer; "
            f"give {(problem.batch_size, problem.nodes)} true assignments"
        )
    return gold


def _perturbed(arrays: _Arrays, gold: np.ndarray, noise: tuple[float, float], margin: float) -> _Arrays:
    """Noise and margin added once: both solves see these very numbers."""
    vertex, source, target, edge = arrays
    vertex = vertex + _gumbel(vertex.shape, noise[0]) if noise[0] else vertex.copy()
    if noise[1] and edge.size:
        edge = edge + _gumbel(edge.shape, noise[1])
    if margin:
        vertex -= margin * _matrix(gold)
    return vertex, source, target, edge


def _gumbel(shape: tuple[int, ...], scale: float) -> np.ndarray:
    # Drawn on the CPU, whatever the device of the affinities, so that a seed means the same everywhere.
    return (-scale * torch.empty(shape, dtype=torch.float32).exponential_().clamp_min_(1e-30).log_()).double().numpy()


def _matrix(assignment: np.ndarray) -> np.ndarray:
    """(B, N) permutations to (B, N, N) matrices of 0 and 1."""
    return np.eye(assignment.shape[1])[assignment]


def _edge_pairs(assignment: np.ndarray, arrays: _Arrays) -> np.ndarray:
    """(B, E, F): 1 where source edge e, carried over by the assignment, is target edge f."""
    _, source, target, _ = arrays
    batch, nodes = assignment.shape
    graphs = np.arange(batch)[:, None]
    number = np.full((batch, nodes, nodes), -1)
    number[graphs, target[..., 0], target[..., 1]] = np.arange(target.shape[1])
    mapped = assignment[graphs[..., None], source]
    edge = number[graphs, mapped[..., 0], mapped[..., 1]]
    used = np.zeros((batch, source.shape[1], target.shape[1]))
    b, e = np.nonzero(edge >= 0)
    used[b, e, edge[b, e]] = 1.0
    return used


def _slack(arrays: _Arrays, gold: np.ndarray) -> np.ndarray:
    """(B,) bound on what any solution can gain over the true one, per node at which it differs.

    If a solution differs from the truth on the nodes D, only vertices in D and edges touching D change; so its
    objective exceeds the truth's by at most |D| times this number.
    """
    vertex, source, _, edge = arrays
    batch = len(gold)
    own = np.take_along_axis(vertex, gold[..., None], axis=2)[..., 0]
    slack = vertex.max(axis=2) - own
    if edge.size:
        gain = edge.max(axis=2).clip(min=0.0) - (edge * _edge_pairs(gold, arrays)).sum(axis=2)
        graphs = np.repeat(np.arange(batch), source.shape[1])
        for end in (0, 1):
            np.add.at(slack, (graphs, source[..., end].ravel()), gain.ravel())
    return slack.max(axis=1)


def _second_solve(
    arrays: _Arrays, first: np.ndarray, gold: np.ndarray, direction: np.ndarray, lam: float, solver: _Solver
) -> np.ndarray:
    """MAP(theta - lam direction); solves only the graphs for which it is not known to be the truth."""
    result = gold.copy()
    truth = _matrix(gold)
    hamming = np.abs(direction - (1.0 - 2.0 * truth)).max(axis=(1, 2)) < 1e-6
    # A Hamming gradient adds 2 lam per correct node: the truth stays optimal if it was, and becomes so by `_slack`.
    known = hamming & ((first == gold).all(axis=1) | (2.0 * lam > _slack(arrays, gold)))
    open_ = np.flatnonzero(~known)
    if len(open_):
        vertex, source, target, edge = (a[open_] for a in arrays)
        given = np.stack([first[open_], gold[open_]], axis=1)
        result[open_] = solver((vertex - lam * direction[open_], source, target, edge), given)
    return result


class _Matching(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vertex: Tensor, edge: Tensor, arrays: _Arrays, gold: np.ndarray, lam: float, solver: _Solver
    ) -> Tensor:
        first = solver(arrays)
        ctx.solved = (arrays, first, gold, lam, solver)
        ctx.types = (vertex.dtype, edge.dtype, vertex.device)
        return torch.from_numpy(_matrix(first)).to(vertex.device, vertex.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        arrays, first, gold, lam, solver = ctx.solved
        vertex_type, edge_type, device = ctx.types
        incoming = gradients[0].detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(incoming).all():
            # An overflowed loss scale: gradient scaling must see it and skip the step.
            bad = torch.full((), torch.nan, device=device)
            return bad.to(vertex_type).expand(arrays[0].shape), bad.to(edge_type).expand(arrays[3].shape), *[None] * 4
        size = np.abs(incoming).max(axis=(1, 2), keepdims=True)
        direction = incoming / np.where(size > 0, size, 1.0)
        second = _second_solve(arrays, first, gold, direction, lam, solver)
        second = np.where(size[:, 0] > 0, second, first)
        factor = size / lam
        vertex = torch.from_numpy(factor * (_matrix(first) - _matrix(second))).to(device, vertex_type)
        edge = None
        if ctx.needs_input_grad[1]:
            used = factor * (_edge_pairs(first, arrays) - _edge_pairs(second, arrays))
            edge = torch.from_numpy(used).to(device, edge_type)
        return vertex, edge, None, None, None, None
