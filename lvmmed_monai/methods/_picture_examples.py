"""Held-out pictures as an encoder sees them, to be drawn: nearest neighbours, and a map of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lvmmed_monai.methods._picture_features import batch_features, whole_view
from lvmmed_monai.methods._pictures import ViewPairs
from lvmmed_monai.metrics import standardised

__all__ = ["nearest_others", "picture_examples", "principal_plane"]

_QUERIES, _NEIGHBOURS = 10, 5
# A picture on the page need not be larger.
_LARGEST_TILE = 96


def picture_examples(
    encoders: Mapping[str, nn.Module], dataset: ViewPairs, order: NDArray[np.intp]
) -> list[dict[str, Any]]:
    """Nearest neighbours of ten pictures, and a map of all, by the features of each encoder.

    No name of a file or subject is among what is given, only pictures, datalist names and modalities.

    Args:
        encoders: by name, in the order of the drawing.
        dataset: held-out pictures.
        order: numbers of the pictures to look at, in random order; the queries are the first of each datalist.

    Returns:
        Nothing for fewer than six pictures, else two examples. ``kind`` "neighbours": ``picture`` (H, W, 3) uint8, a
        row of square tiles a query (the query, then five neighbours by each encoder), ``encoders`` their names,
        ``sources`` names, ``source_of`` for each row the number of each tile's source, -1 where there is no
        neighbour. ``kind`` "map": ``points`` {encoder: [[x, y], ...]}, ``sources`` and ``modalities`` names,
        ``source_of`` and ``modality_of`` for each point a number of them.
    """
    if len(order) <= _NEIGHBOURS:
        return []
    images = torch.stack([whole_view(dataset, int(index)) for index in order])
    features = {name: batch_features(encoder, images).double().numpy() for name, encoder in encoders.items()}
    items = [dataset.data[int(index)] for index in order]
    subjects = np.unique([f"{item['source']}\n{item['subject']}" for item in items], return_inverse=True)[1]
    sources, source_of = _numbered([str(item["source"]) for item in items])
    modalities, modality_of = _numbered([str(item["modality"]) for item in items])
    queries = _of_all_sources(source_of, _QUERIES)
    found = [nearest_others(one, subjects, queries, _NEIGHBOURS) for one in features.values()]
    rows = np.concatenate([queries[:, None], *found], axis=1)
    common = {"sources": sources, "encoders": list(encoders)}
    return [
        {
            "kind": "neighbours",
            "name": "neighbours of held-out pictures",
            "picture": _mosaic(images, rows),
            "source_of": np.where(rows < 0, -1, source_of[rows]).tolist(),
            **common,
        },
        {
            "kind": "map",
            "name": "map of held-out pictures",
            "points": {name: principal_plane(one).round(4).tolist() for name, one in features.items()},
            "source_of": source_of.tolist(),
            "modalities": modalities,
            "modality_of": modality_of.tolist(),
            **common,
        },
    ]


def nearest_others(
    features: NDArray[np.float64], subjects: NDArray[np.intp], queries: NDArray[np.intp], count: int
) -> NDArray[np.intp]:
    """(queries, count) numbers of the pictures of other subjects nearest to those of the numbers ``queries``.

    By cosine of centred features. -1 where there are too few others: neighbouring slices of the same volume would be
    no news.
    """
    centred = features - features.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    similarity = unit[queries] @ unit.T
    similarity[subjects[queries, None] == subjects] = -np.inf
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return np.where(np.isneginf(np.take_along_axis(similarity, nearest, axis=1)), -1, nearest)


def principal_plane(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) coordinates along the two directions in which standardised features (n, C) vary most (PCA).

    The sign of a direction, which means nothing, is chosen so that its point farthest out is positive.
    """
    (x,) = standardised(features)
    left, sizes, _ = np.linalg.svd(x, full_matrices=False)
    plane = np.zeros((len(x), 2))
    found = (left * sizes)[:, :2]
    plane[:, : found.shape[1]] = found
    farthest = np.take_along_axis(plane, np.abs(plane).argmax(axis=0)[None], axis=0)
    return plane * np.where(farthest < 0, -1.0, 1.0)


def _of_all_sources(source_of: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Numbers of pictures, ordered by source; the first of each source, then the second of each, until so many."""
    turn = np.array([int((source_of[:i] == one).sum()) for i, one in enumerate(source_of)])
    chosen = np.lexsort((source_of, turn))[:count]
    return chosen[np.argsort(source_of[chosen], kind="stable")]


def _numbered(names: list[str]) -> tuple[list[str], NDArray[np.intp]]:
    """The different names in order, and for each name its number."""
    different, numbers = np.unique(names, return_inverse=True)
    return [str(name) for name in different], numbers


def _mosaic(images: Tensor, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: tiles of the pictures (n, C, s, s) by number; white for -1."""
    tiles = images
    if images.shape[-1] > _LARGEST_TILE:
        size = (_LARGEST_TILE, _LARGEST_TILE)
        tiles = nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True).round().byte()
    tiles = torch.cat([tiles.expand(-1, 3, -1, -1), torch.full_like(tiles[:1, :1], 255).expand(-1, 3, -1, -1)])
    chosen = tiles[torch.from_numpy(rows)]
    return chosen.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
