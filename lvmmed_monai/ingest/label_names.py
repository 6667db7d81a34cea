"""Names of labels: what segments are called, and one table of label names for all volumes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.label_objects import LabelObject

__all__ = ["LabelTable", "label_table", "segment_names"]

_LARGEST_INDEX = 255


class LabelTable(dict[str, int]):
    """Index of each label name, from 1 on; 0 is the background.

    Attributes:
        aliases: the label name that each other name stands for.
    """

    def __init__(self, indices: Mapping[str, int] | None = None, aliases: Mapping[str, str] | None = None) -> None:
        super().__init__(indices or {})
        self.aliases = dict(aliases or {})

    def index_of(self, name: str) -> int | None:
        """Index of a name or of another name for it, None if it is not listed."""
        return self.get(self.aliases.get(name, name))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _name(text: str, number: int, personal: frozenset[str]) -> str:
    """Lower case words joined by underscores; words of the patient's name or id do not pass."""
    words = _words(text)
    if not words or personal.intersection(words):
        return f"segment_{number}"
    return "_".join(words)


def segment_names(label: LabelObject) -> dict[int, str]:
    """Name of each segment or structure by its number, as it stands in the datalist."""
    # Archives put the organ into the patient's name ("06^Breast-MRI"): a coded term names nobody.
    personal = label.header.names - label.content.vocabulary
    return {number: _name(text, number, personal) for number, text in label.content.segments.items()}


def _given_rows(names: Mapping[str, Any]) -> list[tuple[int, list[str]]]:
    """Index and names of each row of the user's table; malformed ones give no row."""
    try:
        rows = [
            (int(index), ["_".join(_words(name)) for name in ([given] if isinstance(given, str) else list(given))])
            for index, given in names.items()
        ]
    except (ValueError, TypeError, AttributeError):
        return []
    return [(index, listed) for index, listed in rows if listed != ["background"]]


def _given_table(names: Mapping[str, Any]) -> LabelTable:
    rows = _given_rows(names)
    every = [name for _, listed in rows for name in listed]
    numbered = sorted(index for index, _ in rows) == list(range(1, len(rows) + 1))
    if not rows or not numbered or not all(listed for _, listed in rows) or "" in every or len(set(every)) < len(every):
        raise UserError(
            "label names must be numbered from 1 without gaps, each once; --labels; "
            'write {"1": "liver", "2": "spleen"}, or {"1": ["liver", "hepar"]} where one has several names'
        )
    aliases = {other: listed[0] for _, listed in rows for other in listed[1:]}
    return LabelTable({listed[0]: index for index, listed in rows}, aliases)


def label_table(labels: Iterable[LabelObject], names: Mapping[str, str | Sequence[str]] | None = None) -> LabelTable:
    """Index of each label name, the same for all volumes.

    Args:
        labels: all label objects that are used.
        names: the user's own table: a name, or several names for the same (the first is the one that is written), by
            index ({"1": "liver", "2": ["spleen", "lien"]}). None takes the numbers of the segments where each stands
            for one name everywhere and they run from 1 without gaps, else the names in alphabetical order.

    Raises:
        UserError: the user's table has gaps, or there are more than 255 labels.
    """
    if names is not None:
        table = _given_table(names)
    else:
        pairs = {pair for label in labels for pair in segment_names(label).items()}
        numbers = [number for number, _ in pairs]
        unique = {name for _, name in pairs}
        if len(unique) == len(pairs) and sorted(numbers) == list(range(1, len(pairs) + 1)):
            table = LabelTable({name: number for number, name in sorted(pairs)})
        else:
            table = LabelTable({name: index for index, name in enumerate(sorted(unique), start=1)})
    if len(table) > _LARGEST_INDEX:
        raise UserError(
            f"{len(table)} different labels; the label objects; name at most {_LARGEST_INDEX} with --labels"
        )
    return table
