"""Splits by subject: every image of a person lies in one section."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from lvmmed_monai.errors import UserError

__all__ = ["SPLIT_SECTIONS", "split_subjects"]

SPLIT_SECTIONS = ("training", "validation", "test")


def _rank(subject: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{subject}".encode()).hexdigest()


def _targets(count: int, fractions: Sequence[float]) -> list[int]:
    """How many subjects each section should hold: nearest to the fractions, none of the wanted ones empty."""
    exact = [count * fraction for fraction in fractions]
    targets = [math.floor(value + 1e-9) for value in exact]
    # Rounded, so that equal remainders are equal whatever their last binary digit is.
    by_remainder = sorted(range(len(exact)), key=lambda i: (round(targets[i] - exact[i], 9), i))
    for index in by_remainder[: count - sum(targets)]:
        targets[index] += 1
    for index, fraction in enumerate(fractions):
        largest = max(range(len(targets)), key=lambda i: targets[i])
        if fraction > 0 and targets[index] == 0 and targets[largest] > 1:
            targets[largest] -= 1
            targets[index] += 1
    return targets


def _check_fractions(fractions: Sequence[float]) -> None:
    valid = len(fractions) == 3 and all(0 <= value <= 1 for value in fractions) and abs(sum(fractions) - 1) < 1e-6
    if not valid:
        raise UserError(
            f"split fractions must be three numbers from 0 to 1 that sum to 1, got {list(fractions)}; split; "
            "give the shares of training, validation and test, for example 0.7 0.1 0.2"
        )


def split_subjects(
    subjects: Iterable[str],
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assign each subject to ``training``, ``validation`` or ``test``.

    The order is that of a hash of seed and subject, so the answer does not depend on the order of the
    input. Each section with a fraction above 0 gets at least one subject when there are enough.

    Args:
        subjects: pseudonyms; repeats count once.
        fractions: shares of training, validation and test; they sum to 1.
        seed: another seed gives another split.
        fixed: earlier assignments, which never move; those of absent subjects are ignored.

    Returns:
        Section of each subject, sorted by subject.

    Raises:
        UserError: the fractions are no shares, or ``fixed`` names an unknown section.
    """
    _check_fractions(fractions)
    unique = sorted(set(subjects))
    sections = {subject: section for subject, section in (fixed or {}).items() if subject in set(unique)}
    unknown = sorted(set(sections.values()) - set(SPLIT_SECTIONS))
    if unknown:
        raise UserError(f"unknown section {unknown[0]!r} in the earlier split; split; use {', '.join(SPLIT_SECTIONS)}")
    missing = dict(zip(SPLIT_SECTIONS, _targets(len(unique), fractions), strict=True))
    wanted = {section for section, target in missing.items() if target > 0}
    for section in sections.values():
        missing[section] -= 1
    filled = set(sections.values())
    for subject in sorted(set(unique) - sections.keys(), key=lambda name: _rank(name, seed)):
        # A wanted section without anybody comes first, then the one that lacks most.
        section = max(SPLIT_SECTIONS, key=lambda name: (name in wanted and name not in filled, missing[name]))
        sections[subject] = section
        missing[section] -= 1
        filled.add(section)
    return dict(sorted(sections.items()))
