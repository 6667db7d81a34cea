"""Which images of a source are left out, whose they are, and in which section of the split they lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvmmed_monai.data._source import Source, SourceItem, read_table
from lvmmed_monai.data.datalist import SECTIONS, read_datalist
from lvmmed_monai.data.images import image_stem
from lvmmed_monai.data.splits import split_subjects
from lvmmed_monai.errors import UserError

__all__ = ["assign_sections", "excluded_keys", "with_subjects"]

# What people call the sections in their tables.
_SECTION_WORDS = {
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def excluded_keys(manifest: Mapping[str, Any], source: Source) -> set[str]:
    """Ids that the manifest leaves out."""
    keys: set[str] = set()
    for rule in manifest.get("exclude", []):
        if "ids" in rule:
            keys.update(rule["ids"])
        else:
            rows = read_table(source.file(rule["file"], "table of excluded images"), [rule["column"]])
            keys.update(image_stem(row[rule["column"]]) for row in rows)
    return keys


def _section(word: str, where: str) -> str:
    section = _SECTION_WORDS.get(word.strip().lower())
    if section is None:
        raise UserError(f"unknown section {word!r}; {where}; use train, val or test")
    return section


def _named_sections(split: Mapping[str, Any], source: Source) -> dict[str, str]:
    """Section of each id, from the split's table or lists."""
    if "file" in split:
        table = source.file(split["file"], "split file")
        rows = read_table(table, [split["item_column"], split["section_column"]])
        return {
            image_stem(row[split["item_column"]]): _section(row[split["section_column"]], split["file"]) for row in rows
        }
    sections: dict[str, str] = {}
    for section, name in split["lists"].items():
        for line in source.file(name, "split list").read_text(encoding="utf-8-sig").splitlines():
            if line.strip():
                sections[image_stem(line.strip())] = section
    return sections


def _earlier_sections(out: Path) -> dict[str, str]:
    """Assignments of an earlier import into the same folder, which must not move."""
    fixed: dict[str, str] = {}
    for path in sorted(out.glob("datalist*.json")):
        datalist = read_datalist(path)
        fixed.update({item["subject"]: section for section in SECTIONS for item in datalist[section]})
    return fixed


def with_subjects(items: list[SourceItem], manifest: Mapping[str, Any], source: Source) -> list[tuple[SourceItem, str]]:
    """Items with the subject that their id names; those that name none are noted and left out."""
    pattern = re.compile(manifest.get("subject", {}).get("pattern", "(.*)"))
    known = []
    for item in items:
        match = pattern.search(item.key)
        if match and match.group(1):
            known.append((item, match.group(1)))
        else:
            source.drop("SRC-010", item.key)
    return known


def assign_sections(
    parts: list[list[tuple[SourceItem, str]]], manifest: Mapping[str, Any], source: Source, out: Path
) -> list[list[tuple[SourceItem, str, str]]]:
    """Give each item its section. Every part shares one split, so a person lies in one section in all of them."""
    split = manifest["split"]
    if "fractions" in split:
        everybody = [subject for part in parts for _, subject in part]
        drawn = split_subjects(everybody, split["fractions"], split.get("seed", 0), _earlier_sections(out))
        return [[(item, subject, drawn[subject]) for item, subject in part] for part in parts]
    named = _named_sections(split, source) if {"file", "lists"} & split.keys() else {}
    assigned: list[list[tuple[SourceItem, str, str]]] = []
    for part in parts:
        rows = []
        for item, subject in part:
            listed = named.get(item.key) or named.get(image_stem(item.image))
            section = item.section or split.get("section") or listed
            if section is None:
                source.drop("SRC-005", item.image)
            else:
                rows.append((item, subject, section))
        assigned.append(rows)
    return assigned
