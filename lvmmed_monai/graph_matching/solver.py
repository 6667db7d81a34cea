"""Solve graph matching problems: linear assignment, or multi-start Frank-Wolfe with exact line search and exchanges.

Each start is a linear assignment (of the vertex affinities, of an upper bound, then of noised marginals). From it
Frank-Wolfe walks over doubly stochastic matrices with a linear assignment as oracle (Leordeanu et al. 2009,
Vogelstein et al. 2015, here for the Lawler form), and exchanges of two assignments finish. The start lists of the
modes are nested and the best solution is kept, so a higher mode is never worse on the same problem and seed.

The noise of the starts depends on the seed only, not on the place in the batch, on the number of threads or on the
scale of the affinities: neither changes a result. All arithmetic is in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from itertools import pairwise
from types import ModuleType
from typing import Any, ParamSpec

import numpy as np
import torch
from torch import Tensor

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching.problem import GraphMatchingProblem

__all__ = [
    "BACKENDS",
    "MODES",
    "check_names",
    "on_tensors",
    "solve",
    "solve_arrays",
    "solve_tables",
    "solve_tensors",
    "solver_seconds",
]

#: Number of starts of each mode; 0 is the linear assignment of the vertex affinities, without edges.
MODES: dict[str, int] = {"linear": 0, "fast": 1, "default": 8, "thorough": 64}
BACKENDS = ("auto", "numba", "torch", "scipy")
# Below this many nodes per thread, starting the thread costs more than the work.
_NODES_PER_THREAD = 256
_SPENT = {"seconds": 0.0}

_P = ParamSpec("_P")


def solver_seconds() -> float:
    """Wall-clock seconds that this process has spent in solvers so far, forward and backward, copies included.

    On a GPU the host's time: what a solver only queues there is not waited for, and not in it.
    """
    return _SPENT["seconds"]


def solve(
    problem: GraphMatchingProblem,
    mode: str = "default",
    backend: str = "auto",
    seed: int = 0,
    *,
    patience: int = 0,
) -> Tensor:
    """Assignments of large objective, each a permutation.

    Args:
        problem: B problems of N nodes.
        mode: "linear", "fast" (1 start), "default" (8 starts, 12 for N > 64) or "thorough" (64, or 76).
        backend: "numba" (compiled, threads over problems), "torch" (batched tensors on the problem's device, in its
            floating point type), "scipy" (plain Python, slow), or "auto": torch for problems on a GPU, else numba
            where it is installed, else scipy.
        seed: of the noise of the starts.
        patience: leave a problem when this many starts have met its best value; 0 goes through all starts.

    Returns:
        (B, N) int64 on the problem's device; entry [b, i] is the target node of source node i.

    Raises:
        UserError: an unknown mode or backend.

    Among equally good assignments the choice follows the order of the nodes: where the truth is the identity,
    permute the target graph before solving, as `losses.GraphMatchingLoss` does.
    """
    check_names(mode, backend)
    vertex = problem.vertex_affinity.detach()
    with torch.no_grad():
        table = problem.edge_table().detach() if mode != "linear" else vertex.new_zeros(len(vertex), 0, 0)
    parts = vertex, problem.source_edges, problem.target_edges, table
    return solve_tables(*parts, mode=mode, backend=backend, seed=seed, patience=patience)


def _timed(solver: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    @wraps(solver)
    def timed(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        start = time.perf_counter()
        try:
            return solver(*args, **kwargs)
        finally:
            _SPENT["seconds"] += time.perf_counter() - start

    return timed


def on_tensors(vertex: Tensor, backend: str) -> bool:
    """Whether the torch backend solves problems with these vertex affinities."""
    return backend == "torch" or (backend == "auto" and vertex.is_cuda)


@_timed
def solve_tables(
    vertex: Tensor,
    source_edges: Tensor,
    target_edges: Tensor,
    edge: Tensor,
    *,
    mode: str = "default",
    backend: str = "auto",
    seed: int = 0,
    patience: int = 0,
    given: Tensor | None = None,
    owner: Tensor | None = None,
) -> Tensor:
    """`solve` on checked tensors without gradient: (B, N, N), (T, E, 2), (T, F, 2), (T, E, F).

    Args:
        owner: (B,) int64, which edges and edge affinities belong to each problem; None: T is B, each its own.
        given: (B, S, N) permutations to start from before the mode's own starts: the result is at least as good.
    """
    options: dict[str, Any] = {"mode": mode, "seed": seed, "patience": patience}
    if on_tensors(vertex, backend):
        if owner is not None and mode != "linear":
            source_edges, target_edges, edge = (part[owner] for part in (source_edges, target_edges, edge))
        return solve_tensors(vertex, source_edges, target_edges, edge, given=given, **options)
    found = solve_arrays(
        vertex.to("cpu", torch.float64).contiguous().numpy(),
        source_edges.cpu().contiguous().numpy(),
        target_edges.cpu().contiguous().numpy(),
        edge.to("cpu", torch.float64).contiguous().numpy(),
        backend=backend,
        given=None if given is None else given.cpu().contiguous().numpy(),
        owner=None if owner is None else owner.cpu().contiguous().numpy(),
        **options,
    )
    return torch.from_numpy(found).to(vertex.device)


def solve_arrays(
    vertex: np.ndarray,
    source_edges: np.ndarray,
    target_edges: np.ndarray,
    edge: np.ndarray,
    *,
    mode: str = "default",
    backend: str = "auto",
    seed: int = 0,
    patience: int = 0,
    given: np.ndarray | None = None,
    owner: np.ndarray | None = None,
) -> np.ndarray:
    """`solve_tables` by a backend for arrays, C-contiguous, of float64 and int64."""
    kernels = _backend(backend)
    batch, nodes = vertex.shape[:2]
    out = np.zeros((batch, nodes), np.int64)
    if nodes == 1:
        return out
    if mode == "linear":
        _in_threads(kernels.linear_batch, (vertex, out))
        return out
    starts = _starts_of(mode, nodes)
    noise, picks = _start_noise(starts, nodes, seed)
    if given is None:
        given = np.empty((batch, 0, nodes), np.int64)
    owner = np.arange(batch) if owner is None else owner

    def run(vertex: np.ndarray, owner: np.ndarray, *part: np.ndarray) -> None:
        kernels.solve_batch(vertex, source_edges, target_edges, edge, owner, starts, noise, picks, patience, *part)

    _in_threads(run, (vertex, owner, np.ascontiguousarray(given), out))
    return out


@torch.no_grad()
def solve_tensors(
    vertex: Tensor,
    source_edges: Tensor,
    target_edges: Tensor,
    edge: Tensor,
    *,
    mode: str = "default",
    seed: int = 0,
    patience: int = 0,
    given: Tensor | None = None,
) -> Tensor:
    """`solve_tables` by the torch backend."""
    from lvmmed_monai.graph_matching import _tensors

    batch, nodes = vertex.shape[:2]
    if nodes == 1:
        return torch.zeros(batch, 1, dtype=torch.int64, device=vertex.device)
    if mode == "linear":
        return _tensors.linear_batch(vertex)
    starts = _starts_of(mode, nodes)
    noise = torch.from_numpy(_start_noise(starts, nodes, seed)[0]).to(vertex)
    given = torch.empty(batch, 0, nodes, dtype=torch.int64, device=vertex.device) if given is None else given
    return _tensors.solve_batch(vertex, source_edges, target_edges, edge, starts, noise, patience, given)


def _starts_of(mode: str, nodes: int) -> int:
    """Number of starts; large graphs have more local optima."""
    return {"default": 12, "thorough": 76}.get(mode, MODES[mode]) if nodes > 64 else MODES[mode]


def check_names(mode: str, backend: str) -> None:
    """Raise a `UserError` for an unknown mode or backend."""
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}; graph matching; choose one of {', '.join(MODES)}")
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}; graph matching; choose one of {', '.join(BACKENDS)}")


def _backend(name: str) -> ModuleType:
    if name != "scipy":
        try:
            from lvmmed_monai.graph_matching import _kernels
        except ImportError:
            if name == "numba":
                raise UserError("numba is not installed; graph matching; install it or use backend='scipy'") from None
        else:
            return _kernels
    from lvmmed_monai.graph_matching import _plain

    return _plain


@lru_cache(maxsize=8)
def _start_noise(starts: int, nodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gumbel noise of starts 2, 3, ... and a number each to pick an earlier solution; a prefix of any longer list."""
    noise = np.random.default_rng([seed, nodes]).gumbel(size=(max(starts - 2, 0), nodes, nodes))
    picks = np.random.default_rng([seed, nodes, 1]).integers(0, 2**31, size=starts)
    return noise, picks


def _in_threads(run: Callable[..., None], arrays: Sequence[np.ndarray]) -> None:
    """Call ``run`` on slices of the batch, in as many threads as torch may use; the last array is written to.

    Plain threads, not numba's: its thread pools are not safe beside autograd's threads and forked data loaders.
    """
    batch, nodes = arrays[-1].shape
    threads = min(torch.get_num_threads(), batch, max(1, batch * nodes // _NODES_PER_THREAD))
    if threads == 1:
        run(*arrays)
        return
    cuts = np.linspace(0, batch, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        parts = [pool.submit(run, *(a[lo:hi] for a in arrays)) for lo, hi in pairwise(cuts)]
        for part in parts:
            part.result()
