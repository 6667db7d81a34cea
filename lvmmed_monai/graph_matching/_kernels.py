"""Compiled kernels of the matching solver: one graph pair at a time, without the interpreter lock.

All of it is one file: numba's cache notices changes of a function's file, not of files that it calls into.

The marginal M[i, a] at a permutation p is the vertex affinity plus the affinities between source edges at i and target
edges at a whose other ends p matches. It gives F(p) = 1/2 sum_i (M[i, p_i] + vertex[i, p_i]) and the gain of exchanging
two assignments in O(1). Inner loops take arrays, not tuples of them: the references are counted at every call.
"""

from __future__ import annotations

from collections import namedtuple
from functools import partial
from typing import Any

import numpy as np
from numba import njit

__all__ = ["linear_batch", "solve_batch"]

_POOL = 6
_STEPS = 30
_RELATIVE_GAIN = 1e-5
# Gains below this fraction of the affinities' size are rounding errors: accepting them would cycle on ties.
_ROUNDING = 1e-10


def _compile(function: Any, **options: Any) -> Any:
    """Compile with an on-disk cache; without one where no folder for it can be written."""
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:
        return njit(nogil=True, **options)(function)


# source, target: (edge number, node at the other end), the edges into node i from source_at[2i] on, those out of
# it from source_at[2i + 1] on. source_id, target_id: edge number by its two nodes, or -1.
Graph = namedtuple("Graph", "vertex edge source_id source source_at target_id target target_at")
Work = namedtuple("Work", "plan gradient marginal candidate duals distance column row free previous order vertex dirty")


@_compile
def _copy(values, into):  # type: ignore[no-untyped-def]
    """``into[:] = values``, which takes numba six seconds to compile."""
    for k in range(into.size):
        into.flat[k] = values.flat[k]


@partial(_compile, fastmath={"reassoc", "nsz", "contract"})
def _size(values):  # type: ignore[no-untyped-def]
    """Root of the sum of squares of a matrix; its last digits do not matter, so eight numbers at a time."""
    total, flat = 0.0, values.reshape(-1)
    for k in range(flat.size):
        total += flat[k] * flat[k]
    return total**0.5


@_compile
def _adjacency(edges, nodes):  # type: ignore[no-untyped-def]
    number = np.full((nodes, nodes), -1, np.int64)
    at = np.zeros(2 * nodes + 1, np.int64)
    for e in range(len(edges)):
        number[edges[e, 0], edges[e, 1]] = e
        at[2 * edges[e, 1] + 1] += 1
        at[2 * edges[e, 0] + 2] += 1
    at = np.cumsum(at)
    fill = at.copy()
    listed = np.empty((2 * len(edges), 2), np.int64)
    for e in range(len(edges)):
        for end in range(2):
            slot = 2 * edges[e, 1 - end] + end
            listed[fill[slot], 0] = e
            listed[fill[slot], 1] = edges[e, end]
            fill[slot] += 1
    return number, listed, at


@_compile
def _graph(vertex, source_edges, target_edges, edge):  # type: ignore[no-untyped-def]
    source_id, source, source_at = _adjacency(source_edges, len(vertex))
    target_id, target, target_at = _adjacency(target_edges, len(vertex))
    return Graph(vertex, edge, source_id, source, source_at, target_id, target, target_at)


@_compile
def _work(n):  # type: ignore[no-untyped-def]
    t, d, k = np.empty((4, n, n)), np.zeros((2, n)), np.empty((6, n), np.int64)
    return Work(t[0], t[1], t[2], t[3], d[0], d[1], k[0], k[1], k[2], k[3], k[4], k[5], np.empty(n, np.bool_))


@_compile
def _row_reduction(gain, duals, column, row, free, waiting):  # type: ignore[no-untyped-def]
    """One augmenting row reduction (Jonker and Volgenant 1987); returns how many rows stay free."""
    nodes = len(gain)
    k, still, turns = 0, 0, 0
    while k < waiting:
        i = free[k]
        k += 1
        best, second, j1, j2 = np.inf, np.inf, -1, -1
        for j in range(nodes):
            reduced = -gain[i, j] - duals[j]
            if reduced < second:
                if reduced < best:
                    second, j2, best, j1 = best, j1, reduced, j
                else:
                    second, j2 = reduced, j
        lowered = duals[j1] - (second - best)
        lowers = lowered < duals[j1]
        if lowers:
            duals[j1] = lowered
        elif row[j1] >= 0:
            j1 = j2
        displaced = row[j1]
        column[i] = j1
        row[j1] = i
        if displaced >= 0:
            column[displaced] = -1
            turns += 1
            # Rounding can make two rows outbid each other for ever; the exact phase takes over then.
            if lowers and turns < 4 * nodes:
                k -= 1
                free[k] = displaced
            else:
                free[still] = displaced
                still += 1
    return still


@_compile
def _shortest_path(gain, duals, column, row, start, distance, previous, order):  # type: ignore[no-untyped-def]
    """Assign the free row ``start`` by a shortest augmenting path and update the duals."""
    nodes = len(gain)
    for j in range(nodes):
        distance[j] = np.inf
        order[j] = j
    # order[:left]: columns not yet reached; the reached ones collect behind them.
    i, own, smallest, left, end = start, 0.0, 0.0, nodes, -1
    while end < 0:
        nearest, lowest = 0, np.inf
        for k in range(left):
            j = order[k]
            length = smallest - gain[i, j] - duals[j] - own
            if length < distance[j]:
                distance[j] = length
                previous[j] = i
            if distance[j] < lowest or (distance[j] == lowest and row[j] < 0):
                nearest, lowest = k, distance[j]
        smallest, j, left = lowest, order[nearest], left - 1
        order[nearest], order[left] = order[left], j
        if row[j] < 0:
            end = j
        else:
            i = row[j]
            own = -gain[i, j] - duals[j]
    for k in range(left, nodes):
        duals[order[k]] += distance[order[k]] - smallest
    i = -1
    while i != start:
        i = previous[end]
        row[end] = i
        end, column[i] = column[i], end


@_compile
def _assign(gain, work):  # type: ignore[no-untyped-def]
    """Linear assignment of the largest total gain into ``work.column``; starts from the duals of the last call."""
    waiting = len(gain)
    work.column.fill(-1)
    work.row.fill(-1)
    for i in range(waiting):
        work.free[i] = i
    for _ in range(2):
        waiting = _row_reduction(gain, work.duals, work.column, work.row, work.free, waiting)
    for k in range(waiting):
        _shortest_path(gain, work.duals, work.column, work.row, work.free[k], work.distance, work.previous, work.order)


@_compile
def _marginals(g, p, marginal):  # type: ignore[no-untyped-def]
    """Fill the marginal matrix of permutation p; returns F(p)."""
    vertex, edge = g.vertex, g.edge
    source, source_at, target, target_at = g.source, g.source_at, g.target, g.target_at
    _copy(vertex, marginal)
    for i in range(len(p)):
        for end in range(2):
            for q in range(source_at[2 * i + end], source_at[2 * i + end + 1]):
                e, j = source[q, 0], source[q, 1]
                for r in range(target_at[2 * p[i] + end], target_at[2 * p[i] + end + 1]):
                    marginal[j, target[r, 1]] += edge[e, target[r, 0]]
    return _value(vertex, marginal, p)


@_compile
def _value(vertex, marginal, p):  # type: ignore[no-untyped-def]
    """F(p) from its marginal matrix."""
    value = 0.0
    for i in range(len(p)):
        value += 0.5 * (marginal[i, p[i]] + vertex[i, p[i]])
    return value


@_compile
def _best_partner(source_id, target_id, edge, marginal, p, i):  # type: ignore[no-untyped-def]
    """The exchange of i with another node that gains most; the gain is 0 where none does."""
    best, partner, a = 0.0, -1, p[i]
    for j in range(len(p)):
        b = p[j]
        gain = marginal[i, b] + marginal[j, a] - marginal[i, a] - marginal[j, b]
        # Both marginals hold the edges between i and j, which are lost only once: they are added back.
        for e in (source_id[i, j], source_id[j, i]):
            if e >= 0:
                for f in (target_id[a, b], target_id[b, a]):
                    if f >= 0:
                        gain += edge[e, f]
        if gain > best:
            best, partner = gain, j
    return best, partner


@_compile
def _swap_descent(g, p, work, tolerance):  # type: ignore[no-untyped-def]
    """Exchange pairs of assignments until none gains; ``work.marginal`` must be that of p."""
    edge, source_id, target_id = g.edge, g.source_id, g.target_id
    source, source_at, target, target_at = g.source, g.source_at, g.target, g.target_at
    marginal, dirty = work.marginal, work.dirty
    dirty.fill(True)
    moved = True
    while moved:
        moved = False
        for i in range(len(p)):
            if not dirty[i]:
                continue
            dirty[i] = False
            gain, j = _best_partner(source_id, target_id, edge, marginal, p, i)
            if gain <= tolerance:
                continue
            moved = True
            a, b = p[i], p[j]
            for node, old, new in ((i, a, b), (j, b, a)):
                p[node], dirty[node] = new, True
                for end in range(2):
                    for q in range(source_at[2 * node + end], source_at[2 * node + end + 1]):
                        e, other = source[q, 0], source[q, 1]
                        dirty[other] = True
                        for r in range(target_at[2 * old + end], target_at[2 * old + end + 1]):
                            marginal[other, target[r, 1]] -= edge[e, target[r, 0]]
                        for r in range(target_at[2 * new + end], target_at[2 * new + end + 1]):
                            marginal[other, target[r, 1]] += edge[e, target[r, 0]]


@_compile
def _line_search(plan, gradient, marginal, q, slope, bend):  # type: ignore[no-untyped-def]
    """Go from the plan towards permutation q as far as the objective grows; returns the step and the gain."""
    step = 1.0 if bend >= 0.0 else min(1.0, -slope / (2.0 * bend))
    for i in range(len(q)):
        for a in range(len(q)):
            plan[i, a] *= 1.0 - step
            gradient[i, a] += step * (marginal[i, a] - gradient[i, a])
        plan[i, q[i]] += step
    return step, step * slope + step * step * bend


@_compile
def _frank_wolfe(g, p, work):  # type: ignore[no-untyped-def]
    """Frank-Wolfe from p, which becomes the best vertex met; returns whether ``work.marginal`` is that of p."""
    q, nodes = work.vertex, len(p)
    work.plan.fill(0.0)
    for i in range(nodes):
        work.plan[i, p[i]] = 1.0
    value = _marginals(g, p, work.gradient)
    best, step, known = value, 1.0, False
    for _ in range(_STEPS):
        _assign(work.gradient, work)
        _copy(work.column, q)
        slope = 0.0
        for i in range(nodes):
            slope += work.gradient[i, q[i]]
            for a in range(nodes):
                slope -= work.gradient[i, a] * work.plan[i, a]
        if slope <= _RELATIVE_GAIN * abs(value):
            break
        reached = _marginals(g, q, work.marginal)
        known = reached > best
        if known:
            best = reached
            _copy(q, p)
        step, gained = _line_search(work.plan, work.gradient, work.marginal, q, slope, reached - value - slope)
        value += gained
        if gained < _RELATIVE_GAIN * abs(value):
            break
    if step < 1.0:
        work.duals.fill(0.0)
        _assign(work.plan, work)
        _copy(work.column, q)
        known = _marginals(g, q, work.marginal) > best
        if known:
            _copy(q, p)
    return known


@_compile
def _ascend(g, p, work, tolerance):  # type: ignore[no-untyped-def]
    """Best solution reached from permutation p, in place; returns its value."""
    work.duals.fill(0.0)
    if not _frank_wolfe(g, p, work):
        _marginals(g, p, work.marginal)
    _swap_descent(g, p, work, tolerance)
    return _value(g.vertex, work.marginal, p)


@_compile
def _bound(g, out):  # type: ignore[no-untyped-def]
    """Upper bound of what each pair (i, a) can bring: its vertex affinity and the best of each outgoing edge."""
    for i in range(len(out)):
        for a in range(len(out)):
            out[i, a] = g.vertex[i, a]
            for q in range(g.source_at[2 * i + 1], g.source_at[2 * i + 2]):
                best = 0.0
                for r in range(g.target_at[2 * a + 1], g.target_at[2 * a + 2]):
                    best = max(best, g.edge[g.source[q, 0], g.target[r, 0]])
                out[i, a] += best


@_compile
def _start(g, s, noise, picks, spread, pool, pooled, work):  # type: ignore[no-untyped-def]
    """Put start number s into ``work.column``: linear assignment of the vertices, of the bound, of noised gains."""
    work.duals.fill(0.0)
    if s == 1:
        _bound(g, work.candidate)
    elif s > 1 and (s % 2 == 1 or len(g.vertex) > 32):
        _marginals(g, pool[picks[s] % pooled], work.candidate)
    else:
        _copy(g.vertex, work.candidate)
    if s > 1:
        for k in range(g.vertex.size):
            work.candidate.flat[k] += spread * noise[s - 2].flat[k]
    _assign(work.candidate, work)


@_compile
def _remember(pool, values, pooled, p, value):  # type: ignore[no-untyped-def]
    """Keep p among the best distinct solutions; returns how many are kept."""
    worst = 0
    for k in range(pooled):
        if (pool[k] == p).all():
            return pooled
        if values[k] < values[worst]:
            worst = k
    if pooled < _POOL:
        worst, pooled = pooled, pooled + 1
    elif value <= values[worst]:
        return pooled
    _copy(p, pool[worst])
    values[worst] = value
    return pooled


@_compile
def _solve_one(g, starts, noise, picks, patience, given, out, work):  # type: ignore[no-untyped-def]
    nodes, scale = len(out), _size(g.vertex) + _size(g.edge)
    tolerance, spread = _ROUNDING * scale, np.std(g.vertex)
    spread = (spread if spread > tolerance else scale) * (3.0 if nodes <= 32 else 1.25)
    # A plain 0 would be a type of its own, and its callees compiled twice.
    pool, values, pooled = np.empty((_POOL, nodes), np.int64), np.empty(_POOL), np.int64(0)
    p = np.empty(nodes, np.int64)
    best, hits, first = -np.inf, 0, len(given)
    for s in range(-first, starts):
        if s < 0:
            _copy(given[s + first], p)
        else:
            _start(g, s, noise, picks, spread, pool, pooled, work)
            _copy(work.column, p)
        value = _ascend(g, p, work, tolerance)
        if value > best + tolerance:
            best, hits = value, 1
            _copy(p, out)
        elif value >= best - tolerance:
            hits += 1
        pooled = _remember(pool, values, pooled, p, value)
        if 0 < patience <= hits:
            return


@_compile
def solve_batch(vertex, source_edges, target_edges, edge, owner, starts, noise, picks, patience, given, out):  # type: ignore[no-untyped-def]
    """Solve a batch of problems of N >= 2 nodes into ``out`` (B, N); arguments as in `solver.solve_arrays`."""
    work = _work(vertex.shape[1])
    for b in range(len(vertex)):
        g = _graph(vertex[b], source_edges[owner[b]], target_edges[owner[b]], edge[owner[b]])
        _solve_one(g, starts, noise, picks, patience, given[b], out[b], work)


@_compile
def linear_batch(vertex, out):  # type: ignore[no-untyped-def]
    """Linear assignment of a batch of problems of N >= 2 nodes into ``out`` (B, N)."""
    work = _work(vertex.shape[1])
    for b in range(len(vertex)):
        work.duals.fill(0.0)
        _assign(vertex[b], work)
        _copy(work.column, out[b])
