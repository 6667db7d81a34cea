"""What goes wrong in a training by graph matching, told from its curves in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lvmmed_monai.methods._alarms import RecentCurves

__all__ = ["lvm_med_alarms"]

# Spread of the features over its first value, and by itself, below which they count as collapsed.
_COLLAPSED, _NO_SPREAD = 0.1, 1e-3
# So much above chance counts as chance.
_CHANCE = 1.5
# A loss of this share of the first one counts as standing where it began, such a gain of accuracy as learning, and such
# a loss of accuracy as unlearning.
_STILL, _GAIN, _UNLEARNT = 0.97, 0.03, 0.1
# Gradient norms over those of the beginning that count as exploding, and norms that count as none.
_EXPLODED, _NO_GRADIENT = 20.0, 1e-8
# A loss below this leaves nothing to learn, so no gradient is needed.
_LEARNT = 0.02
# So far above the true matching's objective the found one counts as beating it.
_BEATEN = 1.02
# A loss may stand for a while at first: it is judged after half of a run, or so many steps.
_PATIENCE = 1000
# Batches in a pass over the pictures that are too few.
_FEW_BATCHES = 4


@dataclass(frozen=True)
class _Run:
    recent: RecentCurves
    chance: float
    total_steps: int

    @property
    def accuracy(self) -> float:
        return self.recent.mean("matching_accuracy_in_training")

    @property
    def gain(self) -> float:
        """Accuracy now over that of the first steps."""
        return self.accuracy - self.recent.beginning("matching_accuracy_in_training")


def lvm_med_alarms(history: Mapping[str, Any], *, chance: float, pictures: int, batch: int) -> list[str]:
    """What is going wrong in a run: one sentence each, with the likely causes and what to do; empty when all is well.

    Thresholds are experience. But for the number of pictures, a verdict needs 25 points of the curves after the
    warm-up.

    Args:
        history: of `engines.Pretrainer`.
        chance: accuracy of a matching at random in training.
        pictures: trained on; 0 where it is not known.
        batch: pictures of a step, of all processes whose pictures are matched together.
    """
    found = [_few_pictures(pictures, batch)]
    recent = RecentCurves(history)
    if recent.enough:
        run = _Run(recent, chance, history["total_steps"])
        found += [next((sentence for rule in _NOT_LEARNING if (sentence := rule(run))), None), _exploding(run)]
    return [sentence for sentence in found if sentence]


def _collapse(run: _Run) -> str | None:
    now, first = run.recent.median("embedding_spread"), run.recent.beginning("embedding_spread")
    if not (now < _NO_SPREAD or now < _COLLAPSED * first) or run.gain > _GAIN:
        return None
    return (
        f"the features collapse: pictures of a batch look alike to the network (spread {now:.2g}, {first:.2g} at the "
        "start); likely causes: a high learning rate, a high weight decay; lower learning_rate or weight_decay"
    )


def _no_gradient(run: _Run) -> str | None:
    if not run.recent.median("gradient_norm") < _NO_GRADIENT or run.recent.median("loss") < _LEARNT:
        return None
    return (
        f"the gradient is zero while the loss is {run.recent.median('loss'):.2f}: nothing is learnt; likely causes: a "
        "step of the matching layer (lam) too small to change a matching, an encoder that gives zeros; raise lam, "
        "lower learning_rate"
    )


def _at_chance(run: _Run) -> str | None:
    if not run.accuracy <= _CHANCE * run.chance:
        return None
    return (
        f"matching is at chance for {run.recent.steps} steps: right in {run.accuracy:.1%} without noise, "
        f"{run.chance:.1%} at random; likely causes: views that share nothing (crops too small, changes too strong), "
        "pictures that all look the same (check the intensities), a learning rate far too high; raise views#area, "
        "lower learning_rate"
    )


def _beaten(run: _Run) -> str | None:
    ratios = run.recent.values("objective_ratio")
    always = len(ratios) > 0 and ratios.min() > _BEATEN
    if not always or run.gain > -_UNLEARNT:
        return None
    return (
        f"the solver's matching beats the true one in each of {run.recent.steps} steps (objective "
        f"{run.recent.median('objective_ratio'):.2f} times that of the truth), and is right less often than at the "
        f"start ({run.accuracy:.0%}, {run.accuracy - run.gain:.0%} then): pictures look more alike to the network than "
        "two views of one; likely causes: a learning rate or weight decay far too high; lower them"
    )


def _flat(run: _Run) -> str | None:
    loss, first = run.recent.median("loss"), run.recent.beginning("loss")
    early = run.recent.last < min(run.total_steps // 2, _PATIENCE)
    if early or loss < _LEARNT or loss < _STILL * first or run.gain > _GAIN:
        return None
    return (
        f"the loss is flat: {loss:.2f} for {run.recent.steps} steps, {first:.2f} at the start; likely causes: a "
        "learning rate far too low, or a preset that learns slowly from random weights ('paper'); raise "
        "learning_rate, use preset 'recommended' or a pretrained_encoder"
    )


# The first that holds explains why a run does not learn.
_NOT_LEARNING = (_collapse, _no_gradient, _at_chance, _beaten, _flat)


def _exploding(run: _Run) -> str | None:
    now, first = run.recent.median("gradient_norm"), run.recent.beginning("gradient_norm")
    if not now > _EXPLODED * first:
        return None
    return (
        f"the gradient explodes: its norm is {now:.2g}, {first:.2g} at the start; likely causes: a high learning "
        "rate, weights that shrink (weight decay) or grow without bound; lower learning_rate or weight_decay, set "
        "clip_norm"
    )


def _few_pictures(pictures: int, batch: int) -> str | None:
    if not 0 < pictures < _FEW_BATCHES * batch:
        return None
    return (
        f"few pictures: {pictures} for batches of {batch}, so that a picture meets the same others again and again "
        "and the network may learn them by heart; add datalists or planes, or lower batch_size"
    )
