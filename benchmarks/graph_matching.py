"""Quality and speed of the matching solvers: gap to the best known objective, time, ratio to a linear assignment.

Instances resemble two views of a batch of images, with neighbouring slices and the noise of training; they are made
from seeds alone. The gap is (best known - found) / |best known|, mean over 20 instances; a negative gap is a better
solution than any known before. Times are those of one thread, the least of some repetitions, per problem; the ratio is
to `scipy.optimize.linear_sum_assignment` on the same vertex affinities in the same run, to be trusted more than the
milliseconds.

Example:
    python benchmarks/graph_matching.py --sets medium/16 hard/16 --backends numba torch --others 10
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from other_matchers import other_solvers
from scipy.optimize import linear_sum_assignment

from lvmmed_monai.errors import UserError
from lvmmed_monai.graph_matching import GraphMatchingProblem, solve
from lvmmed_monai.graph_matching.solver import MODES
from lvmmed_monai.results import new_results, write_results

BEST_KNOWN = json.loads(Path(__file__).with_name("graph_matching_best_known.json").read_text())
SEEDS = 20
NEIGHBOURS = 5
EDGE_WEIGHT = 0.5
#: level: number in the seed, noise of a view, slices of a volume, Gumbel scale on vertices, on edges.
LEVELS = {"easy": (1, 0.1, 1, 0.05, 0.0), "medium": (2, 0.8, 2, 0.10, 0.10), "hard": (3, 1.0, 4, 0.50, 0.50)}
DIMENSIONS, RANK, MEAN = 128, 24, 2.0


# -- instances --------------------------------------------------------------------------------------------------------


def views(nodes: int, sigma: float, slices: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Two views (nodes, 128) of images that come in volumes of ``slices``, rows of unit length.

    A shared mean direction makes all cosines positive, as those of an untrained network are.
    """
    volume = np.arange(nodes) // slices
    centres = rng.standard_normal((volume[-1] + 1, RANK))
    drift = 0.3 * rng.standard_normal((nodes, RANK))
    images = centres[volume] + (drift if slices > 1 else 0.0)
    basis = np.linalg.qr(rng.standard_normal((DIMENSIONS, RANK + 1)))[0].T
    found = []
    for _ in range(2):
        latent = images + sigma * rng.standard_normal((nodes, RANK))
        view = MEAN * basis[-1] + latent @ basis[:RANK] / np.sqrt(RANK)
        view = view + 0.02 * rng.standard_normal((nodes, DIMENSIONS)) / np.sqrt(DIMENSIONS)
        found.append(view / np.linalg.norm(view, axis=1, keepdims=True))
    return found


def neighbour_edges(view: np.ndarray) -> np.ndarray:
    """(E, 2) edges to the nearest others; ties, to 12 digits, go by number."""
    nodes, k = len(view), min(NEIGHBOURS, len(view) - 1)
    distance = 2.0 - 2.0 * (view @ view.T)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(np.round(distance, 12), axis=1, kind="stable")[:, :k]
    return np.stack([np.repeat(np.arange(nodes), k), nearest.ravel()], axis=1)


def directions(view: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(E, 128) unit differences along edges."""
    difference = view[edges[:, 0]] - view[edges[:, 1]]
    return difference / np.maximum(np.linalg.norm(difference, axis=1, keepdims=True), 1e-8)


def instance(level: str, nodes: int, seed: int) -> tuple[np.ndarray, ...]:
    """Vertex affinity, source edges, target edges, edge affinity."""
    number, sigma, slices, vertex_noise, edge_noise = LEVELS[level]
    rng = np.random.default_rng([number, nodes, seed, 7919])
    left, right = views(nodes, sigma, slices, rng)
    source, target = neighbour_edges(left), neighbour_edges(right)
    vertex = left @ right.T
    edge = EDGE_WEIGHT * directions(left, source) @ directions(right, target).T
    if vertex_noise:
        vertex = vertex + rng.gumbel(0.0, vertex_noise, vertex.shape)
    if edge_noise:
        edge = edge + EDGE_WEIGHT * rng.gumbel(0.0, edge_noise, edge.shape)
    return vertex, source, target, edge


def problem_of(level: str, nodes: int, dtype: torch.dtype = torch.float64) -> GraphMatchingProblem:
    """All instances of a set as one batch.

    Raises:
        UserError: this machine's libraries draw other instances than those whose best values are known.
    """
    parts = [np.stack(part) for part in zip(*[instance(level, nodes, seed) for seed in range(SEEDS)], strict=True)]
    vertex, source, target, edge = (torch.from_numpy(part) for part in parts)
    problem = GraphMatchingProblem(vertex, source, target, edge)
    reached = problem.objective(solve(problem, "linear", "numba")).numpy()
    if not np.allclose(reached, BEST_KNOWN["linear"][f"{level}/{nodes}"][:SEEDS], atol=2e-6):
        raise UserError(f"other instances than the known ones; {level}/{nodes}; check numpy and its LAPACK")
    return GraphMatchingProblem(vertex.to(dtype), source, target, edge.to(dtype))


# -- measuring --------------------------------------------------------------------------------------------------------


def least_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The least time of some calls, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def linear_seconds(vertex: np.ndarray) -> float:
    """Seconds of scipy's linear assignment, per problem."""
    loops = max(1, 2000 // vertex.shape[1] ** 2)

    def work() -> None:
        for _ in range(loops):
            for gain in vertex:
                linear_sum_assignment(gain, maximize=True)

    return least_seconds(work, 5) / loops / len(vertex)


def measure(name: str, mode: str, backend: str, copies: int) -> dict[str, float]:
    """Gap, worst gap, share of best values, milliseconds and ratio of one setting."""
    level, nodes = name.split("/")
    exact = problem_of(level, int(nodes))
    problem = problem_of(level, int(nodes), torch.float32) if backend == "torch" else exact
    best = np.array(BEST_KNOWN["values"][name][:SEEDS])
    gap = (best - exact.objective(solve(problem, mode, backend)).numpy()) / np.abs(best)
    batch = repeated(problem, copies if backend == "torch" else 1)
    slow = int(nodes) * MODES[mode] > 1000
    seconds = least_seconds(lambda: solve(batch, mode, backend), 2 if slow else 7) / batch.batch_size
    return row_of(gap, seconds, linear_seconds(exact.vertex_affinity.numpy()))


def measure_others(name: str, problems: int) -> Iterator[tuple[str, dict[str, float]]]:
    """The same of the first few problems of a set by each solver of another project that is installed."""
    level, nodes = name.split("/")
    exact = problem_of(level, int(nodes))
    best = np.array(BEST_KNOWN["values"][name][:problems])
    linear = linear_seconds(exact.vertex_affinity.numpy())
    for solver, prepare in other_solvers(int(nodes)).items():
        assignments, times = [], []
        for seed in range(problems):
            run = prepare(*instance(level, int(nodes), seed))
            assignments.append(run())
            times.append(least_seconds(run, 2))
        given = GraphMatchingProblem(*(part[:problems] for part in parts_of(exact)))
        gap = (best - given.objective(torch.from_numpy(np.stack(assignments))).numpy()) / np.abs(best)
        yield solver, row_of(gap, float(np.mean(times)), linear)


def row_of(gap: np.ndarray, seconds: float, linear: float) -> dict[str, float]:
    """Figures of a row: gaps of the problems, seconds per problem, seconds of a linear assignment."""
    return {
        "gap": float(gap.mean()),
        "worst": float(gap.max()),
        "best": float((gap < 1e-6).mean()),
        "ms": 1e3 * seconds,
        "ratio": seconds / linear,
    }


def parts_of(problem: GraphMatchingProblem) -> tuple[torch.Tensor, ...]:
    """What a problem is made of, the edge affinity as a table."""
    return problem.vertex_affinity, problem.source_edges, problem.target_edges, problem.edge_table()


def repeated(problem: GraphMatchingProblem, copies: int) -> GraphMatchingProblem:
    """The batch ``copies`` times over: tensor backends need large ones."""
    return GraphMatchingProblem(*(part.repeat(copies, 1, 1) for part in parts_of(problem)))


def rows_of(name: str, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, float], int]]:
    """Solver, figures and number of problems of every row of a set."""
    for backend in options.backends:
        for mode in options.modes:
            yield f"{backend} {mode}", measure(name, mode, backend, options.copies), SEEDS
    for solver, row in measure_others(name, options.others) if options.others else ():
        yield solver, row, options.others


def main() -> None:
    """Measure every setting and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(BEST_KNOWN["values"], key=lambda name: (int(name.split("/")[1]), name))
    parser.add_argument("--sets", nargs="+", choices=known, default=known, help="level/nodes", metavar="SET")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES), help="modes of the solver")
    parser.add_argument("--backends", nargs="+", choices=["numba", "torch", "scipy"], default=["numba"])
    parser.add_argument("--copies", type=int, default=13, help="how often the torch backend gets the 20 problems")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--others", type=int, default=0, help="problems of each set for other projects' solvers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = new_results("benchmark", "graph_matching", seed=0)
    print(f"{'set':<12}{'solver':<18}{'gap %':>9}{'worst %':>9}{'best':>7}{'ms':>10}{'x scipy':>9}")
    for name in options.sets:
        for solver, row, count in rows_of(name, options):
            images = int(name.split("/")[1]) / row["ms"] * 1e3
            print(
                f"{name:<12}{solver:<18}{100 * row['gap']:>9.4f}{100 * row['worst']:>9.3f}"
                f"{row['best']:>7.0%}{row['ms']:>10.4f}{row['ratio']:>9.1f}   {images:,.0f} images/s",
                flush=True,
            )
            for key, value in row.items():
                metric = {"value": value, "n": count, "interval": None, "higher_is_better": key == "best"}
                results["metrics"][f"{name}/{solver}/{key}"] = metric
    if options.out:
        write_results(options.out, results)


if __name__ == "__main__":
    main()
