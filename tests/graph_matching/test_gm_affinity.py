from __future__ import annotations

import math

import pytest
import torch

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import MessagePassing, edge_affinity, global_affinity, local_affinity
from lvmmed_monai.transforms.views_2d import location_grids


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / math.sqrt(float((a * a).sum()) * float((b * b).sum())))


def test_global_affinity_is_the_cosine() -> None:
    a, b = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    expected = [[[cosine(x, y) for y in b[g]] for x in a[g]] for g in range(2)]
    torch.testing.assert_close(global_affinity(a, b), torch.tensor(expected))


def test_edge_affinity_is_the_cosine_of_differences() -> None:
    a, b = torch.randn(1, 4, 6), torch.randn(1, 4, 6)
    source, target = torch.tensor([[[0, 1], [2, 3], [3, 0]]]), torch.tensor([[[1, 0], [2, 1]]])
    expected = [
        [cosine(a[0, i] - a[0, j], b[0, c] - b[0, d]) for c, d in target[0].tolist()] for i, j in source[0].tolist()
    ]
    torch.testing.assert_close(edge_affinity(a, b, source, target), torch.tensor([expected]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_embeddings_give_zero_and_finite_gradients(dtype: torch.dtype) -> None:
    a = torch.ones(1, 3, 4, dtype=dtype)
    a[0, 2] = 0
    a.requires_grad_()
    edges = torch.tensor([[[0, 1], [1, 2]]])
    table = edge_affinity(a, a, edges, edges)
    assert table[0, 0].tolist() == [0.0, 0.0]
    assert float(table.detach()[0, 1, 1]) == pytest.approx(1.0, abs=0.02)
    (table.sum() + global_affinity(a, a).sum()).backward()
    assert a.grad is not None
    assert bool(torch.isfinite(a.grad).all())
    assert float(a.grad.abs().max()) < 10


def naive_local(maps: list[torch.Tensor], grids: list[torch.Tensor], gamma: int | None) -> torch.Tensor:
    """One pair of graphs, by loops over images and positions."""
    nodes = len(maps[0])
    result = torch.zeros(nodes, nodes)
    features = [m.flatten(2).transpose(1, 2) for m in maps]
    places = [g.flatten(1, 2) for g in grids]
    for i in range(nodes):
        for a in range(nodes):
            terms = []
            for (f, p), (g, q) in (
                ((features[0][i], places[0][i]), (features[1][a], places[1][a])),
                ((features[1][a], places[1][a]), (features[0][i], places[0][i])),
            ):
                near = []
                by_feature = []
                for k in range(len(f)):
                    to_place = [float((p[k] - q[m]).norm()) for m in range(len(g))]
                    m = to_place.index(min(to_place))
                    near.append((to_place[m], cosine(f[k], g[m])))
                    to_feature = [float((f[k] - g[m]).norm()) for m in range(len(g))]
                    by_feature.append(cosine(f[k], g[to_feature.index(min(to_feature))]))
                kept = sorted(near)[:gamma]
                terms += [sum(c for _, c in kept) / len(kept), sum(by_feature) / len(by_feature)]
            result[i, a] = sum(terms) / 4
    return result


@pytest.mark.parametrize("gamma", [None, 3, 100])
def test_local_affinity_equals_loops(gamma: int | None) -> None:
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(3, 5, 2, 3, generator=generator) for _ in range(2)]
    grids = [100 * torch.rand(3, 2, 3, 2, generator=generator) for _ in range(2)]
    found = local_affinity(*(m[None] for m in maps), *(g[None] for g in grids), gamma)
    torch.testing.assert_close(found[0], naive_local(maps, grids, gamma), atol=1e-5, rtol=1e-5)


def test_mirrored_view_agrees_with_itself_by_place() -> None:
    torch.manual_seed(3)
    maps = torch.randn(1, 2, 8, 4, 4)
    location = torch.tensor([[10.0, 20.0, 64.0, 96.0, 0.0]] * 2)
    mirrored = location.clone()
    mirrored[:, 4] = 1
    grid, grid_mirrored = (location_grids(one, 4, 4)[None] for one in (location, mirrored))
    same = local_affinity(maps, maps.flip(-1), grid, grid_mirrored, None)
    torch.testing.assert_close(same.diagonal(dim1=1, dim2=2), torch.ones(1, 2))
    # Without the mirrored grid, features of different places are compared.
    assert float(local_affinity(maps, maps.flip(-1), grid, grid, None).diagonal(dim1=1, dim2=2).max()) < 0.9


def test_gradients_reach_the_maps() -> None:
    maps = torch.randn(1, 2, 4, 2, 2, requires_grad=True)
    grid = location_grids(torch.tensor([[0.0, 0.0, 8.0, 8.0, 0.0]] * 2), 2, 2)[None]
    local_affinity(maps, maps.detach().flip(1), grid, grid).sum().backward()
    assert maps.grad is not None
    assert float(maps.grad.abs().sum()) > 0


def test_maps_and_grids_must_fit() -> None:
    with pytest.raises(UserError, match="local affinity"):
        local_affinity(
            torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, 4, 4, 2), torch.zeros(2)
        )


def test_gradients_of_all_that_is_smooth() -> None:
    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    torch.manual_seed(5)
    edges = torch.tensor([[[0, 1], [1, 2], [2, 0]]])
    left, right = numbers(1, 3, 4), numbers(1, 3, 4)
    assert torch.autograd.gradcheck(global_affinity, (left, right))
    assert torch.autograd.gradcheck(lambda a, b: edge_affinity(a, b, edges, edges), (left, right))
    for form in ("gcn", "residual"):
        passing = MessagePassing(4, form).double()  # type: ignore[arg-type]
        assert torch.autograd.gradcheck(lambda a, passing=passing: passing(a, edges), (left,))
    # The choice of partners is piecewise constant: a small step does not change it.
    places = torch.rand(2, 1, 2, 2, 2, 2, dtype=torch.float64)
    maps = numbers(1, 2, 3, 2, 2), numbers(1, 2, 3, 2, 2)
    assert torch.autograd.gradcheck(lambda a, b: local_affinity(a, b, places[0], places[1], 3), maps)
