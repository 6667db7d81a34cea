"""Solve graph matching problems: linear assignment, or multi-start Frank-Wolfe with exact line search and exchanges.

Each start is a linear assignment (of the vertex affinities, of an upper bound, then of noised marginals). From it
Frank-Wolfe walks over doubly stochastic matrices with a linear assignment as oracle (Leordeanu et al. 2009,
Vogelstein et al. 2015, here for the Lawler form), and exchanges of two assignments finish. The start lists of the
modes are nested and the best solution is kept, so a higher mode is never worse on the same problem and seed.

The noise of the starts depends on the seed only, not on the place in the batch, on the number of threads or on the
scale of the affinities: neither changes a result. All arithmetic is in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching.problem import GraphMatchingProblem

__all__ = ["BACKENDS", "MODES", "problem_arrays", "solve", "solve_arrays"]

#: Number of starts of each mode; 0 is the linear assignment of the vertex affinities, without edges.
MODES: dict[str, int] = {"linear": 0, "fast": 1, "default": 8, "thorough": 64}
BACKENDS = ("auto", "numba", "scipy")
# Below this many nodes per thread, starting the thread costs more than the work.
_NODES_PER_THREAD = 256


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
        mode: "linear", "fast" (1 start), "default" (8 starts) or "thorough" (64 starts).
        backend: "numba" (compiled), "scipy" (plain Python, slow) or "auto" (numba where it is installed).
        seed: of the noise of the starts.
        patience: leave a problem when this many starts have met its best value; 0 goes through all starts.

    Returns:
        (B, N) int64 on the problem's device; entry [b, i] is the target node of source node i.

    Raises:
        UserError: an unknown mode or backend.

    Among equally good assignments the choice follows the order of the nodes: where the truth is the identity,
    permute the target graph before solving, as `losses.GraphMatchingLoss` does.
    """
    table = problem.edge_table().detach() if mode != "linear" else problem.vertex_affinity.new_zeros(1)
    arrays = problem_arrays(problem, table)
    found = solve_arrays(*arrays, mode=mode, backend=backend, seed=seed, patience=patience)
    return torch.from_numpy(found).to(problem.vertex_affinity.device)


def problem_arrays(problem: GraphMatchingProblem, edge_table: Tensor) -> tuple[np.ndarray, ...]:
    """Vertex affinity, source edges, target edges and edge affinity as float64 and int64 arrays."""
    vertex = problem.vertex_affinity.detach().to("cpu", torch.float64).contiguous().numpy()
    source = problem.source_edges.cpu().contiguous().numpy()
    target = problem.target_edges.cpu().contiguous().numpy()
    return vertex, source, target, edge_table.detach().to("cpu", torch.float64).contiguous().numpy()


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
) -> np.ndarray:
    """`solve` on checked arrays: (B, N, N), (B, E, 2), (B, F, 2), (B, E, F), C-contiguous, float64 and int64.

    Args:
        given: (B, S, N) permutations to start from before the mode's own starts: the result is at least as good.
    """
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}; graph matching; choose one of {', '.join(MODES)}")
    kernels = _backend(backend)
    batch, nodes = vertex.shape[:2]
    out = np.zeros((batch, nodes), np.int64)
    if nodes == 1:
        return out
    if mode == "linear":
        _in_threads(kernels.linear_batch, (vertex, out))
        return out
    noise, picks = _start_noise(MODES[mode], nodes, seed)
    if given is None:
        given = np.empty((batch, 0, nodes), np.int64)

    def run(*part: np.ndarray) -> None:
        kernels.solve_batch(*part[:4], MODES[mode], noise, picks, patience, *part[4:])

    _in_threads(run, (vertex, source_edges, target_edges, edge, np.ascontiguousarray(given), out))
    return out


def _backend(name: str) -> ModuleType:
    if name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}; graph matching; choose one of {', '.join(BACKENDS)}")
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
