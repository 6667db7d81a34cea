"""What goes wrong with pseudo labels, read off a run's history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["omni_alarms"]

# Points of a curve that a verdict needs, and looks at.
_POINTS = 25
_HARDLY_ANY = 1e-3
_FALL = 0.1


def _recent(history: Mapping[str, Any], name: str) -> float | None:
    """Mean of the last points of a curve; None when there are too few."""
    values = [value for _, value in history["curves"].get(name, []) if value is not None]
    return sum(values[-_POINTS:]) / _POINTS if len(values) >= _POINTS else None


def omni_alarms(history: Mapping[str, Any], confidence: float) -> list[str]:
    """Sentences on pseudo labels that teach nothing or do harm; none while there are too few points.

    Args:
        history: of `engines.Pretrainer`.
        confidence: from which a pseudo label counts.
    """
    alarms = []
    kept, structures = _recent(history, "kept_share"), _recent(history, "structure_share")
    if kept is not None and kept < _HARDLY_ANY:
        alarms.append(
            f"hardly any pseudo label passes the confidence threshold of {confidence:g} ({kept:.2%} of the voxels): "
            "volumes without labels teach the decoder nothing; lower confidence, or switch later"
        )
    elif structures is not None and structures < _HARDLY_ANY:
        alarms.append(
            "the teacher calls nearly everything background "
            f"({structures:.2%} of the pseudo labels are structures): pseudo labels would unteach the structures; "
            "switch later, or check that both kinds of volumes show the same part of the body"
        )
    return alarms + _dice_alarm(history)


def _dice_alarm(history: Mapping[str, Any]) -> list[str]:
    switch = min((step for step, _ in history["curves"].get("pseudo", [])), default=None)
    scores = [(step, values["dice"]) for step, values in history["monitors"] if "dice" in values]
    before = [dice for step, dice in scores if switch is not None and step < switch]
    if not before or scores[-1][0] < switch or scores[-1][1] > before[-1] - _FALL:
        return []
    return [
        f"Dice on held-out volumes has fallen from {before[-1]:.2f} to {scores[-1][1]:.2f} since the pseudo labels "
        "came in: they are wrong too often; raise confidence, lower pseudo_weight, or switch later"
    ]
