"""An independent, slow reading of the matching problem: the literal sum over all pairs of pairs, and enumeration."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch

from lvmmed_monai.graph_matching import GraphMatchingProblem


def quadratic_form(problem: GraphMatchingProblem, b: int) -> np.ndarray:
    """Q[i, a, j, c] of problem b: what matching i to a and j to c together gives."""
    n = problem.nodes
    quadratic = np.zeros((n, n, n, n))
    table = problem.edge_table()[b].double().numpy()
    for e, (i, j) in enumerate(problem.source_edges[b].tolist()):
        for f, (a, c) in enumerate(problem.target_edges[b].tolist()):
            quadratic[i, a, j, c] += table[e, f]
    return quadratic


def literal_objective(problem: GraphMatchingProblem, b: int, assignment: list[int]) -> float:
    """F by the sum over all i, a, j, c."""
    n, quadratic = problem.nodes, quadratic_form(problem, b)
    x = np.zeros((n, n))
    for i, a in enumerate(assignment):
        x[i, a] = 1.0
    total = float((problem.vertex_affinity[b].double().numpy() * x).sum())
    for i in range(n):
        for a in range(n):
            for j in range(n):
                for c in range(n):
                    total += quadratic[i, a, j, c] * x[i, a] * x[j, c]
    return total


def all_objectives(problem: GraphMatchingProblem, b: int) -> tuple[np.ndarray, np.ndarray]:
    """All permutations (N!, N) of problem b and their objectives (N!,)."""
    n = problem.nodes
    perms = np.array(list(permutations(range(n))))
    i = np.arange(n)
    vertex = problem.vertex_affinity[b].double().numpy()
    values = vertex[i, perms].sum(1)
    quadratic = quadratic_form(problem, b)
    values += quadratic[i[:, None], perms[:, :, None], i[None, :], perms[:, None, :]].sum((1, 2))
    return perms, values


def random_problem(
    seed: int, nodes: int, batch: int = 1, *, edges: tuple[int, int] | None = None, integers: bool = False
) -> GraphMatchingProblem:
    """Random directed edges without symmetry (counts E, F; None: every ordered pair), affinities of both signs."""
    rng = np.random.default_rng([seed, nodes])
    pairs = np.array([(i, j) for i in range(nodes) for j in range(nodes) if i != j]).reshape(-1, 2)
    counts = (len(pairs), len(pairs)) if edges is None else edges
    picked = [np.stack([rng.permutation(pairs)[:count] for _ in range(batch)]) for count in counts]

    def draw(*shape: int) -> torch.Tensor:
        values = rng.integers(-1, 2, shape) if integers else rng.normal(size=shape)
        return torch.tensor(values, dtype=torch.float64)

    lists = [torch.tensor(edges_, dtype=torch.int64).view(batch, -1, 2) for edges_ in picked]
    return GraphMatchingProblem(draw(batch, nodes, nodes), *lists, draw(batch, lists[0].shape[1], lists[1].shape[1]))
