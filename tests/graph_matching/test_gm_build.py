from __future__ import annotations

import numpy as np
import pytest
import torch

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import MessagePassing, knn_graph


def test_neighbours_are_the_nearest_others() -> None:
    z = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0))
    edges = knn_graph(z, 3).numpy()
    for b in range(3):
        for i in range(9):
            distances = [(float(np.linalg.norm(z[b, i].numpy() - z[b, j].numpy())), j) for j in range(9) if j != i]
            expected = [(i, j) for _, j in sorted(distances)[:3]]
            assert [tuple(edge) for edge in edges[b, 3 * i : 3 * i + 3]] == expected


def test_equal_embeddings_go_by_number_and_never_to_themselves() -> None:
    z = torch.zeros(1, 5, 2)
    z[0, 4] = 1e4
    edges = knn_graph(z, 2)[0]
    assert edges[:4].tolist() == [[0, 1], [0, 2], [1, 0], [1, 2]]
    assert not bool((edges[:, 0] == edges[:, 1]).any())


def test_more_neighbours_than_nodes_takes_all_others() -> None:
    assert knn_graph(torch.randn(2, 4, 3), 9).shape == (2, 12, 2)
    assert knn_graph(torch.randn(2, 1, 3), 5).shape == (2, 0, 2)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="B, N, F"):
        knn_graph(torch.zeros(4, 3), 2)
    with pytest.raises(UserError, match="at least 1 neighbour"):
        knn_graph(torch.zeros(1, 4, 3), 0)
    with pytest.raises(UserError, match="unknown form"):
        MessagePassing(4, "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["gcn", "residual"])
def test_message_passing_averages_own_neighbours(form: str) -> None:
    torch.manual_seed(1)
    network = MessagePassing(3, form)  # type: ignore[arg-type]
    z = torch.randn(1, 4, 3)
    edges = torch.tensor([[[0, 1], [0, 2], [1, 3], [1, 0], [2, 0], [2, 1], [3, 1], [3, 2]]])
    neighbours = {0: [1, 2], 1: [3, 0], 2: [0, 1], 3: [1, 2]}

    def average(h: torch.Tensor) -> torch.Tensor:
        return torch.stack([(h[i] + sum(h[j] for j in neighbours[i])) / 3 for i in range(4)])

    first, second = (layer.weight for layer in network.layers)
    expected = average(torch.relu(average(z[0] @ first.T)) @ second.T)
    expected = z[0] + 0.1 * expected if form == "residual" else expected
    torch.testing.assert_close(network(z, edges)[0], expected)
