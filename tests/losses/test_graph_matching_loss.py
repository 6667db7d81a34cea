from __future__ import annotations

import math
import socket
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import GraphMatchingProblem, match
from lvmmed_monai.losses.graph_matching import PRESETS, GraphMatchingLoss, _Graphs, matching_accuracy
from lvmmed_monai.transforms.views_2d import location_grids

#: Second order with a margin, without noise, maps and weights.
MARGIN = {
    "alpha": 1.0,
    "noise_scale_vertex": 0.0,
    "noise_scale_edge": 0.0,
    "margin": 5.0,
    "message_passing": None,
    "regroup": 8,
    "mode": "fast",
}


def margin_loss(**options: object) -> GraphMatchingLoss:
    return GraphMatchingLoss("paper", **{**MARGIN, **options})


def quiet(**options: object) -> GraphMatchingLoss:
    """The loss without anything random but the order of nodes."""
    return margin_loss(margin=0.0, **options)


def embeddings(images: int, features: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, features, generator=torch.Generator().manual_seed(seed))


def test_equal_views_match_and_have_no_loss() -> None:
    z = embeddings(32)
    result = quiet(regroup=3)(z, z)
    assert float(result["loss"]) == 0.0
    assert result["training_accuracy"] == 1.0
    assert result["graphs"] == 6


def test_loss_is_the_fraction_of_wrong_nodes() -> None:
    z = 10 * torch.eye(8)
    swapped = z[[1, 0, 2, 3, 4, 5, 6, 7]]
    # Without edges: all distances are equal, so the neighbours depend on the random order of the nodes.
    loss = quiet(nodes_per_graph=8, neighbours=2, regroup=1, edge_weight=0.0)(z, swapped)["loss"]
    assert float(loss) == pytest.approx(2 / 8)


def test_margin_asks_for_more_than_the_right_match() -> None:
    z = embeddings(16)
    assert float(margin_loss(margin=1e3)(z, z)["loss"]) == 1.0


@pytest.mark.parametrize("mode", ["linear", "fast"])
def test_random_features_match_by_chance_only(mode: str) -> None:
    z1, z2 = embeddings(800, seed=1), embeddings(800, seed=2)
    assert quiet(regroup=1, mode=mode)(z1, z2)["training_accuracy"] == pytest.approx(1 / 16, abs=0.03)
    assert matching_accuracy(z1, z2, mode=mode) == pytest.approx(1 / 16, abs=0.025)


def test_equal_embeddings_match_by_chance_only() -> None:
    # A collapsed encoder: every matching is as good as any, and the order of the nodes must not decide.
    z = torch.ones(800, 4)
    assert quiet(regroup=1)(z, z)["training_accuracy"] == pytest.approx(1 / 16, abs=0.03)
    assert matching_accuracy(z, z) == pytest.approx(1 / 16, abs=0.03)


def gradient(weight: float, **options: object) -> torch.Tensor:
    z1, z2 = embeddings(32, seed=3).requires_grad_(), embeddings(32, seed=4)
    torch.manual_seed(1)
    (weight * margin_loss(**options)(z1, z2)["loss"]).backward()
    assert z1.grad is not None
    return z1.grad


def test_gradient_has_degree_one_in_the_weight() -> None:
    torch.testing.assert_close(gradient(0.25), 0.25 * gradient(1.0))
    torch.testing.assert_close(gradient(65536.0), 65536.0 * gradient(1.0))


def test_gradient_scaling_changes_no_step() -> None:
    def trained(scale: float) -> torch.Tensor:
        torch.manual_seed(2)
        layer = torch.nn.Linear(12, 8)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        loss = margin_loss()(layer(embeddings(32, seed=5)), layer(embeddings(32, seed=6)))["loss"]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        return layer.weight.detach().clone()

    torch.testing.assert_close(trained(65536.0), trained(1.0))


def test_descent_reaches_the_true_match() -> None:
    torch.manual_seed(7)
    z1, z2 = embeddings(16, seed=7).requires_grad_(), embeddings(16, seed=8)
    loss = margin_loss(margin=1.0, regroup=1)
    assert matching_accuracy(z1, z2) < 0.3
    for _ in range(100):
        (grad,) = torch.autograd.grad(loss(z1, z2)["loss"], z1)
        z1 = (z1 - 100 * grad).detach().requires_grad_()
    assert matching_accuracy(z1, z2) > 0.7


@pytest.mark.parametrize(("preset", "images"), [("paper", 16), ("draft", 20)])
def test_presets_with_maps_reach_every_weight(preset: str, images: int) -> None:
    torch.manual_seed(9)
    loss = GraphMatchingLoss(preset, features=12)
    maps = [torch.randn(images, 6, 3, 3, requires_grad=True) for _ in range(2)]
    location = torch.tensor([[0.0, 0.0, 30.0, 30.0, 0.0]]).expand(images, 5)
    grids = location_grids(location, 3, 3), location_grids(location, 3, 3)
    result = loss(embeddings(images, seed=1), embeddings(images, seed=2), tuple(maps), grids)
    result["loss"].backward()
    tensors = [*maps, *loss.parameters()]
    assert all(t.grad is not None and float(t.grad.abs().sum()) > 0 for t in tensors)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_autocast_computes_in_float32(preset: str) -> None:
    loss = GraphMatchingLoss(preset, features=12, alpha=1.0, patch_graphs=0)
    z = embeddings(loss.options.nodes_per_graph or 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(z, z)["loss"].dtype == torch.float32


def test_batch_sizes_that_fit_are_named() -> None:
    loss = margin_loss()
    with pytest.raises(UserError, match=r"40 images.*32 or 48"):
        loss(embeddings(40), embeddings(40))
    with pytest.raises(UserError, match=r"7 images.*batch size of 16"):
        loss(embeddings(7), embeddings(7))


def test_wrong_options_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown preset 'large'.*paper, draft, recommended"):
        GraphMatchingLoss("large")
    with pytest.raises(UserError, match="unknown option 'margins'"):
        GraphMatchingLoss(margins=3)
    with pytest.raises(UserError, match="5 neighbours in graphs of 5"):
        GraphMatchingLoss(nodes_per_graph=5)
    with pytest.raises(UserError, match=r"metric = 'manhattan'.*'euclidean' or 'cosine'"):
        GraphMatchingLoss(metric="manhattan")
    with pytest.raises(UserError, match="message_passing = 'gcn' with patch_graphs = 4"):
        GraphMatchingLoss("recommended", message_passing="gcn")
    with pytest.raises(UserError, match="alpha = 2"):
        GraphMatchingLoss(alpha=2)
    with pytest.raises(UserError, match="maps or grids are missing"):
        GraphMatchingLoss("paper")(embeddings(16, 128), embeddings(16, 128))
    with pytest.raises(UserError, match="10 images for graphs of 16"):
        matching_accuracy(embeddings(10), embeddings(10))


def test_measures_without_noise_look_past_the_margin() -> None:
    z = embeddings(32)
    result = margin_loss(margin=1e3)(z, z)
    assert result["training_accuracy"] == 0.0
    assert result["matching_accuracy_in_training"] == 1.0
    assert result["objective_ratio"] == pytest.approx(1.0)
    assert result["skipped"] == 0.0
    # Of views that hardly agree the best matching reaches more than the true one.
    assert margin_loss()(z, z + embeddings(32, seed=1))["objective_ratio"] > 1.05


def _global_loss(z1: torch.Tensor, z2: torch.Tensor) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(7)
    loss = GraphMatchingLoss("paper", alpha=1.0, message_passing=None, gather="global", lam=2.0, noise_scale_edge=3.0)(
        z1, z2
    )["loss"]
    return loss.detach(), *torch.autograd.grad(loss, (z1, z2))


def _process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    own = slice(rank * 16, rank * 16 + 16)
    pair = (embeddings(32)[own].requires_grad_(), (embeddings(32) + 0.3 * embeddings(32, seed=1))[own].requires_grad_())
    torch.manual_seed(rank)  # processes draw different numbers elsewhere
    torch.save(_global_loss(*pair), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_global_graphs_equal_one(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.spawn(_process, (port, str(tmp_path)), nprocs=2)
    z1, z2 = embeddings(32).requires_grad_(), (embeddings(32) + 0.3 * embeddings(32, seed=1)).requires_grad_()
    loss, *expected = _global_loss(z1, z2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for part in found:
        torch.testing.assert_close(part[0], loss)
    assert float(expected[0].abs().max()) > 0
    for number, gradient_of_one in enumerate(expected, start=1):
        # Both processes send an image's gradient home; the mean over processes is taken by data-parallel training.
        torch.testing.assert_close(torch.cat([part[number] for part in found]) / 2, gradient_of_one)


def test_lazy_exports() -> None:
    import lvmmed_monai.losses as losses

    assert losses.GraphMatchingLoss is GraphMatchingLoss
    assert "VoCoLoss" in dir(losses)
    with pytest.raises(AttributeError):
        losses.NoSuchLoss  # noqa: B018


def test_one_graph_of_all_images() -> None:
    z = embeddings(21)
    result = GraphMatchingLoss("recommended", noise_scale_vertex=0.0, patch_graphs=0)(z, z)
    assert (result["graphs"], float(result["loss"])) == (1, 0.0)


def test_noise_samples_average_to_the_chance_of_each_matching() -> None:
    vertex, scale, rng = torch.tensor([[0.9, 0.5], [0.4, 0.7]]), 0.3, np.random.default_rng(0)
    noise = rng.gumbel(scale=scale, size=(200_000, 2, 2))
    noised = vertex.numpy() + noise
    right = float((noised[:, 0, 0] + noised[:, 1, 1] > noised[:, 0, 1] + noised[:, 1, 0]).mean())
    edges = torch.zeros(1, 0, 2, dtype=torch.int64)
    problem = GraphMatchingProblem(vertex[None], edges, edges, torch.zeros(1, 0, 0))
    torch.manual_seed(0)
    found = match(problem, noise_scale_vertex=scale, noise_scale_edge=0.0, samples=20_000, mode="linear")
    assert float(found[0, 0, 0]) == pytest.approx(right, abs=0.015)


def test_patches_train_through_maps_alone() -> None:
    torch.manual_seed(10)
    loss = GraphMatchingLoss("recommended", nodes_per_graph=8)
    z = embeddings(16)
    maps = [torch.randn(16, 6, 4, 4, requires_grad=True) for _ in range(2)]
    location = torch.tensor([[0.0, 0.0, 32.0, 32.0, 0.0]]).expand(16, 5)
    grids = location_grids(location, 4, 4), location_grids(location, 4, 4)
    with pytest.raises(UserError, match="4 patch graphs"):
        loss(z, z)
    loss(z, z, tuple(maps), grids)["loss"].backward()
    assert all(one.grad is not None and float(one.grad.abs().sum()) > 0 for one in maps)


def test_standardising_removes_offset_and_scale() -> None:
    z1 = embeddings(32, seed=1)
    z2 = z1 + 0.5 * embeddings(32, seed=2)
    scale, offset = torch.linspace(0.5, 9.0, 12), torch.linspace(-5.0, 5.0, 12)
    loss = margin_loss(standardise=True, regroup=1)
    torch.manual_seed(3)
    plain = loss(z1, z2)["objective_ratio"]
    torch.manual_seed(3)
    assert loss(scale * z1 + offset, scale * z2 + offset)["objective_ratio"] == pytest.approx(plain, rel=1e-3)


def problem_of(z1: torch.Tensor, z2: torch.Tensor, **options: object) -> tuple[GraphMatchingProblem, _Graphs]:
    loss = margin_loss(nodes_per_graph=len(z1), neighbours=2, **options)
    graphs = _Graphs.of(torch.arange(len(z1))[None])
    return loss._problem(graphs, (z1, z2), loss.options.mode), graphs


def test_softplus_of_inner_products() -> None:
    z1, z2 = embeddings(5, seed=1), embeddings(5, seed=2)
    problem, graphs = problem_of(z1, z2, affinity="softplus", edge_weight=0.5)
    target = z2[graphs.target[0]]
    edge = problem.edge_table()[0]
    for e, (i, j) in enumerate(problem.source_edges[0].tolist()):
        for f, (a, b) in enumerate(problem.target_edges[0].tolist()):
            inner = float((z1[i] - z1[j]) @ (target[a] - target[b]))
            assert float(edge[e, f]) == pytest.approx(0.5 * (math.log1p(math.exp(inner)) - 0.5), rel=1e-4)
    inner = float(z1[0] @ target[3])
    assert float(problem.vertex_affinity[0, 0, 3]) == pytest.approx(math.log1p(math.exp(inner)) - 0.5, rel=1e-4)


def test_edges_of_the_source_are_carried_to_the_target() -> None:
    problem, graphs = problem_of(embeddings(6, seed=1), embeddings(6, seed=2), target_edges="source")
    carried = graphs.gold[0][problem.source_edges[0]]
    assert torch.equal(problem.target_edges[0], carried)


@pytest.mark.parametrize("affinity", ["cosine", "softplus"])
@pytest.mark.parametrize("target_edges", ["own", "source"])
def test_symmetric_edges_of_a_batch_are_worth_those_of_each_graph(affinity: str, target_edges: str) -> None:
    form = {"symmetric": True, "neighbours": 2, "affinity": affinity, "target_edges": target_edges}
    loss = margin_loss(nodes_per_graph=7, **form)
    z1, z2 = embeddings(28, seed=1), embeddings(28, seed=2)
    together = _Graphs.of(torch.arange(28).view(4, 7))
    problem = loss._problem(together, (z1, z2), "fast")
    assignment = torch.stack([torch.randperm(7) for _ in range(4)])
    worth, real_edges = problem.objective(assignment), []
    for g in range(4):
        alone = _Graphs(together.source[g : g + 1], together.target[g : g + 1], together.gold[g : g + 1])
        single = loss._problem(alone, (z1, z2), "fast")
        assert float(single.objective(assignment[g : g + 1])) == pytest.approx(float(worth[g]), rel=1e-5)
        real_edges.append(single.source_edges.shape[1])
    assert min(real_edges) < max(real_edges) == problem.source_edges.shape[1]


def test_neighbours_by_angle() -> None:
    z = torch.tensor([[1.0, 0.0], [9.0, 0.5], [0.0, 1.1], [0.9, 0.4]])
    nearest = {
        metric: problem_of(z, z, metric=metric)[0].source_edges[0, 0].tolist() for metric in ("euclidean", "cosine")
    }
    assert nearest == {"euclidean": [0, 3], "cosine": [0, 1]}


def test_local_affinity_as_a_sum_weighs_four_times() -> None:
    z1, z2, local = embeddings(4, seed=1), embeddings(4, seed=2), torch.rand(1, 4, 4)
    graphs = _Graphs.of(torch.arange(4)[None])
    mean, total, none = (
        margin_loss(nodes_per_graph=4, neighbours=2, alpha=0.8, local_sum=one)._problem(graphs, (z1, z2), "fast", given)
        for one, given in ((False, local), (True, local), (False, None))
    )
    added = [one.vertex_affinity - 0.8 * none.vertex_affinity for one in (mean, total)]
    torch.testing.assert_close(added, [0.2 * local, 0.8 * local])


class TestBothViews:
    """Nodes are 2N views on either side, and no view is a match of itself."""

    def test_found_is_the_best_assignment_without_fixed_points(self) -> None:
        z1, z2 = embeddings(3, seed=1), embeddings(3, seed=2)
        unit = torch.nn.functional.normalize(torch.cat([z1, z2]), dim=1).numpy()
        cosine = unit @ unit.T
        orders = [p for p in permutations(range(6)) if all(i != a for i, a in enumerate(p))]
        best = max(orders, key=lambda p: sum(cosine[i, a] for i, a in enumerate(p)))
        wrong = np.mean([a != (i + 3) % 6 for i, a in enumerate(best)])
        result = quiet(nodes_per_graph=3, regroup=1, both_views=True, mode="linear")(z1, z2)
        assert 0 < wrong < 1
        assert float(result["loss"]) == pytest.approx(wrong)

    @pytest.mark.parametrize("mode", ["linear", "fast"])
    def test_equal_views_match_each_other(self, mode: str) -> None:
        z = embeddings(32)
        result = quiet(regroup=2, both_views=True, mode=mode)(z, z)
        assert (float(result["loss"]), result["graphs"]) == (0.0, 4)

    def test_random_features_match_by_chance_only(self) -> None:
        z1, z2 = embeddings(800, seed=1), embeddings(800, seed=2)
        result = quiet(regroup=1, both_views=True, mode="linear")(z1, z2)
        assert result["training_accuracy"] == pytest.approx(1 / 31, abs=0.02)

    @pytest.mark.parametrize("mode", ["linear", "fast"])
    def test_noise_makes_no_view_its_own_match(self, mode: str) -> None:
        z1, z2 = embeddings(16, seed=1), embeddings(16, seed=2)
        loss = quiet(both_views=True, noise_scale_vertex=0.5, mode=mode)
        graphs = _Graphs.of_both_views(torch.arange(16)[None], 16)
        both = torch.cat([z1, z2])
        problem = loss._problem(graphs, (both, both), mode)
        found = match(problem, graphs.gold, noise_scale_vertex=0.5, noise_scale_edge=0.0, samples=64, mode=mode)
        assert graphs.same is not None
        assert float(found[graphs.same].max()) == 0.0

    def test_local_term_and_patches_use_the_maps_of_both_views(self) -> None:
        torch.manual_seed(11)
        loss = GraphMatchingLoss("recommended", both_views=True, nodes_per_graph=8, alpha=0.5, regroup=3)
        maps = [torch.randn(16, 6, 4, 4, requires_grad=True) for _ in range(2)]
        location = torch.tensor([[0.0, 0.0, 32.0, 32.0, 0.0]]).expand(16, 5)
        grids = location_grids(location, 4, 4), location_grids(location, 4, 4)
        loss(embeddings(16, seed=1), embeddings(16, seed=2), tuple(maps), grids)["loss"].backward()
        assert all(one.grad is not None and float(one.grad.abs().sum()) > 0 for one in maps)
