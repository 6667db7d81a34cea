"""Losses of the 2D methods, against the papers' equations written out in loops, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from picture_material import random_batch, small_picture_method
from torch import Tensor

from lvmmed_monai.methods._siamese import embedding_numbers
from lvmmed_monai.methods.barlow_twins import barlow_twins_loss
from lvmmed_monai.methods.byol import byol_loss
from lvmmed_monai.methods.dino import dino_loss
from lvmmed_monai.methods.mae import draw_masks, masked_error
from lvmmed_monai.methods.moco import moco_loss, shuffled_keys
from lvmmed_monai.methods.swav import sinkhorn, swav_loss
from lvmmed_monai.methods.vicreg import WeightedVICReg
from lvmmed_monai.methods.vicregl import best_matches, local_level, local_loss

M, F, K = 5, 4, 3


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(found: Callable[..., Tensor], expected: Callable[..., Tensor], *tensors: Tensor) -> None:
    """Both functions give the same number and the same gradients."""
    results = []
    for function in (found, expected):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        value = function(*leaves)
        value.backward()
        results.append((value.detach(), [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-9)
    assert all(float(one.abs().max()) > 1e-6 for one in results[1][1])


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum() / len(values)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum() / (one.square().sum() * other.square().sum()).sqrt()


def test_simclr() -> None:
    def looped(z1: Tensor, z2: Tensor) -> Tensor:
        z = [*z1, *z2]
        terms = []
        for i in range(2 * M):
            others = sum(torch.exp(cosine(z[i], z[k]) / 0.2) for k in range(2 * M) if k != i)
            terms.append(-torch.log(torch.exp(cosine(z[i], z[(i + M) % (2 * M)]) / 0.2) / others))
        return mean(terms)

    method = small_picture_method("simclr")
    same(lambda *z: method.loss(*z)["loss"], looped, double(M, F), double(M, F, seed=1))


def test_moco() -> None:
    queue = double(7, F, seed=2)

    def looped(queries: Tensor, keys: Tensor) -> Tensor:
        terms = []
        for query, key in zip(queries, keys, strict=True):
            positive = torch.exp(query @ key / 0.3)
            terms.append(-torch.log(positive / (positive + sum(torch.exp(query @ one / 0.3) for one in queue))))
        return mean(terms)

    same(lambda q, k: moco_loss(q, k, queue, 0.3), looped, double(M, F), double(M, F, seed=1))


def test_byol() -> None:
    def looped(predicted: Tensor, target: Tensor) -> Tensor:
        terms = []
        for i in range(M):
            for view in (0, 1):
                p, t = predicted[view, i], target[1 - view, i]
                terms.append((p / p.norm() - t / t.norm()).square().sum())
        return 2 * mean(terms)

    same(byol_loss, looped, double(2, M, F), double(2, M, F, seed=1))


def test_barlow_twins() -> None:
    def looped(z1: Tensor, z2: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(F):
            for j in range(F):
                one, other = z1[:, i] - z1[:, i].sum() / M, z2[:, j] - z2[:, j].sum() / M
                correlation = cosine(one, other)
                total = total + ((1 - correlation) ** 2 if i == j else 0.01 * correlation**2)
        return total

    # The constant in the root of batch normalisation is nothing at this scale.
    same(lambda *z: sum(barlow_twins_loss(*z, 0.01)), looped, 1e3 * double(M, F), 1e3 * double(M, F, seed=1))
    z = double(64, F)
    assert float(barlow_twins_loss(z, z, 1.0)[0]) == pytest.approx(0, abs=1e-8)


def looped_vicreg(z1: Tensor, z2: Tensor, weights: tuple[float, float, float]) -> Tensor:
    count, width = z1.shape
    total = weights[0] * mean([(z1[i, j] - z2[i, j]) ** 2 for i in range(count) for j in range(width)])
    for z in (z1, z2):
        centred = [[z[i, j] - z[:, j].sum() / count for j in range(width)] for i in range(count)]

        def covariance(j: int, k: int, centred: list[list[Tensor]] = centred) -> Tensor:
            return torch.stack([row[j] * row[k] for row in centred]).sum() / (count - 1)

        hinges = [torch.clamp(1 - (covariance(j, j) + 1e-4).sqrt(), min=0) for j in range(width)]
        total = total + weights[1] * mean(hinges) / 2
        others = [covariance(j, k) ** 2 for j in range(width) for k in range(width) if j != k]
        total = total + weights[2] * torch.stack(others).sum() / width
    return total


def test_vicreg() -> None:
    weights = (25.0, 15.0, 2.0)
    criterion = WeightedVICReg(weights, "vicreg")
    # Some features vary more than the hinge asks for, and some less.
    scale = torch.tensor([0.3, 0.5, 1.5, 2.0], dtype=torch.float64)
    views = double(M, F) * scale, double(M, F, seed=1) * scale
    same(lambda *z: criterion(*z)["loss"], lambda *z: looped_vicreg(*z, weights), *views)


def test_vicregl_local() -> None:
    weights, positions, matches = (25.0, 15.0, 2.0), 6, 3
    generator = torch.Generator().manual_seed(3)
    grids = tuple(torch.rand(M, positions, 2, dtype=torch.float64, generator=generator) for _ in range(2))

    def looped(map1: Tensor, map2: Tensor) -> Tensor:
        maps = (map1, map2)
        total = torch.zeros((), dtype=torch.float64)
        for first, second in ((0, 1), (1, 0)):
            for by in (grids, maps):
                pairs = []
                for i in range(M):
                    found = []
                    for p in range(positions):
                        distances = [float((by[first][i, p] - one).norm()) for one in by[second][i]]
                        q = min(range(positions), key=distances.__getitem__)
                        found.append((distances[q], p, q))
                    pairs.append([(p, q) for _, p, q in sorted(found)[:matches]])
                for rank in range(matches):
                    here = torch.stack([maps[first][i, pairs[i][rank][0]] for i in range(M)])
                    there = torch.stack([maps[second][i, pairs[i][rank][1]] for i in range(M)])
                    total = total + looped_vicreg(here, there, weights) / matches / 2
        return total

    criterion = WeightedVICReg(weights, "vicregl")
    found = lambda *maps: local_loss(maps, grids, criterion, matches)  # noqa: E731
    same(found, looped, double(M, positions, F), double(M, positions, F, seed=1))


def test_best_matches_are_the_same_places() -> None:
    """Two views of which one is shifted by two positions: where they overlap, the same places are found."""
    first = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).flatten(0, 1)[None]
    second = first + torch.tensor([0.0, 2.0])
    here, there = best_matches(torch.cdist(first, second), 8)
    assert torch.equal(first[0, here[0]], second[0, there[0]])
    assert len(here[0].unique()) == 8
    assert best_matches(torch.cdist(first, second), 99)[0].shape == (1, 16)


@pytest.mark.parametrize(("strides", "size", "level"), [((2, 4, 8, 16, 32), 64, 2), ((2, 4, 8, 16, 32), 128, 3)])
def test_map_of_the_positions(strides: tuple[int, ...], size: int, level: int) -> None:
    assert local_level(strides, size) == level
    assert local_level(strides, 224) == 4
    assert local_level((16,), 64) == 0
    assert local_level(strides, 32) == 2


def softmax(scores: Tensor) -> Tensor:
    return torch.exp(scores) / torch.exp(scores).sum()


@pytest.mark.parametrize("views", [2, 4])
def test_dino(views: int) -> None:
    teacher, centre = double(2, M, K, seed=5), double(K, seed=6)

    def looped(student: Tensor) -> Tensor:
        terms = []
        for t in range(2):
            for v in range(views):
                if t != v:
                    for i in range(M):
                        wanted, given = softmax((teacher[t, i] - centre) / 0.4), softmax(student[v, i] / 0.7)
                        terms.append(-(wanted * torch.log(given)).sum())
        return mean(terms)

    same(lambda one: dino_loss(one, teacher, centre, 0.7, 0.4), looped, double(views, M, K))


def looped_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    q = [[math.exp(float(value) / epsilon) for value in row] for row in scores]
    for _ in range(iterations):
        for k in range(len(q[0])):
            share = sum(row[k] for row in q) * len(q[0])
            for row in q:
                row[k] /= share
        for row in q:
            share = sum(row) * len(q)
            row[:] = [value / share for value in row]
    return torch.tensor(q, dtype=torch.float64) * len(q)


@pytest.mark.parametrize("views", [2, 4])
def test_swav(views: int) -> None:
    def looped(scores: Tensor) -> Tensor:
        terms = []
        for t in range(2):
            codes = looped_sinkhorn(scores[t], 0.5, 3)
            for v in range(views):
                if t != v:
                    terms += [-(codes[i] * torch.log(softmax(scores[v, i] / 0.3))).sum() for i in range(M)]
        return mean(terms)

    same(lambda scores: swav_loss(scores, 0.3, 0.5, 3), looped, double(views, M, K))


def test_codes_use_prototypes_equally_and_do_not_overflow() -> None:
    scores = torch.tanh(double(2, 6, 3)).bfloat16()
    codes = sinkhorn(scores, 0.5, 200)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes.sum(dim=-1), torch.ones(2, 6))
    torch.testing.assert_close(codes.sum(dim=-2), torch.full((2, 3), 2.0))
    assert torch.isfinite(sinkhorn(torch.tensor([[1.0, -1.0], [0.9, -0.9]]), 0.01, 3)).all()


def test_mae() -> None:
    images, patch = torch.sigmoid(double(2, 3, 8, 8, seed=1)), 4
    masked = torch.tensor([[[True, False], [True, True]], [[False, False], [False, True]]])

    def looped(painted: Tensor) -> Tensor:
        errors = []
        for m, row, column in masked.nonzero().tolist():
            place = (m, slice(None), slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
            values = images[place]
            wanted = (values - values.mean()) / (values.var(correction=0) + 1e-6).sqrt()
            errors += list((painted[place] - wanted).square().flatten())
        return mean(errors)

    same(lambda painted: masked_error(painted, images, masked), looped, double(2, 3, 8, 8))


@pytest.mark.parametrize(("ratio", "hidden"), [(0.6, 10), (0.001, 1), (0.999, 15)])
def test_masks(ratio: float, hidden: int) -> None:
    torch.manual_seed(0)
    masks = draw_masks(200, 4, ratio)
    assert masks.sum(dim=(1, 2)).tolist() == [hidden] * 200
    assert (masks.float().mean(dim=0) - hidden / 16).abs().max() < 0.12


def test_mae_sees_nothing_of_masked_patches() -> None:
    method = small_picture_method("mae", patch_size=32)
    network = method.network().eval()
    masked = torch.tensor([[[True, False], [False, True]]]).expand(4, 2, 2)
    images = random_batch(4)["view1"]
    seen = []
    network.encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    network(images, masked)
    changed = images.clone()
    changed[:, :, :32, :32] = torch.rand(4, 3, 32, 32)
    network(changed, masked)
    assert torch.equal(*seen)
    assert torch.equal(seen[0][:, :, :32, 32:], images[:, :, :32, 32:])
    assert torch.equal(seen[0][:, :, :32, :32], network.mask_patch.detach().expand(4, 3, 32, 32))


def test_keys_come_back_in_order() -> None:
    network = small_picture_method("moco").network().eval()
    images = random_batch(7)["view1"]
    torch.manual_seed(0)
    # Without batch statistics neither order nor groups matter.
    torch.testing.assert_close(shuffled_keys(network.target, images, 3), network.target.embed(images))


def test_queue_replaces_the_oldest() -> None:
    network = small_picture_method("moco").network()
    expected = list(network.queue)
    written = 0
    for number, count in enumerate((6, 12, 5, 31)):
        keys = torch.randn(count, 8, generator=torch.Generator().manual_seed(number))
        network.remember(keys)
        for key in keys[-20:]:
            expected[written % 20] = key
            written += 1
        assert torch.equal(network.queue, torch.stack(expected))


def test_queue_takes_the_keys_of_all_parts_after_the_step() -> None:
    method = small_picture_method("moco", key_groups=1)
    network = method.network().eval()
    before = network.queue.clone()
    parts = [random_batch(4, seed=seed) for seed in (0, 1)]
    for part in parts:
        method.step(part, network)
    assert torch.equal(network.queue, before)
    keys = torch.cat([network.target.embed(part[view]) for part in parts for view in ("view2", "view1")])
    method.after_step(network)
    torch.testing.assert_close(network.queue[:16], torch.nn.functional.normalize(keys, dim=1))
    assert torch.equal(network.queue[16:], before[16:])
    method.after_step(network)
    assert int(network.queue_start) == 16


def test_centre_follows_the_teacher_s_mean_once_a_step() -> None:
    method = small_picture_method("dino")
    network = method.network().eval()
    expected = torch.zeros(12)
    for step in range(2):
        parts = [random_batch(4, small=1, seed=10 * step + part) for part in range(2)]
        scores = [network.target.embed(part[view]) for part in parts for view in ("view1", "view2")]
        for part in parts:
            method.step(part, network)
        method.after_step(network)
        expected = 0.9 * expected + 0.1 * torch.cat(scores).mean(dim=0)
        torch.testing.assert_close(network.centre, expected)


def test_logged_numbers() -> None:
    z = torch.eye(4)
    assert float(embedding_numbers(z, 3 * z)["retrieval_in_training"]) == 1
    assert float(embedding_numbers(z, z[[1, 0, 2, 3]])["retrieval_in_training"]) == 0.5
    spread = embedding_numbers(torch.randn(2000, 16), torch.randn(2000, 16))["embedding_spread"]
    assert float(spread) == pytest.approx(1, abs=0.05)
    assert float(embedding_numbers(torch.ones(4, 3), torch.ones(4, 3))["embedding_spread"]) == 0
