"""Solutions of the benchmark's instances beside the best that are known, found elsewhere by other solvers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lvmmed_monai.graph_matching import solve


@pytest.fixture
def benchmark(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = repository / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location("benchmark_graph_matching", folder / "graph_matching.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("medium/16", {"fast": 0.01, "default": 0.0005, "thorough": 1e-6}),
        ("hard/16", {"fast": 0.04, "default": 0.01, "thorough": 0.0005}),
        ("medium/32", {"fast": 0.02, "default": 0.004}),
    ],
)
def test_mean_gap_to_the_best_known(benchmark: ModuleType, name: str, limits: dict[str, float]) -> None:
    level, nodes = name.split("/")
    problem = benchmark.problem_of(level, int(nodes))
    best = np.array(benchmark.BEST_KNOWN["values"][name][: benchmark.SEEDS])
    for mode, limit in limits.items():
        gap = (best - problem.objective(solve(problem, mode)).numpy()) / np.abs(best)
        assert gap.mean() <= limit, mode
        if mode == "thorough" and level == "medium":
            assert gap.max() <= limit


def test_tensors_reach_the_quality_of_the_compiled_solver(benchmark: ModuleType) -> None:
    problem = benchmark.problem_of("medium", 16)
    best = np.array(benchmark.BEST_KNOWN["values"]["medium/16"][: benchmark.SEEDS])
    gap = (best - problem.objective(solve(problem, "fast", "torch")).numpy()) / np.abs(best)
    assert gap.mean() <= 0.01
