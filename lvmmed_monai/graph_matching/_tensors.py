"""The matching solver as batched tensor operations: no Python loop over graphs, on any device of torch.

The starts of a problem do not depend on each other here, so all problems and starts are rows of one batch. Rows that
are finished leave the working tensors, which saves more than anything else (most rows need few steps). Linear
assignments are auctions (Bertsekas 1988), all free rows bidding at once.

Sums run over padded lists in a fixed order, never by scattering, so a result does not depend on the place in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["linear_batch", "solve_batch"]

_STEPS = 30
_RELATIVE_GAIN = 1e-5
# Gains below this fraction of the largest affinity are rounding errors of the number format.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9}
# Steps of bids as fractions of the affinities' spread: for starts and roundings; for the oracle of Frank-Wolfe, whose
# vertices need not be optimal.
_FINE, _LOOSE = (0.1, 0.01, 0.001), 0.3
_ROUND = 8  # starts solved together; between rounds problems may leave
_CELLS = 2**24  # numbers of a working table
_CROWDED = 0.7  # rows leave the working tensors when no larger share of them goes on


def solve_batch(
    vertex: Tensor,
    source_edges: Tensor,
    target_edges: Tensor,
    edge: Tensor,
    starts: int,
    noise: Tensor,
    patience: int,
    given: Tensor,
) -> Tensor:
    """Best assignments found, (B, N) int64.

    Args:
        vertex: (B, N, N), N >= 2; edge: (B, E, F) of the same floating point type.
        source_edges, target_edges: (B, E, 2) and (B, F, 2) int64.
        starts: number of starts.
        noise: (starts - 2, N, N) noise of starts 2, 3, ...
        patience: leave a problem, after a round of starts, when this many have met its best value; 0 never does.
        given: (B, S, N) further starts.
    """
    problems = _Problems.build(vertex, source_edges, target_edges, edge)
    best = _Best.empty(problems)
    if given.shape[1]:
        best.update(_improve(problems, given))
    for first in range(0, starts, _ROUND):
        open_ = best.open(patience)
        if len(open_) == 0:
            break
        part = problems.select(open_)
        best.update(_improve(part, _starts(part, first, min(first + _ROUND, starts), noise)), open_)
    return best.assignment


def linear_batch(vertex: Tensor) -> Tensor:
    """Linear assignment of the largest total gain, (B, N) int64, up to a thousandth of the gains' spread per node."""
    return _assign(vertex, _FINE)


# -- problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problems:
    """R rows, each a problem.

    ``edge`` (R, N * D, F + 1): affinities of the edges out of each source node, padded by rows of zeros to D a node
    and by a column of zeros, which missing target edges point to. ``out_node`` (R, N, D): where the edges lead; padding
    leads to nodes that are no neighbours. ``into`` (R, N, N * D) is 1 where an edge leads to a node. ``target_id``
    (R, N, N): target edge by its nodes.
    """

    vertex: Tensor
    edge: Tensor
    out_node: Tensor
    into: Tensor
    target_id: Tensor
    tolerance: Tensor
    spread: Tensor

    @staticmethod
    def build(vertex: Tensor, source_edges: Tensor, target_edges: Tensor, edge: Tensor) -> _Problems:
        nodes = vertex.shape[1]
        out_edge, out_node = _neighbours(_by_nodes(source_edges, nodes), edge.shape[1])
        padded = functional.pad(edge, (0, 1, 0, 1))
        rows = out_edge.flatten(1).unsqueeze(2).expand(-1, -1, padded.shape[2])
        into = functional.one_hot(out_node.flatten(1), nodes).transpose(1, 2).to(vertex.dtype)
        scale = vertex.abs().amax((1, 2))
        if edge.numel():
            scale = torch.maximum(scale, edge.abs().amax((1, 2)))
        tolerance = _ROUNDING.get(vertex.dtype, 1e-5) * scale
        spread = _spread(vertex)
        spread = torch.where(spread > tolerance, spread, scale)
        target_id = _by_nodes(target_edges, nodes)
        return _Problems(vertex, padded.gather(1, rows), out_node, into, target_id, tolerance, spread)

    def select(self, rows: Tensor) -> _Problems:
        """The given rows."""
        return _Problems(*(getattr(self, field.name)[rows] for field in fields(self)))

    def marginals(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """(R, N, N) marginals of assignments p (R, N), and their values (R,)."""
        rows, nodes, degree = self.out_node.shape
        # Edge (i, j) speaks for i going to a where j is gone, and for j going to b where i is gone.
        head = p.gather(1, self.out_node.flatten(1)).unsqueeze(2).expand(-1, -1, nodes)
        for_tail = self.edge.gather(2, self.target_id.transpose(1, 2).gather(1, head))
        from_tail = self._at(p).unsqueeze(2).expand(-1, -1, degree, -1).reshape(rows, nodes * degree, nodes)
        for_head = self.edge.gather(2, from_tail)
        total = self.vertex + for_tail.view(rows, nodes, degree, nodes).sum(2) + self.into @ for_head
        at = p.unsqueeze(2)
        return total, 0.5 * (total.gather(2, at) + self.vertex.gather(2, at)).sum((1, 2))

    def _at(self, p: Tensor) -> Tensor:
        """(R, N, N): target edges out of where each node is gone."""
        return self.target_id.gather(1, p.unsqueeze(2).expand(-1, -1, p.shape[1]))

    def swap_gains(self, p: Tensor, marginal: Tensor) -> Tensor:
        """(R, N, N): what exchanging the assignments of two nodes brings."""
        moved = marginal.gather(2, p.unsqueeze(1).expand_as(marginal))
        kept = moved.diagonal(dim1=1, dim2=2)
        image = self._at(p).gather(2, p.unsqueeze(1).expand_as(marginal))
        # Both marginals hold the edges between two nodes, which are lost only once; and these change places.
        ends = torch.stack([image.gather(2, self.out_node), image.transpose(1, 2).gather(2, self.out_node)], dim=3)
        pair = self.edge.gather(2, ends.flatten(1, 2)).sum(2).view_as(self.out_node)
        both = moved + torch.zeros_like(moved).scatter_(2, self.out_node, pair)
        return both + both.transpose(1, 2) - kept.unsqueeze(2) - kept.unsqueeze(1)

    def bound(self) -> Tensor:
        """(R, N, N): vertex affinity plus the best that each outgoing edge could find at the target node."""
        rows, nodes, degree = self.out_node.shape
        slots, _ = _neighbours(self.target_id, self.edge.shape[2] - 1)
        found = self.edge.gather(2, slots.flatten(1).unsqueeze(1).expand(-1, nodes * degree, -1))
        best = found.view(rows, nodes, degree, nodes, -1).amax(4).clamp_min(0.0)
        return self.vertex + best.sum(2)


def _by_nodes(edges: Tensor, nodes: int) -> Tensor:
    """(B, N, N): edge number by its two nodes; the number of edges where there is none."""
    number = torch.full((len(edges), nodes * nodes), edges.shape[1], device=edges.device)
    numbers = torch.arange(edges.shape[1], device=edges.device).expand(len(edges), -1)
    return number.scatter_(1, edges[..., 0] * nodes + edges[..., 1], numbers).view(-1, nodes, nodes)


def _neighbours(number: Tensor, missing: int) -> tuple[Tensor, Tensor]:
    """Edges of each row of an edge table by nodes, and where they lead: (B, N, D), padded to the largest degree."""
    present = number < missing
    degree = max(1, int(present.sum(2).max()))
    # Present ones first, in the order of their nodes.
    node = (~present).to(torch.int8).sort(dim=2, stable=True).indices[:, :, :degree]
    return number.gather(2, node), node


# -- search -----------------------------------------------------------------------------------------------------------


@dataclass
class _Best:
    """The best assignment of each problem so far, its value, and how many starts have met it."""

    assignment: Tensor
    value: Tensor
    hits: Tensor
    tolerance: Tensor

    @staticmethod
    def empty(problems: _Problems) -> _Best:
        batch, nodes = problems.vertex.shape[:2]
        device = problems.vertex.device
        value = torch.full((batch,), -torch.inf, dtype=problems.vertex.dtype, device=device)
        hits = torch.zeros(batch, dtype=torch.int64, device=device)
        return _Best(torch.arange(nodes, device=device).repeat(batch, 1), value, hits, problems.tolerance)

    def open(self, patience: int) -> Tensor:
        """Numbers of the problems that have not had enough."""
        return torch.nonzero((self.hits < patience) | (patience == 0)).squeeze(1)

    def update(self, found: tuple[Tensor, Tensor], rows: Tensor | None = None) -> None:
        """Take in solutions (R, S, N) and values (R, S) of the given problems."""
        assignment, value = found
        rows = torch.arange(len(self.value), device=self.value.device) if rows is None else rows
        top, which = value.max(dim=1)
        better = top > self.value[rows] + self.tolerance[rows]
        met = (value >= (torch.maximum(top, self.value[rows]) - self.tolerance[rows]).unsqueeze(1)).sum(1)
        self.hits[rows] = torch.where(better, met, self.hits[rows] + met)
        chosen = assignment.gather(1, which.view(-1, 1, 1).expand(-1, 1, assignment.shape[2])).squeeze(1)
        self.assignment[rows] = torch.where(better.unsqueeze(1), chosen, self.assignment[rows])
        self.value[rows] = torch.where(better, top, self.value[rows])


def _starts(problems: _Problems, first: int, last: int, noise: Tensor) -> Tensor:
    """(R, S, N) starts ``first`` to ``last``: assignments of the vertices, of the bound, of either with noise."""
    nodes = problems.vertex.shape[1]
    bases = (problems.vertex, problems.bound() if last > 1 else problems.vertex)
    spread = (3.0 if nodes <= 32 else 1.25) * problems.spread.view(-1, 1, 1)
    gains = [bases[s % 2] + (spread * noise[s - 2] if s > 1 else 0.0) for s in range(first, last)]
    stacked = torch.stack(gains, dim=1)
    return _in_chunks(lambda part: _assign(part, _FINE), stacked.flatten(0, 1)).view(*stacked.shape[:2], nodes)


def _in_chunks(work, rows: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    size = max(1, _CELLS // rows[0].numel())
    return torch.cat([work(part) for part in rows.split(size)])


def _improve(problems: _Problems, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Frank-Wolfe and exchanges from each start: solutions (R, S, N) and values (R, S)."""
    rows, count, nodes = starts.shape
    row = torch.arange(rows, device=starts.device).repeat_interleave(count)
    flat = starts.flatten(0, 1)
    size = max(1, _CELLS // problems.edge[0].numel())
    found = [_ascend(problems.select(r), p) for r, p in zip(row.split(size), flat.split(size), strict=True)]
    solutions, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    return solutions.view(rows, count, nodes), values.view(rows, count)


def _ascend(problems: _Problems, p: Tensor) -> tuple[Tensor, Tensor]:
    return _swap_descent(problems, _frank_wolfe(problems, p))


def _frank_wolfe(problems: _Problems, p: Tensor) -> Tensor:
    """The best vertex met by Frank-Wolfe with exact line search from p, p and the rounded end included."""
    best, plan = p.clone(), _matrix(p, problems.vertex.dtype)
    gradient, value = problems.marginals(p)
    best_value, final, whole = value.clone(), plan.clone(), torch.ones_like(value, dtype=torch.bool)
    price, raises = torch.zeros_like(gradient[:, 0]), _LOOSE * _spread(gradient)
    here, row = problems, torch.arange(len(p), device=p.device)
    going = torch.ones_like(whole)
    for _ in range(_STEPS):
        q, price = _auction(gradient, price, raises)
        slope = gradient.gather(2, q.unsqueeze(2)).sum((1, 2)) - (gradient * plan).sum((1, 2))
        going &= slope > 0
        marginal, reached = here.marginals(q)
        better = going & (reached > best_value[row])
        best[row[better]], best_value[row[better]] = q[better], reached[better]
        bend = reached - value - slope
        step = torch.where(bend >= 0, 1.0, (-slope / (2 * bend.clamp_max(-1e-30))).clamp(0.0, 1.0))
        step = torch.where(going, step, 0.0)
        t = step.view(-1, 1, 1)
        plan = plan + t * (_matrix(q, plan.dtype) - plan)
        gradient = gradient + t * (marginal - gradient)
        gained = step * slope + step * step * bend
        value = value + gained
        whole[row] &= ~going | (step == 1)
        going &= gained >= _RELATIVE_GAIN * value.abs()
        if int(going.sum()) <= _CROWDED * len(row):
            final[row] = plan
            kept = torch.nonzero(going).squeeze(1)
            if len(kept) == 0:
                return _rounded(problems, final, whole, best, best_value)
            here, row, going = here.select(kept), row[kept], going[kept]
            plan, gradient, value, price, raises = (x[kept] for x in (plan, gradient, value, price, raises))
    final[row] = plan
    return _rounded(problems, final, whole, best, best_value)


def _rounded(problems: _Problems, plan: Tensor, whole: Tensor, best: Tensor, best_value: Tensor) -> Tensor:
    rows = torch.nonzero(~whole).squeeze(1)
    if len(rows):
        q = _assign(plan[rows], (_LOOSE,))
        better = problems.select(rows).marginals(q)[1] > best_value[rows]
        best[rows[better]] = q[better]
    return best


def _swap_descent(problems: _Problems, p: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange the pair that gains most until none gains; returns assignments and values."""
    result, values = p.clone(), torch.zeros(len(p), dtype=problems.vertex.dtype, device=p.device)
    alive, here = torch.arange(len(p), device=p.device), problems
    nodes = p.shape[1]
    while len(alive):
        marginal, value = here.marginals(p)
        gain, pair = here.swap_gains(p, marginal).flatten(1).max(dim=1)
        moving = gain > here.tolerance
        stopped = ~moving
        result[alive[stopped]], values[alive[stopped]] = p[stopped], value[stopped]
        rows = torch.nonzero(moving).squeeze(1)
        if len(rows) < len(alive):
            alive, here, p, pair = alive[rows], here.select(rows), p[rows], pair[rows]
        ends = torch.stack([pair // nodes, pair % nodes], dim=1)
        p = p.scatter(1, ends, p.gather(1, ends.flip(1)))
    return result, values


def _matrix(p: Tensor, dtype: torch.dtype) -> Tensor:
    return functional.one_hot(p, p.shape[1]).to(dtype)


# -- linear assignment ------------------------------------------------------------------------------------------------


def _assign(gain: Tensor, steps: tuple[float, ...]) -> Tensor:
    """Assignments (R, N) of nearly the largest total gain (R, N, N), N >= 2.

    Args:
        steps: least raises of a bid, one auction for each, as fractions of the gains' spread.
    """
    spread = _spread(gain)
    item, price = _auction(gain, torch.zeros_like(gain[:, 0]), steps[0] * spread)
    for step in steps[1:]:
        item, price = _auction(gain, price, step * spread)
    return item


def _spread(gain: Tensor) -> Tensor:
    return gain.flatten(1).std(dim=1, unbiased=False)


def _auction(gain: Tensor, price: Tensor, raise_: Tensor) -> tuple[Tensor, Tensor]:
    """Assignments (R, N), and the prices (R, N) from which an auction of similar gains is soon done.

    Args:
        gain: (R, N, N).
        price: (R, N) to begin with.
        raise_: (R,) least raise of a bid: the total is at most N times that below the largest.
    """
    rows, nodes = gain.shape[:2]
    owner = torch.full((rows, nodes), nodes, device=gain.device)
    final_owner, final_price = owner.clone(), price.clone()
    alive = torch.arange(rows, device=gain.device)
    objects = torch.arange(nodes, device=gain.device)
    free = torch.ones(rows, nodes, dtype=torch.bool, device=gain.device)
    for turn in range(20 * nodes):
        left = gain - price.unsqueeze(1)
        best, wanted = left.max(dim=2)
        at = wanted.unsqueeze(2)
        second = left.scatter_(2, at, -torch.inf).amax(2)
        bid = price.gather(1, wanted) + (best - second) + raise_.unsqueeze(1)
        bid = torch.where(free, bid, -torch.inf)
        table = torch.full_like(gain, -torch.inf).scatter_(2, at, bid.unsqueeze(2))
        highest, winner = table.max(dim=1)
        sold = highest > -torch.inf
        price, owner = torch.where(sold, highest, price), torch.where(sold, winner, owner)
        free = _without(owner, nodes)
        if turn % 4 == 3 or nodes > 64:
            open_ = free.any(1)
            if not bool(open_.all()):
                final_owner[alive], final_price[alive] = owner, price
                keep = torch.nonzero(open_).squeeze(1)
                if len(keep) == 0:
                    alive = alive[keep]
                    break
                alive, owner, price, free = alive[keep], owner[keep], price[keep], free[keep]
                gain, raise_ = gain[keep], raise_[keep]
    if len(alive):
        final_owner[alive], final_price[alive] = owner, price
    item = torch.full((rows, nodes + 1), nodes, device=final_owner.device)
    item.scatter_(1, final_owner, objects.expand(rows, -1))
    return _completed(item[:, :nodes], final_owner), final_price


def _without(owner: Tensor, nodes: int) -> Tensor:
    """(R, N): whether a node owns no object."""
    free = torch.ones(len(owner), nodes + 1, dtype=torch.bool, device=owner.device)
    return free.scatter_(1, owner, False)[:, :nodes]


def _completed(item: Tensor, owner: Tensor) -> Tensor:
    """Give nodes without an object the objects without an owner, in order: ties of constant gains never end."""
    nodes = item.shape[1]
    missing = item == nodes
    if not bool(missing.any()):
        return item
    left = (owner != nodes).to(torch.int8).sort(dim=1, stable=True).indices
    rank = (missing.cumsum(1) - 1).clamp_min(0)
    return torch.where(missing, left.gather(1, rank), item)
