"""The numbers of the worked example in docs/graph_matching.md."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path

import pytest
import torch

from lvmmed_monai.graph_matching import GraphMatchingProblem, match, solve

VERTEX = torch.tensor([[[0.9, 0.2, 0.1], [0.3, 0.5, 0.6], [0.1, 0.7, 0.4]]], dtype=torch.float64)
EDGES = torch.tensor([[[0, 1], [1, 2]]])
TABLE = torch.tensor([[[0.8, 0.1], [0.2, 0.7]]], dtype=torch.float64)
MARGIN = 2.0


@pytest.fixture
def text(repository: Path) -> str:
    return (repository / "docs" / "graph_matching.md").read_text()


def numbers(line: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+", line)]


def test_the_given_affinities(text: str) -> None:
    given = text[text.index("    vertex = 0.9") :].splitlines()[:3]
    rows = [numbers(line) for line in given]
    assert [row[:3] for row in rows] == VERTEX[0].tolist()
    assert [row[3:] for row in rows[:2]] == TABLE[0].tolist()


def test_the_table_of_all_matchings(text: str) -> None:
    problem = GraphMatchingProblem(VERTEX, EDGES, EDGES, TABLE)
    for p in permutations(range(3)):
        found = numbers(re.search(rf"\| {p[0]} {p[1]} {p[2]} \|(.*)", text)[1])
        value = float(problem.objective(torch.tensor([p])))
        vertices = sum(float(VERTEX[0, i, p[i]]) for i in range(3))
        right = sum(p[i] == i for i in range(3))
        assert found == pytest.approx([vertices, value - vertices, value, value - MARGIN * right])
    assert solve(problem, "linear").tolist() == [[0, 2, 1]]
    assert solve(problem).tolist() == [[0, 1, 2]]


def test_the_gradient(text: str) -> None:
    vertex, table = VERTEX.clone().requires_grad_(), TABLE.clone().requires_grad_()
    problem = GraphMatchingProblem(vertex, EDGES, EDGES, table)
    found = match(problem, noise_scale_vertex=0.0, noise_scale_edge=0.0, margin=MARGIN, lam=80.0)
    assert found.argmax(2).tolist() == [[2, 0, 1]]
    truth = torch.eye(3, dtype=torch.float64)
    ((found * (1 - truth) + truth * (1 - found)).sum() / 6).backward()
    rows = [numbers(line) for line in text[text.index("    vertex: -0.167") :].splitlines()[:3]]
    of_vertex, of_edge = torch.tensor([row[:3] for row in rows]), torch.tensor([row[3:] for row in rows[:2]])
    torch.testing.assert_close(of_vertex, 80 * vertex.grad[0].float(), atol=5e-4, rtol=0)
    torch.testing.assert_close(of_edge, 80 * table.grad[0].float(), atol=5e-4, rtol=0)
