"""Splits by subject."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lvmmed_monai.data.splits import SPLIT_SECTIONS, split_subjects
from lvmmed_monai.errors import UserError

PEOPLE = [f"subject{number:03d}" for number in range(100)]


def test_fractions_are_met_exactly() -> None:
    assert Counter(split_subjects(PEOPLE).values()) == {"training": 70, "validation": 10, "test": 20}
    assert Counter(split_subjects(PEOPLE[:10], (0.8, 0.2, 0.0)).values()) == {"training": 8, "validation": 2}


def test_order_and_repeats_do_not_matter() -> None:
    shuffled = PEOPLE * 2
    random.Random(3).shuffle(shuffled)
    assert split_subjects(shuffled) == split_subjects(PEOPLE)


def test_another_seed_gives_another_split() -> None:
    assert split_subjects(PEOPLE, seed=1) != split_subjects(PEOPLE, seed=0)


def test_a_known_answer_stays() -> None:
    """The split must be the same on every machine and in every version: a change here moves patients."""
    split = split_subjects([f"p{number}" for number in range(6)])
    assert split == {
        "p0": "training",
        "p1": "training",
        "p2": "training",
        "p3": "training",
        "p4": "validation",
        "p5": "test",
    }


@pytest.mark.parametrize("count", range(3, 12))
def test_no_wanted_section_is_empty(count: int) -> None:
    assert set(split_subjects(PEOPLE[:count]).values()) == set(SPLIT_SECTIONS)


@pytest.mark.parametrize(("count", "sections"), [(0, set()), (1, {"training"}), (2, {"training", "validation"})])
def test_too_few_subjects(count: int, sections: set[str]) -> None:
    split = split_subjects(PEOPLE[:count])
    assert set(split.values()) <= set(SPLIT_SECTIONS)
    assert len(split) == count
    assert set(split.values()) == sections


@pytest.mark.parametrize("seed", range(5))
def test_earlier_assignments_never_move(seed: int) -> None:
    first = split_subjects(PEOPLE[:30], seed=seed)
    second = split_subjects(PEOPLE, seed=seed, fixed=first)
    assert {subject: second[subject] for subject in first} == first
    assert Counter(second.values()) == {"training": 70, "validation": 10, "test": 20}


def test_fixed_subjects_that_overfill_a_section() -> None:
    fixed = {subject: "test" for subject in PEOPLE[:8]} | {"gone": "training"}
    split = split_subjects(PEOPLE[:10], fixed=fixed)
    assert Counter(split.values()) == {"test": 8, "training": 1, "validation": 1}
    assert "gone" not in split


def test_unwanted_section_stays_empty() -> None:
    assert set(split_subjects(PEOPLE[:1], (0.0, 0.0, 1.0)).values()) == {"test"}
    assert Counter(split_subjects(PEOPLE, (1.0, 0.0, 0.0)).values()) == {"training": 100}


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.1, 0.1), (1.2, -0.1, -0.1)])
def test_bad_fractions(fractions: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="sum to 1"):
        split_subjects(PEOPLE, fractions)


def test_unknown_section() -> None:
    with pytest.raises(UserError, match="unknown section 'train'"):
        split_subjects(PEOPLE, fixed={PEOPLE[0]: "train"})
