"""The solver in plain numpy and scipy: the compiled kernels' starts and steps, hundreds of times slower."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["linear_batch", "solve_batch"]

_STEPS = 30
_RELATIVE_GAIN = 1e-5
_ROUNDING = 1e-9


def _assign(gain: np.ndarray) -> np.ndarray:
    return linear_sum_assignment(gain, maximize=True)[1].astype(np.int64)


class _Graph:
    """One problem with its edges by node pair; row and column -1 of the padded edge table are zero."""

    def __init__(self, vertex: np.ndarray, source: np.ndarray, target: np.ndarray, edge: np.ndarray) -> None:
        self.vertex, self.source, self.nodes = vertex, source, len(vertex)
        self.edge = np.pad(edge, ((0, 1), (0, 1)))
        self.source_id = np.full((self.nodes, self.nodes), -1)
        self.source_id[source[:, 0], source[:, 1]] = np.arange(len(source))
        self.target_id = np.full((self.nodes, self.nodes), -1)
        self.target_id[target[:, 0], target[:, 1]] = np.arange(len(target))
        scale = max(np.abs(vertex).max(), np.abs(edge).max(initial=0.0))
        self.tolerance = _ROUNDING * scale
        spread = vertex.std()
        self.spread = (spread if spread > self.tolerance else scale) * (3.0 if self.nodes <= 32 else 1.25)

    def marginals(self, p: np.ndarray) -> tuple[np.ndarray, float]:
        """The marginal matrix of permutation p and F(p)."""
        marginal = self.vertex.copy()
        rows = np.arange(len(self.source))[:, None]
        head, tail = self.source[:, 0], self.source[:, 1]
        np.add.at(marginal, head, self.edge[rows, self.target_id[:, p[tail]].T])
        np.add.at(marginal, tail, self.edge[rows, self.target_id[p[head], :]])
        kept = np.arange(self.nodes)
        return marginal, 0.5 * float((marginal[kept, p] + self.vertex[kept, p]).sum())

    def swap_gains(self, p: np.ndarray, marginal: np.ndarray) -> np.ndarray:
        """(N, N) gain of exchanging the assignments of i and j."""
        moved = marginal[:, p]
        kept = np.diag(moved)
        both = self.target_id[np.ix_(p, p)]
        pair = self.edge[self.source_id, both] + self.edge[self.source_id, both.T]
        return moved + moved.T - kept[:, None] - kept[None, :] + pair + pair.T

    def bound(self) -> np.ndarray:
        """Vertex affinity plus the best each outgoing source edge can find at the target node."""
        best = np.zeros((len(self.source), self.nodes))
        for a in range(self.nodes):
            out = self.target_id[a][self.target_id[a] >= 0]
            best[:, a] = self.edge[: len(self.source), out].max(axis=1, initial=0.0)
        total = self.vertex.copy()
        np.add.at(total, self.source[:, 0], best)
        return total


def _frank_wolfe(graph: _Graph, p: np.ndarray) -> np.ndarray:
    plan = np.eye(graph.nodes)[p]
    gradient, value = graph.marginals(p)
    best, best_value = p, value
    for _ in range(_STEPS):
        q = _assign(gradient)
        slope = float(gradient[np.arange(graph.nodes), q].sum() - (gradient * plan).sum())
        if slope <= _RELATIVE_GAIN * abs(value):
            break
        marginal, reached = graph.marginals(q)
        if reached > best_value:
            best, best_value = q, reached
        bend = reached - value - slope
        step = 1.0 if bend >= 0 else min(1.0, -slope / (2 * bend))
        plan = (1 - step) * plan + step * np.eye(graph.nodes)[q]
        gradient = gradient + step * (marginal - gradient)
        gained = step * slope + step * step * bend
        value += gained
        if gained < _RELATIVE_GAIN * abs(value):
            break
    rounded = _assign(plan)
    return rounded if graph.marginals(rounded)[1] > best_value else best


def _ascend(graph: _Graph, p: np.ndarray) -> tuple[np.ndarray, float]:
    """Frank-Wolfe from p, then the best exchange of two assignments until none gains."""
    p = _frank_wolfe(graph, p).copy()
    while True:
        marginal, value = graph.marginals(p)
        gains = graph.swap_gains(p, marginal)
        i, j = np.unravel_index(np.argmax(gains), gains.shape)
        if gains[i, j] <= graph.tolerance:
            return p, value
        p[i], p[j] = p[j], p[i]


def _start(graph: _Graph, s: int, noise: np.ndarray, pick: int, found: list[np.ndarray]) -> np.ndarray:
    if s == 0:
        return _assign(graph.vertex)
    if s == 1:
        return _assign(graph.bound())
    base = graph.marginals(found[pick % len(found)])[0] if found and (s % 2 == 1 or graph.nodes > 32) else graph.vertex
    return _assign(base + graph.spread * noise[s - 2])


def _solve_one(
    graph: _Graph, starts: int, noise: np.ndarray, picks: np.ndarray, patience: int, given: np.ndarray
) -> np.ndarray:
    found: list[np.ndarray] = []
    best, best_value, hits = np.arange(graph.nodes), -np.inf, 0
    for s in range(-len(given), starts):
        start = given[s + len(given)] if s < 0 else _start(graph, s, noise, int(picks[s]), found)
        p, value = _ascend(graph, start)
        if value > best_value + graph.tolerance:
            best, best_value, hits = p, value, 1
        elif value >= best_value - graph.tolerance:
            hits += 1
        if not any(np.array_equal(p, known) for known in found):
            found.append(p)
        if 0 < patience <= hits:
            break
    return best


def solve_batch(
    vertex: np.ndarray,
    source_edges: np.ndarray,
    target_edges: np.ndarray,
    edge: np.ndarray,
    owner: np.ndarray,
    starts: int,
    noise: np.ndarray,
    picks: np.ndarray,
    patience: int,
    given: np.ndarray,
    out: np.ndarray,
) -> None:
    """Solve a batch of problems of N >= 2 nodes into ``out`` (B, N); arguments as in `solver.solve_arrays`."""
    for b, t in enumerate(owner):
        graph = _Graph(vertex[b], source_edges[t], target_edges[t], edge[t])
        out[b] = _solve_one(graph, starts, noise, picks, patience, given[b])


def linear_batch(vertex: np.ndarray, out: np.ndarray) -> None:
    """Linear assignment of a batch of problems of N >= 2 nodes into ``out`` (B, N)."""
    for b in range(len(vertex)):
        out[b] = _assign(vertex[b])
