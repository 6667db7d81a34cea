"""Keeping the alarms of a method: each once, from the step where it is first heard to the last."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["note_alarms"]


def _words(sentence: str) -> str:
    """A sentence without its numbers: the same alarm a little later says the same words."""
    return re.sub(r"[-+]?[\d.]+", "", sentence)


def note_alarms(alarms: list[list[Any]], sentences: Sequence[str], step: int) -> list[str]:
    """Put ``sentences`` into ``alarms`` and give those that are new.

    Args:
        alarms: [[first step, last step, sentence], ...], changed in place; an alarm that is heard again gets its last
            step and its present wording.
        sentences: what the method says now.
        step: now.
    """
    known = {_words(alarm[2]): alarm for alarm in alarms}
    new = []
    for sentence in sentences:
        words = _words(sentence)
        if words in known:
            known[words][1:] = [step, sentence]
        else:
            alarms.append([step, step, sentence])
            new.append(sentence)
    return new
