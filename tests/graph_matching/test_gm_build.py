from __future__ import annotations

import numpy as np
import pytest
import torch

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import MessagePassing, knn_graph, patch_pairs, symmetric_edges
from lvmmed_monai.transforms.views_2d import location_grids


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


def test_symmetric_edges_join_both_ways_and_fill_up() -> None:
    directed = knn_graph(torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(0)), 2)
    edges, real = symmetric_edges(directed, 8)
    counts = []
    for before, after, kept in zip(directed.tolist(), edges.tolist(), real.tolist(), strict=True):
        expected = sorted({(i, j) for i, j in before} | {(j, i) for i, j in before})
        found = [tuple(edge) for edge, is_real in zip(after, kept, strict=True) if is_real]
        assert found == expected
        filler = [tuple(edge) for edge, is_real in zip(after, kept, strict=True) if not is_real]
        assert len(set(found + filler)) == edges.shape[1]
        assert all(i != j for i, j in filler)
        counts.append(len(expected))
    assert min(counts) < max(counts) == edges.shape[1]


def test_a_complete_graph_is_symmetric_already() -> None:
    directed = knn_graph(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)), 4)
    edges, real = symmetric_edges(directed, 5)
    assert bool(real.all())
    assert {tuple(edge) for edge in edges[0].tolist()} == {tuple(edge) for edge in directed[0].tolist()}


@pytest.mark.parametrize("form", ["gcn", "residual", "sum"])
def test_message_passing_along_symmetric_edges_ignores_fillers(form: str) -> None:
    torch.manual_seed(0)
    network, z = MessagePassing(3, form), torch.randn(4, 7, 3)  # type: ignore[arg-type]
    directed = knn_graph(z, 2)
    together = network(z, *symmetric_edges(directed, 7))
    for graph in range(4):
        alone, real = symmetric_edges(directed[graph : graph + 1], 7)
        assert bool(real.all())
        assert torch.allclose(network(z[graph : graph + 1], alone)[0], together[graph], atol=1e-6)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="B, N, F"):
        knn_graph(torch.zeros(4, 3), 2)
    with pytest.raises(UserError, match="at least 1 neighbour"):
        knn_graph(torch.zeros(1, 4, 3), 0)
    with pytest.raises(UserError, match="unknown form"):
        MessagePassing(4, "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("last_relu", [False, True])
@pytest.mark.parametrize("form", ["gcn", "residual"])
def test_message_passing_averages_own_neighbours(form: str, last_relu: bool) -> None:
    torch.manual_seed(1)
    network = MessagePassing(3, form, last_relu=last_relu)  # type: ignore[arg-type]
    z = torch.randn(1, 4, 3)
    edges = torch.tensor([[[0, 1], [0, 2], [1, 3], [1, 0], [2, 0], [2, 1], [3, 1], [3, 2]]])
    neighbours = {0: [1, 2], 1: [3, 0], 2: [0, 1], 3: [1, 2]}

    def average(h: torch.Tensor) -> torch.Tensor:
        return torch.stack([(h[i] + sum(h[j] for j in neighbours[i])) / 3 for i in range(4)])

    first, second = (layer.weight for layer in network.layers)
    expected = average(torch.relu(average(z[0] @ first.T)) @ second.T)
    assert bool((expected < 0).any())
    expected = torch.relu(expected) if last_relu else expected
    expected = z[0] + 0.1 * expected if form == "residual" else expected
    torch.testing.assert_close(network(z, edges)[0], expected)


def test_message_passing_sums_neighbours_beside_the_node_itself() -> None:
    torch.manual_seed(2)
    network = MessagePassing(3, "sum", dropout=0.9).eval()
    z = torch.randn(1, 3, 3)
    neighbours = {0: [1, 2], 1: [2], 2: [0]}
    edges = torch.tensor([[[i, j] for i, others in neighbours.items() for j in others]])
    hidden = z[0]
    for number in range(2):
        given = hidden if number == 0 else hidden.relu()
        own, layer = network.own[number], network.layers[number]
        hidden = torch.stack([own(given[i]) + sum(layer(given[j]) for j in neighbours[i]) for i in range(3)])
    torch.testing.assert_close(network(z, edges)[0], hidden)
    assert not torch.equal(network.train()(z, edges)[0], hidden)


def places_as_features(locations: list[list[float]], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps whose features are the places themselves, (M, 2, side, side), and their grids."""
    grids = location_grids(torch.tensor(locations), side, side)
    return grids.permute(0, 3, 1, 2), grids


def test_patches_of_a_pair_show_the_same_place() -> None:
    # Equal crops, a mirrored one, and crops that share a quarter of their area.
    first, grid1 = places_as_features([[0, 0, 40, 40, 0], [0, 0, 40, 40, 0], [0, 0, 40, 40, 0]], 4)
    second, grid2 = places_as_features([[0, 0, 40, 40, 0], [0, 0, 40, 40, 1], [20, 20, 40, 40, 0]], 4)
    torch.manual_seed(0)
    left, right = patch_pairs((first, second), (grid1, grid2), 100)
    assert left.shape == (100, 3, 2)
    torch.testing.assert_close(left[:, :2], right[:, :2])
    same = (left[:, 2] == right[:, 2]).all(dim=1)
    assert float(same.double().mean()) > 0.9
    # Every place that both show is drawn.
    shared = [left[:, 0], left[:, 1], left[same, 2]]
    assert [len({tuple(place) for place in one.tolist()}) for one in shared] == [16, 16, 4]


def test_patches_follow_the_nearest_place_and_carry_gradients() -> None:
    first, grid1 = places_as_features([[0, 0, 32, 32, 0]], 4)
    second, grid2 = places_as_features([[3, 5, 24, 20, 1]], 4)
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    left, right = patch_pairs((first, second), (grid1, grid2), 200)
    there = grid2.flatten(0, 2)
    for here, found in zip(left[:, 0].detach(), right[:, 0].detach(), strict=True):
        torch.testing.assert_close(found, there[(there - here).norm(dim=1).argmin()])
    assert float((left - right).detach().norm(dim=2).median()) < 4
    (left.sum() + right.sum()).backward()
    assert first.grad is not None
    assert float(first.grad.sum()) == float(second.grad.sum()) == 400  # type: ignore[union-attr]


def test_images_without_a_common_place_still_give_patches() -> None:
    first, grid1 = places_as_features([[0, 0, 10, 10, 0]], 1)
    second, grid2 = places_as_features([[500, 500, 10, 10, 0]], 1)
    left, _ = patch_pairs((first, second), (grid1, grid2), 3)
    assert left.shape == (3, 1, 2)
