"""Graph matching solvers of other projects behind one interface, for comparison: those that are installed.

    pip install pygmtools pylibmgm

pygmtools (SM, RRWM, IPFP; numpy) takes one table of all pairs of pairs, pylibmgm (fusion moves) a model of costs.
Building either is not counted in the times. LPMP has no package; `lpmp` counts where it is built from source.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["other_solvers"]

#: Vertex affinity, source edges, target edges and edge affinity of one problem to a solver that is ready to be timed.
Prepare = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Callable[[], np.ndarray]]
# More than any affinity of the instances: an unmatched node is never worth its price.
_COMPLETE = 100.0
# Above, tables of N^4 numbers and models of as many costs take minutes to build.
_LARGEST = 64


def other_solvers(nodes: int) -> dict[str, Prepare]:
    """Solvers that are installed and can take problems of this size, by name."""
    found: dict[str, Prepare] = {}
    if nodes > _LARGEST:
        return found
    if importlib.util.find_spec("pygmtools"):
        for name in ("sm", "rrwm", "ipfp"):
            found[f"pygmtools {name}"] = _pygmtools(name)
    if importlib.util.find_spec("pylibmgm"):
        found["pylibmgm"] = _pylibmgm
    if importlib.util.find_spec("lpmp_gm"):
        found["lpmp"] = _lpmp
    return found


def _pygmtools(name: str) -> Prepare:
    def prepare(
        vertex: np.ndarray, source: np.ndarray, target: np.ndarray, edge: np.ndarray
    ) -> Callable[[], np.ndarray]:
        import pygmtools

        pygmtools.set_backend("numpy")
        nodes = len(vertex)
        # Row and column number of a pair (i, a) in the table: a N + i.
        table = np.zeros((nodes * nodes, nodes * nodes))
        np.fill_diagonal(table, vertex.T.ravel())
        first = target[None, :, 0] * nodes + source[:, None, 0]
        second = target[None, :, 1] * nodes + source[:, None, 1]
        # Its solvers expect a symmetric table; edges are directed.
        np.add.at(table, (first, second), edge / 2)
        np.add.at(table, (second, first), edge / 2)
        solver: Any = getattr(pygmtools, name)

        def run() -> np.ndarray:
            # Soft results are rounded by a linear assignment.
            return np.asarray(pygmtools.hungarian(solver(table, nodes, nodes))).argmax(axis=1)

        return run

    return prepare


def _pylibmgm(vertex: np.ndarray, source: np.ndarray, target: np.ndarray, edge: np.ndarray) -> Callable[[], np.ndarray]:
    import pylibmgm
    from pylibmgm import solver

    nodes = len(vertex)
    model = pylibmgm.GmModel(pylibmgm.Graph(0, nodes), pylibmgm.Graph(1, nodes), nodes**2, edge.size)
    for i, a in np.ndindex(nodes, nodes):
        model.add_assignment(i, a, -vertex[i, a] - _COMPLETE)
    costs: dict[tuple[int, int, int, int], float] = {}
    for (e, f), value in np.ndenumerate(edge):
        (i, j), (a, b) = source[e].tolist(), target[f].tolist()
        # An edge each way between the same two pairs is one cost of the model.
        key = (i, a, j, b) if i < j else (j, b, i, a)
        costs[key] = costs.get(key, 0.0) - value
    for key, cost in costs.items():
        model.add_edge(*key, cost)
    return lambda: _completed(np.array(solver.solve_gm(model).labeling()))


def _lpmp(vertex: np.ndarray, source: np.ndarray, target: np.ndarray, edge: np.ndarray) -> Callable[[], np.ndarray]:
    from lpmp_gm.raw_solvers import gm_solver

    options = {"maxIter": 100, "primalComputationInterval": 10, "timeout": 1000}

    def run() -> np.ndarray:
        found, _ = gm_solver(-vertex - _COMPLETE, -edge, source, target, options, verbose=False)
        matrix = np.asarray(found)
        return _completed(np.where(matrix.any(axis=1), matrix.argmax(axis=1), -1))

    return run


def _completed(assignment: np.ndarray) -> np.ndarray:
    """Unmatched nodes (-1) get what is left, in order."""
    free = np.setdiff1d(np.arange(len(assignment)), assignment)
    result = assignment.copy()
    result[assignment < 0] = free
    return result
