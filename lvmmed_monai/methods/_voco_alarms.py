"""What goes wrong in a VoCo training, told from its curves and monitors in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from lvmmed_monai.losses.volume_contrast import Mode, position_loss
from lvmmed_monai.methods._alarms import RecentCurves

__all__ = ["BlindLevels", "blind_levels", "voco_alarms"]

# Places of a crop from which the levels are computed, at most.
_PLACES = 2**14
# An intra loss from this share of the blind level up counts as not learnt, below `_LEARNT` of it as learnt.
_STUCK, _LEARNT = 0.97, 0.8
# A fall of less than this share between the halves of the recent part counts as standing still.
_STILL = 0.05
# So much above the accuracy of a blind answer counts as blind.
_BLIND = 1.1
# Base term (squared cosine) and spread of collapsed embeddings; base term of orthogonal ones.
_ALIKE, _NO_SPREAD, _NO_OVERLAP = 0.25, 0.2, 0.01
# 1 - cosine of student and teacher, healthy is below 0.15; and how often its first value is too much.
_NOISE, _GROWN = 0.25, 3
# Share of base crops that show air.
_EMPTY = 0.1


@dataclass(frozen=True)
class BlindLevels:
    """Intra losses of answers that do not look at the crop, the mean over all places of a crop.

    Attributes:
        zero: similarity 0 to every base.
        constant: the best one similarity to all bases.
        vector: the best fixed similarity to each base.
        gap: of that vector, the mean similarity to bases that a crop overlaps less that to those it does not.
        accuracy: how often the best one base is the one that a crop lies in most.
    """

    zero: float
    constant: float
    vector: float
    gap: float
    accuracy: float


def _all_labels(grid: Sequence[int], edge: int) -> Tensor:
    """Labels of crops at every place, or at `_PLACES` of them: (N, 1, n), products of the shares along the axes."""
    extents = [max(1, (cells - 1) * edge) for cells in grid]
    numbers = np.arange(math.prod(extents))
    if len(numbers) > _PLACES:
        numbers = np.random.default_rng(0).choice(numbers, _PLACES, replace=False)
    labels = torch.ones(len(numbers), 1, dtype=torch.float64)
    for cells, places in zip(grid, np.unravel_index(numbers, extents), strict=True):
        distance = torch.from_numpy(places / edge).unsqueeze(1) - torch.arange(cells)
        labels = torch.einsum("pn,pc->pnc", labels, (1 - distance.abs()).clamp_min(0)).flatten(1)
    return labels.unsqueeze(1)


@lru_cache
def blind_levels(grid: tuple[int, ...], edge: int, mode: Mode) -> BlindLevels:
    """`BlindLevels` of a grid of base crops, crops of an edge in voxels, and a form of the loss."""
    labels = _all_labels(grid, edge)
    count = labels.shape[-1]

    def loss(answer: Tensor) -> float:
        return float(position_loss(labels, answer.expand_as(labels), mode, floor=1e-6))

    def best(answer_of: Callable[[float], Tensor]) -> float:
        return float(minimize_scalar(lambda x: loss(answer_of(x)), bounds=(0, 0.999), options={"xatol": 5e-3}).x)

    zero = torch.zeros(count, dtype=torch.float64)
    constant = zero + best(lambda x: zero + x)
    # No term of the loss holds two similarities: each is found on its own.
    unit = torch.eye(count, dtype=torch.float64)
    vector = torch.tensor([best(partial(torch.mul, one)) for one in unit])
    answers = vector.expand_as(labels)
    gap = answers[labels > 0].mean() - answers[labels == 0].mean()
    most = (labels >= labels.amax(-1, keepdim=True)).double().mean((0, 1)).max()
    return BlindLevels(loss(zero), loss(constant), loss(vector), float(gap), float(most))


def voco_alarms(history: Mapping[str, Any], grid: Sequence[int], edge: int, mode: Mode) -> list[str]:
    """What is going wrong in a run: one sentence each, with the likely causes and what to do; empty when all is well.

    Thresholds are experience, but for the levels that `blind_levels` computes. A verdict needs 25 points of the curves
    after the warm-up.

    Args:
        history: of `engines.Pretrainer`.
        grid: base crops along the axes.
        edge: of a crop in voxels.
        mode: form of the loss.
    """
    recent = RecentCurves(history)
    if not recent.enough:
        return []
    run = _Run(recent, blind_levels(tuple(grid), edge, mode), mode)
    why_not = next((found for rule in _NOT_LEARNING if (found := rule(run))), None)
    others = [_empty_bases(run), _runaway_student(run), _shortcut(run, history)]
    return [sentence for sentence in (why_not, *others) if sentence]


@dataclass(frozen=True)
class _Run:
    recent: RecentCurves
    levels: BlindLevels
    mode: Mode

    @property
    def intra(self) -> float:
        return self.recent.median("intra")

    @property
    def stuck(self) -> bool:
        """Whether the intra loss is no better than an answer that does not look at the crop."""
        return self.intra >= _STUCK * self.levels.vector


def _collapse(run: _Run) -> str | None:
    base, spread = run.recent.mean("base"), run.recent.mean("embedding_spread")
    # In the paper's form the term is the cosine, in the others its square.
    alike = base > (_ALIKE**0.5 if run.mode == "paper" else _ALIKE)
    if not run.stuck or not (alike or spread < _NO_SPREAD):
        return None
    return (
        f"the embeddings collapse: base crops look alike to the network (base term {base:.2f}, 1 when all are equal; "
        f"spread {spread:.2f}, 1 when healthy) and the intra loss is {run.intra:.2f}; likely causes: nothing removes "
        "what all crops of a volume share (a projector that normalises each crop instead of each volume), a high "
        "learning rate; standardise over the crops of a volume, lower learning_rate"
    )


def _orthogonal(run: _Run) -> str | None:
    base = run.recent.mean("base")
    if base > _NO_OVERLAP or run.intra < _STUCK * run.levels.zero:
        return None
    return (
        f"every crop is orthogonal to every other: the base term is {base:.3f} and the intra loss stands at "
        f"{run.intra:.2f}, what similarity 0 to all bases costs ({run.levels.zero:.2f}); likely cause: the base term "
        "outweighs the intra term; let gradients pass through the bases (base_gradient), lower learning_rate"
    )


def _drowned(run: _Run) -> str | None:
    noise = run.recent.first("teacher_distance")
    if not run.stuck or not noise > _NOISE:
        return None
    return (
        f"dropout drowns the position: at the first step, where the teacher is a copy of the student, dropout alone "
        f"made their embeddings differ by {noise:.2f} (1 - cosine), and the intra loss has stood at {run.intra:.2f} "
        f"for {run.recent.steps} steps; likely cause: a high rate, or dropout on features that are not standardised; "
        "set dropout to 0.1 or 0 and apply it after the standardisation"
    )


def _plateau(run: _Run) -> str | None:
    still = run.recent.drift("intra") > -_STILL * run.intra
    accuracy = run.recent.mean("argmax_accuracy")
    blind = accuracy <= _BLIND * run.levels.accuracy
    separated = run.recent.mean("positive_logit") - run.recent.mean("zero_logit") > run.levels.gap
    if not (run.stuck and still and blind) or separated:
        return None
    return (
        f"intra loss has stood at {run.intra:.2f} for {run.recent.steps} steps: the network ignores position; answers "
        f"that do not look at the crop reach {run.levels.vector:.2f} to {run.levels.constant:.2f} on this grid, and "
        f"the right base is found in {accuracy:.0%} of the crops (always the same base: {run.levels.accuracy:.0%}); "
        "likely causes: a learning rate far too low or too high, volumes that look the same everywhere (check the "
        "intensity window), labels that do not belong to the crops; try learning_rate 1e-4 to 1e-3, base_gradient, "
        "more volumes or more steps"
    )


# The first that holds explains why a run does not learn.
_NOT_LEARNING = (_collapse, _orthogonal, _drowned, _plateau)


def _empty_bases(run: _Run) -> str | None:
    share = run.recent.mean("empty_bases")
    if not share > _EMPTY:
        return None
    return (
        f"{share:.0%} of the base crops show air and are left out; likely causes: blocks larger than the body, or an "
        "intensity window that turns tissue into air; use a smaller grid, crop_size or spacing, and check the window"
    )


def _runaway_student(run: _Run) -> str | None:
    distance, first = run.recent.mean("teacher_distance"), run.recent.first("teacher_distance")
    if not (distance > _NOISE and distance > _GROWN * first):
        return None
    return (
        f"the student runs away from its teacher: their embeddings differ by {distance:.2f} (1 - cosine), by "
        f"{first:.2f} at the start; likely causes: a learning rate too high, a momentum too near 1; lower "
        "learning_rate or momentum"
    )


def _shortcut(run: _Run, history: Mapping[str, Any]) -> str | None:
    step, held_out = history["monitors"][-1] if history["monitors"] else (0, {})
    scores = ("correlation_aug", "argmax_accuracy_aug")
    known = all(name in held_out and f"histogram_{name}" in held_out for name in scores)
    learnt = run.intra < _LEARNT * run.levels.vector
    if not (known and learnt) or 2 * step < history["total_steps"]:
        return None
    if any(held_out[name] > held_out[f"histogram_{name}"] for name in scores):
        return None
    return (
        f"in training the intra loss is good ({run.intra:.2f}), but on held-out volumes with augmented crops the "
        f"network tells positions no better than grey-value histograms (accuracy {held_out[scores[1]]:.2f} against "
        f"{held_out['histogram_' + scores[1]]:.2f}); likely causes: it recognises the voxels that overlapping crops "
        "share, or the few training volumes by heart; augment each crop, add volumes, train longer"
    )
