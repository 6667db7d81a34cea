from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from gm_oracle import all_objectives, random_problem
from scipy.optimize import linear_sum_assignment

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import MODES, GraphMatchingProblem, solve
from lvmmed_monai.graph_matching.solver import solve_arrays, solve_tensors

BACKENDS = ("numba", "torch", "scipy")


def best(problem: GraphMatchingProblem) -> np.ndarray:
    return np.array([all_objectives(problem, b)[1].max() for b in range(problem.batch_size)])


def arrays_of(problem: GraphMatchingProblem) -> list[np.ndarray]:
    parts = problem.vertex_affinity, problem.source_edges, problem.target_edges, problem.edge_table()
    return [part.numpy() for part in parts]


def reached(problem: GraphMatchingProblem, **options: object) -> np.ndarray:
    found = solve(problem, **options)
    assert torch.equal(found.sort(dim=1).values, torch.arange(problem.nodes).expand_as(found))
    return problem.objective(found).numpy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
def test_thorough_equals_enumeration_on_small_graphs(nodes: int, backend: str) -> None:
    batch = 3 if backend == "scipy" else 20
    # Every ordered pair is an edge: each exchange of two nodes meets the edges between them.
    for integers in (False, True):
        problem = random_problem(1, nodes, batch, integers=integers)
        np.testing.assert_allclose(reached(problem, mode="thorough", backend=backend), best(problem), atol=1e-9)


@pytest.mark.parametrize(("nodes", "edges"), [(6, (14, 14)), (7, (18, 11)), (7, (14, 42)), (7, (0, 9)), (6, (9, 0))])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_thorough_equals_enumeration_on_asymmetric_sparse_graphs(
    nodes: int, edges: tuple[int, int], backend: str
) -> None:
    for integers in (False, True):
        problem = random_problem(2, nodes, 12, edges=edges, integers=integers)
        gap = best(problem) - reached(problem, mode="thorough", backend=backend)
        assert (gap > -1e-9).all()
        assert (gap < 1e-9).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_higher_modes_are_never_worse(backend: str) -> None:
    problem = random_problem(5, 9, 4 if backend == "scipy" else 30, edges=(27, 30))
    values = [
        reached(problem, mode=mode, backend=backend, seed=3)
        for mode in MODES
        if (backend, mode) != ("scipy", "thorough")
    ]
    for lower, higher in pairwise(values):
        assert (higher >= lower - 1e-9).all()
    assert values[-1].mean() > values[0].mean()


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_mode_and_graphs_without_edges_are_linear_assignment(backend: str) -> None:
    problem = random_problem(6, 12, 10, edges=(0, 0))
    expected = [linear_sum_assignment(c, maximize=True)[1] for c in problem.vertex_affinity.numpy()]
    for mode in ("linear", "default"):
        np.testing.assert_array_equal(solve(problem, mode, backend), np.stack(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_constant_affinities_give_a_permutation(value: float, backend: str) -> None:
    template = random_problem(7, 8, 2, edges=(24, 24))
    problem = GraphMatchingProblem(
        torch.full((2, 8, 8), value),
        template.source_edges,
        template.target_edges,
        torch.full((2, 24, 24), value),
    )
    for mode in ("linear", "fast", "default"):
        reached(problem, mode=mode, backend=backend)


def test_result_depends_on_neither_batch_nor_threads() -> None:
    problem = random_problem(8, 16, 40, edges=(80, 80))
    arrays = arrays_of(problem)
    whole = solve_arrays(*arrays, seed=4)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(solve_arrays(*(np.ascontiguousarray(a[order]) for a in arrays), seed=4), whole[order])
    np.testing.assert_array_equal(solve_arrays(*(a[:1] for a in arrays), seed=4), whole[:1])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        np.testing.assert_array_equal(solve_arrays(*arrays, seed=4), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_do_not_depend_on_the_place_in_the_batch(dtype: torch.dtype) -> None:
    problem = random_problem(8, 16, 40, edges=(80, 80))
    tables = problem.vertex_affinity.to(dtype), problem.edge_table().to(dtype)
    parts = tables[0], problem.source_edges, problem.target_edges, tables[1]
    whole = solve_tensors(*parts, seed=4)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(solve_tensors(*(part[order] for part in parts), seed=4), whole[order])
    assert torch.equal(solve_tensors(*(part[:1] for part in parts), seed=4), whole[:1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_does_not_change_the_result(backend: str) -> None:
    problem = random_problem(9, 10, 10, edges=(30, 30))
    edges = problem.source_edges, problem.target_edges
    scaled = GraphMatchingProblem(1024 * problem.vertex_affinity, *edges, 1024 * problem.edge_table())
    assert torch.equal(solve(problem, backend=backend), solve(scaled, backend=backend))


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_permuting_target_nodes_permutes_the_answer(backend: str) -> None:
    problem = random_problem(10, 7, edges=(21, 21))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    # New node number of old target node a is inverse[a].
    inverse = order.argsort()
    moved = GraphMatchingProblem(
        problem.vertex_affinity[:, :, order], problem.source_edges, inverse[problem.target_edges], problem.edge_table()
    )
    assert torch.equal(inverse[solve(problem, "thorough", backend)], solve(moved, "thorough", backend))


def test_patience_and_given_starts() -> None:
    problem = random_problem(11, 12, 20, edges=(48, 48))
    arrays = arrays_of(problem)
    patient = problem.objective(solve(problem, "thorough"))
    early = problem.objective(solve(problem, "thorough", patience=3))
    assert bool((early <= patient + 1e-9).all())
    assert float((early >= patient - 1e-9).double().mean()) > 0.5
    given = solve(problem, "thorough").numpy()[:, None]
    kept = problem.objective(torch.from_numpy(solve_arrays(*arrays, mode="fast", given=given)))
    assert bool((kept >= patient - 1e-9).all())


def test_patience_and_given_starts_of_tensors() -> None:
    problem = random_problem(11, 12, 20, edges=(48, 48))
    parts = problem.vertex_affinity, problem.source_edges, problem.target_edges, problem.edge_table()
    patient = problem.objective(solve(problem, "thorough", "torch"))
    early = problem.objective(solve(problem, "thorough", "torch", patience=3))
    assert bool((early <= patient + 1e-9).all())
    assert float((early >= patient - 1e-9).double().mean()) > 0.5
    given = solve(problem, "thorough", "numba").unsqueeze(1)
    kept = problem.objective(solve_tensors(*parts, mode="fast", given=given))
    assert bool((kept >= problem.objective(given[:, 0]) - 1e-9).all())


def test_backends_agree_on_quality() -> None:
    problem = random_problem(12, 10, 6, edges=(40, 40))
    means = [reached(problem, mode="default", backend=backend).mean() for backend in BACKENDS]
    np.testing.assert_allclose(means, means[0], rtol=0.02)


def test_large_graphs() -> None:
    problem = random_problem(11, 512, 1, edges=(2000, 1800))
    assert reached(problem, mode="fast") > reached(problem, mode="linear") + 100


def test_unknown_names_are_refused() -> None:
    problem = random_problem(0, 3)
    with pytest.raises(UserError, match=r"unknown mode 'best'.*linear, fast, default, thorough"):
        solve(problem, "best")
    with pytest.raises(UserError, match=r"unknown backend 'jax'.*auto, numba, torch, scipy"):
        solve(problem, backend="jax")
