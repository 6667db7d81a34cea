from __future__ import annotations

import pytest
import torch
from gm_oracle import literal_objective, random_problem

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import GraphMatchingProblem


@pytest.mark.parametrize("edges", [(7, 5), (0, 3), None])
def test_objective_is_the_literal_sum(edges: tuple[int, int] | None) -> None:
    problem = random_problem(3, 4, batch=3, edges=edges)
    torch.manual_seed(0)
    for _ in range(4):
        assignment = torch.stack([torch.randperm(4) for _ in range(3)])
        expected = [literal_objective(problem, b, assignment[b].tolist()) for b in range(3)]
        torch.testing.assert_close(problem.objective(assignment), torch.tensor(expected, dtype=torch.float64))


def test_edge_features_give_the_same_objective_as_their_inner_products() -> None:
    problem = random_problem(4, 5, batch=2, edges=(8, 6))
    left, right = torch.randn(2, 8, 3).double(), torch.randn(2, 6, 3).double()
    edges = problem.source_edges, problem.target_edges
    factored = GraphMatchingProblem(problem.vertex_affinity, *edges, (left, right))
    dense = GraphMatchingProblem(problem.vertex_affinity, *edges, torch.einsum("bed,bfd->bef", left, right))
    assignment = torch.stack([torch.randperm(5), torch.randperm(5)])
    torch.testing.assert_close(factored.objective(assignment), dense.objective(assignment))


def _arguments() -> dict[str, torch.Tensor]:
    problem = random_problem(0, 4, batch=2, edges=(5, 6))
    return {name: getattr(problem, name).clone() for name in problem.__dataclass_fields__}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vertex_affinity", torch.zeros(2, 4, 3), "vertex_affinity has shape"),
        ("vertex_affinity", torch.zeros(2, 4, 4, dtype=torch.int64), "floating point"),
        ("vertex_affinity", torch.full((2, 4, 4), torch.nan), "NaN"),
        ("edge_affinity", torch.zeros(2, 6, 5), "edge_affinity has shape"),
        ("edge_affinity", torch.full((2, 5, 6), torch.inf), "infinity"),
        ("source_edges", torch.zeros(2, 5, 3, dtype=torch.int64), "source_edges has shape"),
        ("source_edges", torch.zeros(2, 5, 2), "int64"),
        ("source_edges", torch.tensor([[[0, 4]] * 5] * 2), "outside 0..3"),
        ("source_edges", torch.tensor([[[1, 1]] * 5] * 2), "self-loop"),
        ("source_edges", torch.tensor([[[0, 1]] * 5] * 2), "twice"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GraphMatchingProblem(**{**_arguments(), name: value})


def test_objective_refuses_what_is_no_permutation() -> None:
    problem = random_problem(0, 3, edges=(2, 2))
    with pytest.raises(UserError, match="not a permutation"):
        problem.objective(torch.tensor([[0, 0, 1]]))
    with pytest.raises(UserError, match="assignment has shape"):
        problem.objective(torch.tensor([[0, 1]]))
