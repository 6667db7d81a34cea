from __future__ import annotations

from unittest import mock

import pytest
import torch
from gm_oracle import all_objectives, random_problem

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import GraphMatchingProblem, imle, match

QUIET = {"noise_scale_vertex": 0.0, "noise_scale_edge": 0.0}


def leaf(problem: GraphMatchingProblem) -> GraphMatchingProblem:
    """The same problem with affinities that collect gradients."""
    edges = problem.source_edges, problem.target_edges
    table = problem.edge_table().clone().requires_grad_()
    return GraphMatchingProblem(problem.vertex_affinity.clone().requires_grad_(), *edges, table)


def hamming(found: torch.Tensor) -> torch.Tensor:
    truth = torch.eye(found.shape[1], dtype=found.dtype)
    return (found * (1 - truth) + truth * (1 - found)).sum()


def gradients(
    problem: GraphMatchingProblem, weight: float = 1.0, **options: object
) -> tuple[torch.Tensor, torch.Tensor]:
    problem = leaf(problem)
    torch.manual_seed(0)
    (weight * hamming(match(problem, **options))).backward()
    return problem.vertex_affinity.grad, problem.edge_affinity.grad


def test_two_nodes_that_prefer_the_swap() -> None:
    none = torch.zeros(1, 0, 2, dtype=torch.int64)
    problem = GraphMatchingProblem(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), none, none, torch.zeros(1, 0, 0))
    vertex, _ = gradients(problem, lam=80.0, **QUIET)
    # Descent lowers the affinities of the wrong pairs and raises those of the right ones.
    torch.testing.assert_close(vertex, torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]]) / 80)


def test_edge_gradient_lowers_the_edge_pairs_in_use() -> None:
    edges = torch.tensor([[[0, 1]]])
    table = torch.tensor([[[0.0]]])
    problem = GraphMatchingProblem(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), edges, edges.flip(-1), table)
    _, edge = gradients(problem, lam=10.0, **QUIET)
    # Source edge (0, 1) lies on target edge (1, 0) only under the swap.
    torch.testing.assert_close(edge, torch.tensor([[[0.1]]]))


def test_no_gradient_where_the_match_is_right() -> None:
    problem = random_problem(1, 5, edges=(8, 8))
    edges = problem.source_edges, problem.target_edges
    easy = GraphMatchingProblem(problem.vertex_affinity + 50 * torch.eye(5), *edges, problem.edge_table())
    vertex, edge = gradients(easy, **QUIET)
    assert float(vertex.abs().max()) == 0
    assert float(edge.abs().max()) == 0


@pytest.mark.parametrize("lam", [0.5, 80.0])
@pytest.mark.parametrize("weight", [3.0, 1e-4, 65536.0])
def test_gradient_has_degree_one_in_the_loss_weight(weight: float, lam: float) -> None:
    problem = random_problem(2, 6, 4, edges=(12, 12))
    plain, scaled = gradients(problem, lam=lam), gradients(problem, weight, lam=lam)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, weight * one)


def test_overflowed_loss_scale_is_passed_on() -> None:
    problem = leaf(random_problem(2, 4, edges=(5, 5)))
    (match(problem, **QUIET).sum() * torch.inf).backward()
    assert problem.vertex_affinity.grad is not None
    assert bool(torch.isnan(problem.vertex_affinity.grad).all())


@pytest.mark.parametrize("margin", [0.0, 5.0])
@pytest.mark.parametrize("lam", [3.0, 20.0, 80.0])
def test_skipping_the_second_solve_changes_nothing(lam: float, margin: float) -> None:
    problem = random_problem(3, 6, 40, edges=(12, 15))
    options = {
        "lam": lam,
        "margin": margin,
        "noise_scale_vertex": 0.3,
        "noise_scale_edge": 0.3,
        "mode": "thorough",
        "patience": 0,
    }
    skipped = gradients(problem, **options)
    with mock.patch.object(imle._Tables, "slack", lambda tables, gold: torch.full((len(gold),), torch.inf)):
        solved = gradients(problem, **options)
    for one, other in zip(skipped, solved, strict=True):
        torch.testing.assert_close(one, other)


def test_slack_bounds_what_any_solution_gains_per_wrong_node() -> None:
    problem = random_problem(4, 6, 10, edges=(15, 12))
    tables = imle._Tables.of(problem, {"mode": "default", "backend": "auto"})
    slack = tables.slack(imle._gold(None, problem)).numpy()
    for b in range(10):
        perms, values = all_objectives(problem, b)
        wrong = (perms != perms[0]).sum(1)
        assert (values - values[0] <= wrong * slack[b] + 1e-9).all()


def test_large_lambda_gives_the_structured_perceptron() -> None:
    problem = random_problem(5, 6, 5, edges=(12, 12))
    problem = leaf(problem)
    found = match(problem, lam=1e4, **QUIET)
    hamming(found).backward()
    expected = (found.detach() - torch.eye(6)) / 1e4
    torch.testing.assert_close(problem.vertex_affinity.grad, expected)


@pytest.mark.slow
def test_small_lambda_gives_the_gradient_of_the_smoothed_loss() -> None:
    # By enumeration: central differences of E[loss] against the mean estimate, same noise.
    problem = random_problem(6, 4, edges=(5, 6))
    graphs, scale, step = 20000, 0.5, 0.05
    perms, _ = all_objectives(problem, 0)
    perms = torch.from_numpy(perms)
    errors = 2.0 * (perms != perms[0]).sum(1).double()
    generator = torch.Generator().manual_seed(0)
    noise = -scale * torch.empty(graphs, 4, 4, dtype=torch.float64).exponential_(generator=generator).log()
    theta = problem.vertex_affinity + noise
    edges_only = GraphMatchingProblem(
        0 * problem.vertex_affinity, problem.source_edges, problem.target_edges, problem.edge_table()
    )
    base = torch.from_numpy(all_objectives(edges_only, 0)[1])
    used = torch.nn.functional.one_hot(perms, 4).double().flatten(1)

    def expected_loss(shift: torch.Tensor) -> float:
        return float(errors[(base + (theta + shift).flatten(1) @ used.T).argmax(1)].mean())

    differences = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for a in range(4):
            shift = torch.zeros(4, 4, dtype=torch.float64)
            shift[i, a] = step
            differences[i, a] = (expected_loss(shift) - expected_loss(-shift)) / (2 * step)
    copies = [t.expand(graphs, -1, -1) for t in (problem.source_edges, problem.target_edges, problem.edge_table())]
    vertex = theta.clone().requires_grad_()
    hamming(match(GraphMatchingProblem(vertex, *copies), lam=0.3, mode="thorough", **QUIET)).backward()
    assert vertex.grad is not None
    estimate = vertex.grad.sum(0) / graphs
    similarity = torch.nn.functional.cosine_similarity(estimate.flatten(), differences.flatten(), dim=0)
    assert float(similarity) > 0.95


def test_noise_is_used_twice_and_follows_torch_seed() -> None:
    problem = random_problem(7, 6, 8, edges=(12, 12))
    torch.manual_seed(5)
    first = match(problem)
    torch.manual_seed(5)
    assert torch.equal(match(problem), first)
    assert not torch.equal(match(problem), first)
    torch.manual_seed(5)
    mean = match(problem, samples=4)
    torch.testing.assert_close(mean.sum(2), torch.ones_like(mean.sum(2)))
    assert len(mean.unique()) > 2


def test_target_and_margin() -> None:
    problem = random_problem(8, 5, 3, edges=(8, 8))
    gold = torch.stack([torch.randperm(5) for _ in range(3)])
    found = match(problem, gold, margin=1e3, **QUIET)
    assert float(found.gather(2, gold.unsqueeze(2)).sum()) == 0
    with pytest.raises(UserError, match="no permutations"):
        match(problem, torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(UserError, match="lam"):
        match(problem, lam=0.0)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("lam", [0.5, 80.0])
def test_gradient_of_edge_features_is_that_of_their_table(lam: float, backend: str) -> None:
    template = random_problem(9, 8, 6, edges=(24, 20))
    edges = template.source_edges, template.target_edges
    left, right = (torch.randn(6, count, 3, dtype=torch.float64, requires_grad=True) for count in (24, 20))
    found = []
    for pair in ((left, right), left @ right.transpose(1, 2)):
        torch.manual_seed(2)
        loss = hamming(match(GraphMatchingProblem(template.vertex_affinity, *edges, pair), lam=lam, backend=backend))
        found.append(torch.autograd.grad(loss, (left, right)))
    for sparse, dense in zip(*found, strict=True):
        assert float(dense.abs().max()) > 0
        torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("noise_scale_edge", [0.0, 1.0])
@pytest.mark.parametrize("lam", [0.5, 80.0])
def test_samples_are_the_mean_over_repeated_problems(
    lam: float, noise_scale_edge: float, factored: bool, backend: str
) -> None:
    template = random_problem(12, 6, 3, edges=(15, 14))
    edges = template.source_edges, template.target_edges
    vertex = template.vertex_affinity.clone().requires_grad_()
    left, right = (torch.randn(3, count, 4, dtype=torch.float64, requires_grad=True) for count in (15, 14))
    problem = GraphMatchingProblem(vertex, *edges, (left, right) if factored else left @ right.transpose(1, 2))

    def gradients_of(found: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights = torch.linspace(0.5, 2.0, 6, dtype=torch.float64)
        return found.detach(), *torch.autograd.grad((weights * found).square().sum(), (vertex, left, right))

    options = {"noise_scale_edge": noise_scale_edge, "lam": lam, "backend": backend}
    torch.manual_seed(4)
    together = gradients_of(match(problem, samples=5, **options))
    again = [one.repeat_interleave(5, dim=0) for one in (vertex, *edges, left, right)]
    features = again[3], again[4]
    repeated = GraphMatchingProblem(
        again[0], again[1], again[2], features if factored else features[0] @ features[1].transpose(1, 2)
    )
    torch.manual_seed(4)
    one_by_one = gradients_of(match(repeated, **options).unflatten(0, (3, 5)).mean(1))
    for found, expected in zip(together, one_by_one, strict=True):
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(found, expected)


def test_backends_give_the_same_gradient() -> None:
    problem = random_problem(10, 6, 20, edges=(12, 12))
    one, other = (
        gradients(problem, mode="thorough", patience=0, lam=2.0, backend=backend) for backend in ("numba", "torch")
    )
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right)


def test_share_of_known_second_solves() -> None:
    problem = random_problem(11, 8, 10, edges=(24, 24))
    shares = []
    for lam in (1e-3, 1e3):
        statistics: dict[str, float] = {}
        match(problem, lam=lam, statistics=statistics)
        shares.append(statistics["skipped"])
    assert shares == [0.0, 1.0]


def test_linear_mode_leaves_edges_without_gradient() -> None:
    _, edge = gradients(random_problem(9, 5, edges=(8, 8)), mode="linear", **QUIET)
    assert edge is None
