"""What the report shows of a 2D pre-training: neighbours of held-out pictures, and a map of them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvmmed_monai.report import build_report
from lvmmed_monai.report.embedding import map_figure, neighbours_figure
from lvmmed_monai.report.figures import PALETTE
from lvmmed_monai.results import new_results, validate_results, write_results

NEIGHBOURS: dict[str, Any] = {
    "kind": "neighbours",
    "name": "neighbours of held-out pictures",
    "picture": "examples/1.png",
    "encoders": ["trained", "untrained"],
    "sources": ["skin", "chest"],
    # Two rows of a query and two neighbours by each encoder; one neighbour is missing.
    "source_of": [[0, 0, 1, 1, 0], [1, 1, -1, 0, 0]],
}
MAP: dict[str, Any] = {
    "kind": "map",
    "name": "map of held-out pictures",
    "encoders": ["trained", "untrained"],
    "points": {"trained": [[0, 0], [1, 2], [3, 1]], "untrained": [[0, 1], [1, 0], [2, 2]]},
    "sources": ["skin", "chest"],
    "source_of": [0, 1, 1],
    "modalities": ["COLOR", "XR"],
    "modality_of": [0, 1, 1],
}


def svg(address: str) -> str:
    kind, content = address.split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(content).decode()


def words(drawing: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", drawing)


def mosaic(path: Path) -> np.ndarray:
    """2 x 5 tiles of 4 x 4 pixels, each of its own grey; written to ``path``."""
    greys = np.arange(10).reshape(2, 5) * 20 + 10
    pixels = np.repeat(np.kron(greys, np.ones((4, 4)))[..., None], 3, axis=2).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return greys


def test_tiles_stand_in_their_rows_framed_by_source(tmp_path: Path) -> None:
    greys = mosaic(tmp_path / "1.png")
    drawing = svg(neighbours_figure(tmp_path / "1.png", NEIGHBOURS))
    shown = []
    for tag in re.findall(r"<image[^>]*>", drawing):
        content = re.search(r"base64,\s*([^\"]+)", tag)
        assert content is not None
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content[1]))))
        matrix = re.search(r"matrix\(([^)]+)\)", tag)
        assert matrix is not None
        shown.append(([float(value) for value in matrix[1].split()[4:]], int(pixels[0, 0, 0])))
    # Nine tiles: the missing neighbour is left out.
    assert sorted(grey for _, grey in shown) == sorted(set(greys.ravel().tolist()) - {int(greys[1, 2])})
    of_grey = {grey: place for place, grey in shown}
    first_row = [of_grey[grey][0] for grey in greys[0].tolist()]
    assert first_row == sorted(first_row)
    assert len(set(np.round([of_grey[grey][1] for grey in greys[0].tolist()], 3))) == 1
    assert of_grey[int(greys[1, 0])][0] == first_row[0]
    frames = [drawing.count(f"stroke: {colour}; stroke-width: 2;") for colour in PALETTE[:2]]
    assert frames == [5, 4]
    assert {"picture", "nearest, as trained", "nearest, random weights", "skin", "chest"} <= set(words(drawing))


def test_a_missing_picture_is_left_white(tmp_path: Path) -> None:
    assert "nearest, as trained" in words(svg(neighbours_figure(tmp_path / "none.png", NEIGHBOURS)))


def test_map_colours_by_source_and_by_modality() -> None:
    drawing = svg(map_figure(MAP))
    assert words(drawing).count("as trained") == words(drawing).count("random weights") == 2
    assert {"skin", "chest", "COLOR", "XR"} <= set(words(drawing))
    # One dot of the first and two of the second kind, in each of four maps; legends have one more each.
    for colour, dots in zip(PALETTE[:2], (4, 8), strict=True):
        assert len(re.findall(rf"<use [^>]*style=\"fill: {colour}", drawing)) == dots + 2


def test_one_modality_needs_no_map_of_its_own() -> None:
    drawing = svg(map_figure({**MAP, "modalities": ["XR"], "modality_of": [0, 0, 0]}))
    assert words(drawing).count("as trained") == words(drawing).count("random weights") == 1
    assert {"skin", "chest"} <= set(words(drawing))
    assert "XR" not in words(drawing)


def test_page(tmp_path: Path) -> None:
    mosaic(tmp_path / "examples" / "1.png")
    record = new_results("pretraining", "lvmmed_pretrain", seed=0)
    record["examples"] = [NEIGHBOURS, MAP]
    write_results(tmp_path / "results.json", record)
    page = build_report([tmp_path], tmp_path / "report.html").read_text()
    assert "Which pictures are alike to the encoder?" in page
    assert "principal components (PCA)" in page
    assert "Is position learnt?" not in page
    (first,) = re.findall(r'<img src="([^"]+)" alt="Nearest neighbours of held-out pictures"', page)
    (second,) = re.findall(r'<img src="([^"]+)" alt="Two-dimensional map of held-out pictures"', page)
    assert "nearest, as trained" in words(svg(first))
    assert "XR" in words(svg(second))


@pytest.mark.parametrize(
    ("example", "changes", "problem"),
    [
        (NEIGHBOURS, {"kind": "guess"}, "expected a kind of position, neighbours, map"),
        (NEIGHBOURS, {"source_of": [[0, 0, 1, 2, 0]]}, "by number of source"),
        (NEIGHBOURS, {"source_of": [[0, 0, 1, 1]]}, "equally many neighbours"),
        (MAP, {"points": {"trained": MAP["points"]["trained"]}}, "for each picture a finite point"),
        (MAP, {"source_of": [0, 1]}, "for each picture a finite point"),
        (MAP, {"modality_of": [0, 1, 2]}, "a source and a modality"),
    ],
)
def test_examples_that_do_not_fit(example: dict[str, Any], changes: dict[str, Any], problem: str) -> None:
    record = new_results("pretraining", "test", seed=0)
    record["examples"] = [example]
    assert validate_results(record) == []
    record["examples"] = [{**example, **changes}]
    assert any(problem in text for text in validate_results(record)), validate_results(record)
    record["examples"] = [{key: value for key, value in example.items() if key != "encoders"}]
    assert "examples: expected {encoders" in validate_results(record)[0]
