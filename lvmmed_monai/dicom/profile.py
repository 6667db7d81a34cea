"""What becomes of each attribute when an object is de-identified: ``basic_profile.json``, resolved to one action."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.tag import BaseTag

__all__ = ["CLEAN", "DUMMY", "EMPTY", "KEEP", "RECURSE", "REMOVE", "REPLACE", "action_for", "family_of"]

REMOVE, EMPTY, DUMMY, KEEP, CLEAN, REPLACE, RECURSE = "X", "Z", "D", "K", "C", "U", "S"
"""Remove; empty the value; put a dummy; keep; keep what a fixed list knows; new UID; do the same within a sequence."""

_PIXEL_DATA = 0x7FE00010
_CHOICES = {"X/Z": "XZZ", "X/D": "XXD", "Z/D": "ZZD", "X/Z/D": "XZD", "X/Z/U*": "SSS"}
"""The action by the attribute's type: 3, 2, 1. References are kept with new UIDs, which name nobody."""


@cache
def _table() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("basic_profile.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@cache
def _listed() -> dict[str, str]:
    """Action, as the table has it, by keyword."""
    table = _table()
    return {name: action for part in ("profile", "own") for action, names in table[part].items() for name in names}


def family_of(sop_class: str) -> str:
    """Which objects of ``types`` a SOP class belongs to: "pet", "classic" (CT, MR) or "enhanced" (all others)."""
    kind = sop_class.rpartition("1.2.840.10008.5.1.4.1.1.")[2]
    return {"2": "classic", "4": "classic", "128": "pet"}.get(kind, "enhanced")


def _type(name: str, family: str) -> int:
    """1, 2 or 3 (optional)."""
    types = _table()["types"]
    return next((int(number) for number in ("1", "2") if family in types[number].get(name, ())), 3)


@cache
def _safe(tag: int, name: str) -> bool:
    """Whether nothing personal is meant to stand in an attribute, by its place and its type in the dictionary."""
    safe = _table()["safe"]
    if tag == _PIXEL_DATA or name in safe["attributes"]:
        return True
    return f"{tag >> 16:04X}" in safe["groups"] and dictionary_VR(tag).split(" or ")[0] in safe["representations"]


@cache
def action_for(tag: BaseTag, family: str) -> str:
    """What becomes of an attribute in an object of a `family_of` SOP classes; unknown and private ones are removed."""
    name = keyword_for_tag(tag)
    repeating = 0x5000 <= tag.group <= 0x50FF or 0x6000 <= tag.group <= 0x60FF  # curves and overlays
    if tag.is_private or not name or repeating or tag.group == 0x0002:
        return REMOVE
    listed = _listed().get(name)
    if listed is not None:
        return _CHOICES[listed][3 - _type(name, family)] if listed in _CHOICES else listed
    if dictionary_VR(tag) == "UI":
        return REPLACE
    if not _safe(tag, name):
        return REMOVE
    return RECURSE if dictionary_VR(tag) == "SQ" else KEEP
