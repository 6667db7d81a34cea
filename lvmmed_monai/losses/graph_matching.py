"""The LVM-Med loss: two views of a batch as graphs that are matched (Nguyen et al., NeurIPS 2023).

Each group of images gives two graphs, one per view, with a node per image; the true matching joins the views of an
image. The loss is the Hamming distance of the found matching to the true one, differentiated by `graph_matching.match`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import (
    GraphMatchingProblem,
    MessagePassing,
    edge_affinity,
    edge_differences,
    edge_directions,
    global_affinity,
    knn_graph,
    local_affinity,
    match,
    patch_pairs,
    softplus_affinity,
    solve,
    symmetric_edges,
)
from lvmmed_monai.losses._graph_matching_options import PRESETS, GraphMatchingOptions, options_of
from lvmmed_monai.losses.gathering import gathered, processes

__all__ = ["PRESETS", "GraphMatchingLoss", "GraphMatchingOptions", "matching_accuracy"]

_Pair = tuple[Tensor, Tensor]


class GraphMatchingLoss(nn.Module):
    """Hamming distance of a differentiable matching, of first or second order, to the true one.

    Args:
        preset: a key of `PRESETS`.
        features: width F of the embeddings; only message passing has weights of that width.
        overrides: single `GraphMatchingOptions` that differ from the preset.

    Raises:
        UserError: an unknown preset or option, or options that contradict each other.

    Example:
        >>> loss = GraphMatchingLoss("recommended", nodes_per_graph=4, patch_graphs=0)
        >>> result = loss(torch.eye(8), torch.eye(8))
        >>> float(result["loss"]) >= 0, result["graphs"]
        (True, 2)
    """

    def __init__(self, preset: str = "paper", features: int = 128, **overrides: Any) -> None:
        super().__init__()
        self.options = options_of(preset, overrides)
        form: Any = self.options.message_passing
        dropout, last_relu = self.options.message_dropout, self.options.message_last_relu
        self.message_passing = MessagePassing(features, form, dropout=dropout, last_relu=last_relu) if form else None

    @property
    def uses_maps(self) -> bool:
        """Whether `forward` needs feature maps and their grids."""
        return self.options.alpha < 1.0 or self.options.patch_graphs > 0

    def forward(
        self,
        z1: Tensor,
        z2: Tensor,
        maps: tuple[Tensor, Tensor] | None = None,
        grids: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Loss of a batch of M image pairs.

        Args:
            z1, z2: (M, F) embeddings of the two views; M a multiple of ``nodes_per_graph``.
            maps: (M, C, H, W) feature maps of the two views; needed with alpha < 1 or patch graphs.
            grids: (M, H, W, 2) places of the map positions in the original images; needed with maps.

        Returns:
            "loss": scalar, the fraction of wrongly matched nodes, mean over graphs (half that of images, half that
            of patches where there are patch graphs); "training_accuracy": 1 - loss, of the perturbed matching: with
            a margin it stays near 0 while learning goes well; "matching_accuracy_in_training": the fraction of
            images matched rightly without noise and margin, and "objective_ratio": what that matching reaches, over
            what the true one does; "skipped": share of second solves that need no solving; "graphs", "nodes":
            number of graphs of images, and of nodes in each.

        Raises:
            UserError: M does not fit, or maps are missing.
        """
        if self.uses_maps and (maps is None or grids is None):
            raise UserError(
                f"feature maps or grids are missing with alpha = {self.options.alpha} and "
                f"{self.options.patch_graphs} patch graphs; graph matching loss; "
                "pass maps and grids, or set alpha to 1 and patch_graphs to 0"
            )
        if self.options.gather == "global":
            with _same_random_numbers(z1.device):
                maps, grids = ((gathered(one[0]), gathered(one[1])) if one else None for one in (maps, grids))
                return self._loss(gathered(z1), gathered(z2), maps, grids)
        return self._loss(z1, z2, maps, grids)

    def _loss(
        self, z1: Tensor, z2: Tensor, maps: tuple[Tensor, Tensor] | None, grids: tuple[Tensor, Tensor] | None
    ) -> dict[str, Any]:
        options = self.options
        with torch.autocast(z1.device.type, enabled=False):
            graphs, views = self._graphs(self._cuts(len(z1), options.regroup).to(z1.device), (z1.float(), z2.float()))
            local = None
            if maps is not None and grids is not None:
                maps = maps[0].float(), maps[1].float()
                local = self._local(graphs, maps, grids) if options.alpha < 1.0 else None
            problem = self._problem(graphs, views, options.mode, local)
            loss, skipped = self._distance(problem, graphs.gold, options.mode)
            if options.patch_graphs and maps is not None and grids is not None:
                loss = (loss + self._distance_of_patches(maps, grids)) / 2
        return {
            "loss": loss,
            "training_accuracy": 1.0 - float(loss.detach()),
            **_measures_without_noise(problem, graphs.gold, options.mode),
            "skipped": skipped,
            "graphs": len(graphs.source),
            "nodes": graphs.source.shape[1],
        }

    def stand_in(
        self,
        z1: Tensor,
        z2: Tensor,
        maps: tuple[Tensor, Tensor] | None = None,
        grids: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Any]:
        """`forward` for an estimate of the memory (`engines.memory`): no values are looked at, nothing is exchanged.

        Returns:
            "loss": a scalar that every input has a gradient of; "tables": what a solver and the local term hold.
        """
        options, together = self.options, len(z1) * (processes() if self.options.gather == "global" else 1)
        graphs = options.regroup * max(1, together // (options.nodes_per_graph or together))
        nodes = (options.nodes_per_graph or together) * (1 + options.both_views)
        edges = 0 if options.mode == "linear" else nodes * options.neighbours * (1 + options.symmetric)
        own = options.samples if options.noise_scale_edge else 1
        # Compiled solvers work on the CPU, but in the process's memory all the same where the device is that.
        dtype = z1.dtype if z1.is_cuda else torch.float64
        shapes = [(graphs * options.samples, nodes, nodes), (graphs * own, edges, edges)]
        tables = [torch.zeros(shape, dtype=dtype, device=z1.device) for shape in shapes]
        if maps is not None and options.alpha < 1.0:
            places = nodes * maps[0].shape[2] * maps[0].shape[3]
            tables.append(torch.zeros(places, places, device=z1.device))
        return {"loss": sum(tensor.float().mean() for tensor in (z1, z2, *(maps or ()))), "tables": tables}

    def _cuts(self, images: int, count: int) -> Tensor:
        """(G, N) image numbers of every graph of ``count`` cuts of a batch."""
        problem = self.options.batch_problem(images)
        if problem:
            raise UserError(problem)
        nodes = self.options.nodes_per_graph or images
        if count == 1:
            return torch.arange(images).view(-1, nodes)
        return torch.cat([torch.randperm(images).view(-1, nodes) for _ in range(count)])

    def _distance(self, problem: GraphMatchingProblem, gold: Tensor, mode: str) -> tuple[Tensor, float]:
        """Fraction of wrong nodes of the perturbed matching, and the share of second solves that are known."""
        options = self.options
        statistics: dict[str, float] = {}
        found = match(
            problem,
            gold,
            noise_scale_vertex=options.noise_scale_vertex,
            noise_scale_edge=options.noise_scale_edge * options.edge_weight,
            margin=options.margin,
            lam=options.lam,
            samples=options.samples,
            mode=mode,
            statistics=statistics,
        )
        truth = nn.functional.one_hot(gold, problem.nodes).to(found.dtype)
        # <v, 1 - v*> + <v*, 1 - v> counts every wrong node twice.
        hamming = (found * (1 - truth) + truth * (1 - found)).sum((1, 2))
        return (hamming / (2 * problem.nodes)).mean(), statistics["skipped"]

    def _distance_of_patches(self, maps: tuple[Tensor, Tensor], grids: tuple[Tensor, Tensor]) -> Tensor:
        draws, images = self.options.patch_graphs, len(maps[0])
        first, second = (patches.flatten(0, 1) for patches in patch_pairs(maps, grids, draws))
        cuts = self._cuts(images, draws).to(first.device)
        # One cut for each draw: graphs of draw d hold the rows d M to (d + 1) M of the patches.
        start = torch.arange(draws, device=cuts.device).repeat_interleave(len(cuts) // draws) * images
        graphs, views = self._graphs(cuts + start.unsqueeze(1), (first, second))
        mode = self.options.patch_mode
        return self._distance(self._problem(graphs, views, mode), graphs.gold, mode)[0]

    def _graphs(self, cuts: Tensor, views: tuple[Tensor, Tensor]) -> tuple[_Graphs, tuple[Tensor, Tensor]]:
        if self.options.both_views:
            return _Graphs.of_both_views(cuts, len(views[0])), _on_both_sides(views)
        return _Graphs.of(cuts), views

    def _local(self, graphs: _Graphs, maps: tuple[Tensor, Tensor], grids: tuple[Tensor, Tensor]) -> Tensor:
        source, target = graphs.source, graphs.target
        if self.options.both_views:
            maps, grids = _on_both_sides(maps), _on_both_sides(grids)
        if source.numel() * source.shape[1] > len(maps[0]) ** 2:
            # Several cuts meet most pairs of the batch more than once: each pair of images once.
            whole = local_affinity(maps[0][None], maps[1][None], grids[0][None], grids[1][None], self.options.gamma)
            return whole[0, source.unsqueeze(2), target.unsqueeze(1)]
        return local_affinity(maps[0][source], maps[1][target], grids[0][source], grids[1][target], self.options.gamma)

    def _problem(
        self, graphs: _Graphs, embeddings: tuple[Tensor, Tensor], mode: str, local: Tensor | None = None
    ) -> GraphMatchingProblem:
        options = self.options
        if options.standardise:
            embeddings = _standardised(*embeddings)
        source, target = embeddings[0][graphs.source], embeddings[1][graphs.target]
        edges, real = self._edges(graphs, source, target, mode)
        if self.message_passing is not None:
            source = self.message_passing(source, edges[0], real[0])
            target = self.message_passing(target, edges[1], real[1])
        if options.affinity == "softplus":
            differences = edge_differences(source, edges[0]), edge_differences(target, edges[1])
            vertex = softplus_affinity(source, target)
            both_real = real[0].unsqueeze(2) & real[1].unsqueeze(1)
            edge: Any = torch.where(both_real, options.edge_weight * softplus_affinity(*differences), 0.0)
        else:
            vertex = global_affinity(source, target)
            first, second = (
                torch.where(is_real.unsqueeze(2), edge_directions(nodes, ends), 0.0)
                for nodes, ends, is_real in zip((source, target), edges, real, strict=True)
            )
            edge = options.edge_weight * first, second
        if local is not None:
            vertex = options.alpha * vertex + (1 - options.alpha) * (4 if options.local_sum else 1) * local
        if graphs.same is not None:
            # As far below the lowest as the highest is above it: an exchange with any other node is better.
            low, high = vertex.detach().aminmax()
            vertex = torch.where(graphs.same, 2 * low - high - 10 * options.noise_scale_vertex, vertex)
        return GraphMatchingProblem(vertex, edges[0], edges[1], edge)

    def _edges(self, graphs: _Graphs, source: Tensor, target: Tensor, mode: str) -> tuple[_Pair, _Pair]:
        """Edges of both sides, and which of them are real: not there for the sake of graphs with more edges alone."""
        options = self.options
        if mode == "linear" and self.message_passing is None:
            none = graphs.source.new_zeros(len(graphs.source), 0, 2)
            return (none, none), (none[..., 0].bool(), none[..., 0].bool())
        if options.metric == "cosine":
            source, target = nn.functional.normalize(source, dim=2), nn.functional.normalize(target, dim=2)
        first, is_first = self._edges_of(source)
        if options.target_edges == "own":
            second, is_second = self._edges_of(target)
        else:
            second, is_second = graphs.gold.gather(1, first.flatten(1)).view_as(first), is_first
        return (first, second), (is_first, is_second)

    def _edges_of(self, nodes: Tensor) -> _Pair:
        edges = knn_graph(nodes, self.options.neighbours)
        if self.options.symmetric:
            return symmetric_edges(edges, nodes.shape[1])
        return edges, torch.ones(edges.shape[:2], dtype=torch.bool, device=edges.device)


@dataclass(frozen=True)
class _Graphs:
    """Which rows of the embeddings are the nodes.

    Attributes:
        source, target: (G, N) numbers of the nodes of each source and target graph.
        gold: (G, N) the true assignment between them.
        same: (G, N, N) pairs of a node with itself, which are no match; None where there are none.
    """

    source: Tensor
    target: Tensor
    gold: Tensor
    same: Tensor | None = None

    @staticmethod
    def of(groups: Tensor) -> _Graphs:
        # Position j of the target holds the image groups[shuffle[j]]: the true match is the inverse permutation.
        shuffle = _shuffles(*groups.shape).to(groups.device)
        return _Graphs(groups, groups.gather(1, shuffle), shuffle.argsort(dim=1))

    @staticmethod
    def of_both_views(groups: Tensor, images: int) -> _Graphs:
        """Of (G, N) image numbers, 2N nodes on either side; the second view of image i is node ``images`` + i."""
        nodes = torch.cat([groups, groups + images], dim=1)
        shuffle = _shuffles(*nodes.shape).to(nodes.device)
        places = shuffle.argsort(dim=1)
        same = nn.functional.one_hot(places, nodes.shape[1]).bool()
        return _Graphs(nodes, nodes.gather(1, shuffle), places.roll(groups.shape[1], dims=1), same)


def _on_both_sides(views: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The rows of both views, twice."""
    both = torch.cat(views)
    return both, both


def _standardised(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(M, F) features of two views with mean 0 and variance 1 over both."""
    both = nn.functional.batch_norm(torch.cat([first, second]), None, None, training=True)
    return both[: len(first)], both[len(first) :]


@torch.no_grad()
def _measures_without_noise(problem: GraphMatchingProblem, gold: Tensor, mode: str) -> dict[str, float]:
    found = solve(problem, "linear" if mode == "linear" else "fast")
    ratio = problem.objective(found).sum() / problem.objective(gold).sum()
    return {"matching_accuracy_in_training": float((found == gold).double().mean()), "objective_ratio": float(ratio)}


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Within, all processes draw the same numbers on the CPU and the device; afterwards each goes on with its own."""
    seed = torch.randint(2**62, (1,))
    if processes() > 1:
        seed = seed.to(device if distributed.get_backend() == "nccl" else seed.device)
        distributed.broadcast(seed, 0)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield


def _shuffles(graphs: int, nodes: int, generator: torch.Generator | None = None) -> Tensor:
    """(G, N) a random order of nodes for each graph.

    The true match of two graphs in the same order is the identity, which ties and index-ordered starts would favour.
    """
    return torch.rand(graphs, nodes, generator=generator).argsort(dim=1)


@torch.no_grad()
def matching_accuracy(
    z1: Tensor,
    z2: Tensor,
    nodes_per_graph: int = 16,
    *,
    neighbours: int = 5,
    edge_weight: float = 1.0,
    mode: str = "default",
    draws: int = 4,
    seed: int = 0,
) -> float:
    """Fraction of images matched to their other view, without noise and margin, in random groups (chance: 1/N).

    Args:
        z1, z2: (M, F) embeddings of the two views of M >= ``nodes_per_graph`` images.
        mode: of the solver; "linear" leaves the edges out.
        draws: how often the images are cut into random groups; images beyond a multiple of the group size sit out.
        seed: of the groups and node orders.

    Raises:
        UserError: fewer images than nodes.
    """
    images = len(z1)
    if images < nodes_per_graph:
        raise UserError(
            f"{images} images for graphs of {nodes_per_graph}; matching accuracy; "
            "hold out more images or use smaller graphs"
        )
    generator = torch.Generator().manual_seed(seed)
    kept = images - images % nodes_per_graph
    orders = [torch.randperm(images, generator=generator)[:kept].view(-1, nodes_per_graph) for _ in range(draws)]
    groups = torch.cat(orders)
    shuffle = _shuffles(len(groups), nodes_per_graph, generator)
    left, right = z1.float().cpu()[groups], z2.float().cpu()[groups.gather(1, shuffle)]
    edges = knn_graph(left, neighbours), knn_graph(right, neighbours)
    affinity = edge_weight * edge_affinity(left, right, *edges)
    problem = GraphMatchingProblem(global_affinity(left, right), *edges, affinity)
    return float((solve(problem, mode) == shuffle.argsort(dim=1)).double().mean())
