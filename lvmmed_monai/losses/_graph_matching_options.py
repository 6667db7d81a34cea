"""Options of the graph matching loss, and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lvmmed_monai.errors import UserError

__all__ = ["PRESETS", "GraphMatchingOptions", "options_of"]

_CHOICES = {
    "gather": ("local", "global"),
    "metric": ("euclidean", "cosine"),
    "target_edges": ("own", "source"),
    "affinity": ("cosine", "softplus"),
}


@dataclass(frozen=True)
class GraphMatchingOptions:
    """Settings of the loss; the defaults are the paper's, where it states them.

    Attributes:
        nodes_per_graph: images per graph; None makes one graph of all images of a batch.
        both_views: both views of the images are nodes of either graph. The true match of a node is the other view of
            its image; a node is no match of itself. Views of one side are told apart, too, as InfoNCE does.
        neighbours: out-edges per node of the kNN graphs, fewer than ``nodes_per_graph``; unused in mode "linear".
        metric: of the neighbours, "euclidean" or "cosine".
        target_edges: "own": each view has its own neighbours; "source": the second view has the first one's, which
            tells the matching where edges are true.
        symmetric: join a pair of nodes both ways where either is among the other's neighbours; the objective then
            counts the pair twice.
        affinity: of embeddings and of edges, "cosine" or "softplus" of the inner product, less a half.
        standardise: bring each feature, of embeddings and of patches, to mean 0 and variance 1 over the batch.
        alpha: weight of the global against the local vertex affinity; 1 leaves feature maps unused.
        gamma: positions kept in the local matching by place; None keeps all.
        local_sum: the local affinity is the sum of its four terms, as the paper's equation has it, not their mean.
        edge_weight: factor of the edge affinities.
        noise_scale_vertex, noise_scale_edge: Gumbel noise on the affinities.
        margin: subtracted from the vertex affinity of true pairs.
        lam: step of the backward pass; the direction has unit maximum.
        samples: noise samples per graph.
        message_passing: None, "gcn", "residual" or "sum" graph convolutions before the affinities.
        message_dropout: of the features between them.
        message_last_relu: ReLU after the last of them, too, as the paper's equation has it. Off by default, also in the
            preset "paper": with "gcn" cosines of nodes would never be negative.
        regroup: how often a batch is cut into groups; 1 takes consecutive images, more take random groups.
        patch_graphs: further cuts of the batch into graphs whose nodes are patches, one of each image, that both of
            its views show (`graph_matching.patch_pairs`). They use the feature maps and weigh as much as the others.
        mode: of the solver; "linear" matches by the nodes alone.
        patch_mode: the same for graphs of patches.
        gather: "local" makes graphs of a process's own images: graphs, `standardise`, noise and groups are then its
            own, and several processes learn something else than one with their images together. "global" makes them
            of the images of all processes, which then all compute the same loss with the numbers of the first;
            gradients go back to the process that an image belongs to, and the result is that of one process.
            What the encoder does by process stays so: batch statistics (but see ``sync_batch_norm``), dropout.
    """

    nodes_per_graph: int | None = 16
    both_views: bool = False
    neighbours: int = 5
    metric: str = "euclidean"
    target_edges: str = "own"
    symmetric: bool = False
    affinity: str = "cosine"
    standardise: bool = False
    alpha: float = 0.8
    gamma: int | None = 20
    local_sum: bool = False
    edge_weight: float = 1.0
    noise_scale_vertex: float = 1.0
    noise_scale_edge: float = 1.0
    margin: float = 0.0
    lam: float = 80.0
    samples: int = 1
    message_passing: str | None = "gcn"
    message_dropout: float = 0.0
    message_last_relu: bool = False
    regroup: int = 1
    patch_graphs: int = 0
    mode: str = "default"
    patch_mode: str = "linear"
    gather: str = "local"

    def batch_problem(self, images: int) -> str | None:
        """Why a batch of so many images cannot be cut into graphs, as a `UserError` says it; None if it can."""
        nodes = self.nodes_per_graph or max(images, 1)
        if images and images % nodes == 0:
            return None
        below, above = images // nodes * nodes, (images // nodes + 1) * nodes
        fits = f"{below} or {above}" if below else f"{above}"
        return (
            f"a batch of {images} images cannot be cut into graphs of {nodes}; graph matching loss; "
            f"use a batch size of {fits}, or another nodes_per_graph"
        )


#: "paper": the published form; from random weights it learnt nothing in runs of some hundred steps. "draft": the
#: unfinished trainer in a later repository of the same group, as far as it can be told. "recommended": what the
#: study in `docs/graph_matching.md` led to.
PRESETS: dict[str, GraphMatchingOptions] = {
    "paper": GraphMatchingOptions(),
    "draft": GraphMatchingOptions(
        nodes_per_graph=10,
        affinity="softplus",
        alpha=0.75,
        edge_weight=0.5,
        noise_scale_vertex=0.0,
        noise_scale_edge=0.0,
        margin=1.0,
        message_passing="sum",
        message_dropout=0.5,
    ),
    "recommended": GraphMatchingOptions(
        nodes_per_graph=None,
        both_views=True,
        standardise=True,
        alpha=1.0,
        noise_scale_vertex=0.1,
        noise_scale_edge=0.0,
        samples=8,
        message_passing=None,
        patch_graphs=4,
        mode="linear",
    ),
}


def options_of(preset: str, overrides: Mapping[str, Any]) -> GraphMatchingOptions:
    """A preset with some options changed.

    Raises:
        UserError: an unknown preset or option, or options that contradict each other.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; graph matching loss; choose one of {', '.join(PRESETS)}")
    names = {field.name for field in fields(GraphMatchingOptions)}
    unknown = sorted(overrides.keys() - names)
    if unknown:
        raise UserError(f"unknown option {unknown[0]!r}; graph matching loss; choose among {', '.join(sorted(names))}")
    options = replace(PRESETS[preset], **overrides)
    _check(options)
    return options


def _check(options: GraphMatchingOptions) -> None:
    for name, choices in _CHOICES.items():
        if getattr(options, name) not in choices:
            raise UserError(
                f"{name} = {getattr(options, name)!r}; graph matching loss; choose {' or '.join(map(repr, choices))}"
            )
    nodes = options.nodes_per_graph
    most = options.neighbours + 1 if nodes is None else nodes * (1 + options.both_views)
    if options.mode != "linear" and not 1 <= options.neighbours < most:
        raise UserError(
            f"{options.neighbours} neighbours in graphs of {nodes} nodes; graph matching loss; "
            "give at least 1 neighbour and more nodes than neighbours"
        )
    if options.patch_graphs and options.message_passing:
        raise UserError(
            f"message_passing = {options.message_passing!r} with patch_graphs = {options.patch_graphs}; graph matching "
            "loss; patches have the width of the feature map, so leave one of them out"
        )
    if not 0.0 <= options.alpha <= 1.0 or options.regroup < 1 or options.patch_graphs < 0:
        raise UserError(
            f"alpha = {options.alpha}, regroup = {options.regroup}, patch_graphs = {options.patch_graphs}; "
            "graph matching loss; give alpha between 0 and 1, regroup of at least 1 and no negative patch_graphs"
        )
