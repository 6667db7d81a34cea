"""Second-order graph matching: the problem, kNN graphs, affinities, solvers and the differentiable layer."""

from lvmmed_monai.graph_matching.affinity import (
    edge_affinity,
    edge_differences,
    edge_directions,
    global_affinity,
    local_affinity,
    softplus_affinity,
)
from lvmmed_monai.graph_matching.build import MessagePassing, knn_graph, patch_pairs, symmetric_edges
from lvmmed_monai.graph_matching.imle import match
from lvmmed_monai.graph_matching.problem import GraphMatchingProblem
from lvmmed_monai.graph_matching.solver import BACKENDS, MODES, solve, solver_seconds

__all__ = [
    "BACKENDS",
    "MODES",
    "GraphMatchingProblem",
    "MessagePassing",
    "edge_affinity",
    "edge_differences",
    "edge_directions",
    "global_affinity",
    "knn_graph",
    "local_affinity",
    "match",
    "patch_pairs",
    "softplus_affinity",
    "solve",
    "solver_seconds",
    "symmetric_edges",
]
