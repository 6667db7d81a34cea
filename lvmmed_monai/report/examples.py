"""What a pre-training has learnt, shown by examples: a heading, how to read it, and figures for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvmmed_monai.report.collect import Source
from lvmmed_monai.report.embedding import map_figure, neighbours_figure
from lvmmed_monai.report.position import position_figure
from lvmmed_monai.report.words import readable

__all__ = ["example_groups"]


@dataclass(frozen=True)
class _Kind:
    """How examples of a kind are shown; ``alt`` gets the example's name."""

    heading: str
    text: str
    alt: str
    figure: Callable[[Path, Mapping[str, Any]], str]
    layout: str = "example"


_KINDS = {
    "position": _Kind(
        "Is position learnt?",
        "Left: a held-out volume with its base crops and one random crop (orange). Middle: how much of that crop lies "
        "in each base. Right: what the network says, having seen crops turned, flipped and shifted in brightness. The "
        "more the right looks like the middle, the more it has learnt.",
        "True and predicted positions of crops in a {}",
        lambda folder, example: position_figure(folder / example["picture"], example["grid"], example["crops"]),
        "examples",
    ),
    "neighbours": _Kind(
        "Which pictures are alike to the encoder?",
        "Each row begins with a held-out picture; beside it the five held-out pictures of other subjects whose pooled, "
        "centred features are nearest to its own (cosine), as trained and with random weights. Frames show which "
        "datalist a picture is from.",
        "Nearest {}",
        lambda folder, example: neighbours_figure(folder / example["picture"], example),
    ),
    "map": _Kind(
        "How are pictures arranged?",
        "Each dot is a held-out picture, at the two principal components (PCA) of its standardised features, coloured "
        "by datalist, and below by modality where there are several. Distances between two maps cannot be compared.",
        "Two-dimensional {}",
        lambda _, example: map_figure(example),
    ),
}


def example_groups(source: Source) -> list[dict[str, Any]]:
    """The examples of a run by kind: {heading, text, layout, figures: [{address, alt}]}."""
    groups = []
    examples = source.record.get("examples", [])
    for name, kind in _KINDS.items():
        figures = [
            {"address": kind.figure(source.folder, one), "alt": kind.alt.format(readable(one["name"]).lower())}
            for one in examples
            if one.get("kind", "position") == name
        ]
        if figures:
            groups.append({"heading": kind.heading, "text": kind.text, "layout": kind.layout, "figures": figures})
    return groups
