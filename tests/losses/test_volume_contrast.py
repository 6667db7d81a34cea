"""Known answers of the published codes and papers, a looped reference, and what must not happen."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from lvmmed_monai.errors import UserError
from lvmmed_monai.losses.volume_contrast import (
    MODES,
    VoCoLoss,
    base_regulariser,
    mask_overlap,
    overlap_similarity,
    position_loss,
    voco_loss,
)
from lvmmed_monai.transforms.crops_3d import overlap_labels

EPS = 1e-6


def near(value: Tensor | float, expected: float) -> bool:
    number = value.detach().item() if isinstance(value, Tensor) else value
    return abs(number - expected) <= 1e-6


def wave(rows: int, phase: float) -> Tensor:
    """The embeddings of the known answers: sin(1 + .7 i + 1.3 j + .11 i j + phase), 6 channels."""
    i = torch.arange(rows, dtype=torch.float64)[:, None]
    j = torch.arange(6, dtype=torch.float64)
    return torch.sin(1 + 0.7 * i + 1.3 * j + 0.11 * i * j + phase)


def known_batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    centers = torch.tensor([[[64, 64], [48, 80]], [[96, 96], [128, 32]]], dtype=torch.float64)
    parts = [wave(4, 0.0).view(2, 2, 6), wave(18, 0.5).view(2, 9, 6)]
    parts += [wave(4, 0.05).view(2, 2, 6), wave(18, 0.55).view(2, 9, 6)]
    return parts[0], parts[1], parts[2], parts[3], overlap_labels(centers)


QUARTERS = [0.25, 0.25, 0, 0.25, 0.25, 0, 0, 0, 0]
HALVES = [0.5, 0.5, 0, 0, 0, 0, 0, 0, 0]
FIFTH = [0, 0, 0, 0, 1, 0, 0, 0, 0]
POSITION = {
    # label, logits, v2, v1, paper
    "perfect": (QUARTERS, QUARTERS, -2e-6, -1e-6, 0.0),
    "all zero": (QUARTERS, [0.0] * 9, 0.28767945, 0.28768045, 0.12785870),
    "constant": (QUARTERS, [0.5] * 9, 0.98082549, 0.53768040, 0.51294047),
    "collapsed": (QUARTERS, [1.0] * 9, 15.20179677, 2.38628877, math.inf),
    "mixed": (HALVES, [0.6, 0.3, 0.1, 0, 0.2, 0, 0, 0, 0], 0.21117878, 0.17139354, 0.07300090),
    "one-hot": (FIFTH, [0.1] * 4 + [0.9] + [0.1] * 4, 0.21071869, 0.11535930, 0.10536052),
}


class TestPositionLoss:
    @pytest.mark.parametrize("name", POSITION)
    def test_point_04_known_answers(self, name: str) -> None:
        label, logits, *expected = POSITION[name]
        target, similarity = (torch.tensor([[row]], dtype=torch.float64) for row in (label, logits))
        for mode, value in zip(("v2", "v1", "paper"), expected, strict=True):
            found = position_loss(target, similarity, mode)
            assert found.shape == ()
            assert float(found) == value if math.isinf(value) else near(found, value), mode
        assert torch.equal(position_loss(target, similarity, "fixed"), position_loss(target, similarity, "v2"))

    def test_point_04_positive_and_negative_parts_of_the_codes(self) -> None:
        # "mixed": the two parts apart, by leaving out the other part's entries.
        target = torch.tensor([[HALVES]], dtype=torch.float64)
        similarity = torch.tensor([[[0.6, 0.3, 0.1, 0, 0.2, 0, 0, 0, 0]]], dtype=torch.float64)
        assert near(position_loss(target, similarity, "v2", valid=target > 0), 0.16425069)
        assert near(position_loss(target, similarity, "v2", valid=target == 0), 0.04692809)
        assert near(position_loss(target, similarity, "v1", valid=target == 0), 0.00714286)

    def test_point_04_inter_labels(self) -> None:
        target = torch.tensor([[[0.3, 0, 0.6]]], dtype=torch.float64)
        assert near(position_loss(target, target), -2e-6)
        swapped = target.flip(-1)
        assert near(position_loss(target, swapped), 0.35667212)
        assert near(position_loss(target, swapped, "paper"), 0.23778330)

    def test_plateaus_of_input_independent_answers(self) -> None:
        # Over all centres of the 3x3 grid; one crop a volume, so that the mean of ratios is taken.
        x = torch.arange(32, 160)
        centers = torch.cartesian_prod(x, x)
        target = overlap_labels(centers).unsqueeze(1)
        zero = position_loss(target, torch.zeros_like(target))
        constant = position_loss(target, torch.full_like(target, 0.185))
        assert float(zero) == pytest.approx(0.71288, abs=2e-4)
        assert float(constant) == pytest.approx(0.58316, abs=2e-4)

    def test_refuses_wrong_use(self) -> None:
        row = torch.zeros(1, 2, 9)
        with pytest.raises(UserError, match="unknown form"):
            position_loss(row, row, "v3")  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"\(B, S, n\)"):
            position_loss(row, row[:, :1])


class TestSimilarity:
    def test_known_rows(self) -> None:
        crops = torch.tensor([[1.0, 0], [1, 1], [0, -1]], dtype=torch.float64)
        bases = torch.tensor([[1.0, 0], [0, 1], [-1, 0]], dtype=torch.float64)
        half = math.sqrt(0.5)
        expected = torch.tensor([[1, 0, 0], [half, half, 0], [0, 0, 0]], dtype=torch.float64)
        torch.testing.assert_close(overlap_similarity(crops, bases), expected)

    def test_first_row_of_the_known_batch(self) -> None:
        crops, _, _, bases_teacher, _ = known_batch()
        row = overlap_similarity(crops, bases_teacher)[0, 0]
        expected = [0.89152088, 0.17837970, 0, 0, 0, 0.35561495, 0.42995694, 0.04440674, 0]
        assert all(near(value, wanted) for value, wanted in zip(row, expected, strict=True))


class TestBaseRegulariser:
    @pytest.mark.parametrize(
        ("bases", "code", "paper"),
        [
            ([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], 0.0, 0.0),
            ([[1.0, 2], [1, 2], [1, 2]], 1.0, 1.0),
            ([[1.0, 0], [0.5, 0.8660254], [-0.5, 0.8660254]], 0.166667, 0.5),
            ([[1.0, 0], [-1, 0]], 0.0, 1.0),
        ],
    )
    def test_point_04_known_answers(self, bases: list[list[float]], code: float, paper: float) -> None:
        q = torch.tensor([bases], dtype=torch.float64)
        for mode in ("v1", "v2", "fixed"):
            assert near(base_regulariser(q, mode), code)
        assert near(base_regulariser(q, "paper"), paper)

    def test_point_06_published_gradient_leaves_the_last_base_out_and_ours_does_not(self) -> None:
        q = torch.tensor([[[1.0, 0], [0.5, 0.8660254], [-0.5, 0.8660254]]], dtype=torch.float64, requires_grad=True)
        (one_sided,) = torch.autograd.grad(base_regulariser(q, "v2"), q)
        rows = one_sided[0].norm(dim=1).tolist()
        assert [round(row, 6) for row in rows] == [0.288675, 0.288675, 0.0]
        (both,) = torch.autograd.grad(base_regulariser(q, "fixed"), q)
        # The middle base is pushed from both sides alike here; the last one now moves as the first does.
        assert [round(row, 6) for row in both[0].norm(dim=1).tolist()] == [0.288675, 0.0, 0.288675]

    def test_masked_bases_take_no_part(self) -> None:
        q = torch.randn(2, 5, 4, dtype=torch.float64)
        mask = torch.tensor([[True, True, True, False, False]] * 2)
        torch.testing.assert_close(base_regulariser(q, base_mask=mask), base_regulariser(q[:, :3]))


class TestWholeLoss:
    def test_point_04_known_batch(self) -> None:
        expected = {"loss": 4.14338058, "intra": 4.01315847, "inter": 0.01040632, "base": 0.11981579}
        for mode in ("v2", "fixed"):
            terms = voco_loss(*known_batch(), mode=mode)
            assert terms.keys() == expected.keys()
            for name, value in expected.items():
                assert near(terms[name], value), (mode, name)

    @pytest.mark.parametrize(
        ("volume", "expected"), [(0, (0.67044160, 0.01766687, 0.09725828)), (1, (7.35587534, 0.00314576, 0.14237330))]
    )
    def test_point_04_known_batch_volume_by_volume(self, volume: int, expected: tuple[float, float, float]) -> None:
        crops, bases, crops_teacher, bases_teacher, overlap = known_batch()
        one, other = slice(volume, volume + 1), slice(1 - volume, 2 - volume)
        intra = position_loss(overlap[one], overlap_similarity(crops[one], bases_teacher[one]))
        taught = overlap_similarity(crops_teacher[one], bases_teacher[other])
        inter = position_loss(taught, overlap_similarity(crops[one], bases[other]))
        assert near(intra, expected[0])
        assert near(inter, expected[1])
        assert near(base_regulariser(bases[one]), expected[2])

    def test_point_04_known_batch_v1(self) -> None:
        terms = voco_loss(*known_batch(), mode="v1")
        assert near(terms["loss"], 4.01798917)
        assert near(terms["intra"], 3.85491843 + 0.04325494)
        assert near(terms["base"], 0.11981579)
        assert float(terms["inter"]) == 0

    @pytest.mark.parametrize("mode", MODES)
    def test_point_05_equals_a_loop_with_its_gradients(self, mode: str) -> None:
        generator = torch.Generator().manual_seed(3)
        shapes = [(3, 4, 5), (3, 9, 5), (3, 4, 5), (3, 9, 5)]
        tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        centers = torch.randint(32, 160, (3, 4, 2), generator=generator).double()
        overlap = overlap_labels(centers)
        found = [tensor.clone().requires_grad_() for tensor in tensors]
        looped = [tensor.clone().requires_grad_() for tensor in tensors]
        loss = voco_loss(*found, overlap, mode=mode)["loss"]
        reference = loop_loss(*looped, overlap, mode)
        torch.testing.assert_close(loss, reference, rtol=0, atol=1e-6)
        loss.backward()
        reference.backward()
        for ours, theirs in zip(found, looped, strict=True):
            ours_grad = torch.zeros_like(ours) if ours.grad is None else ours.grad
            theirs_grad = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
            torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-6, atol=1e-6)

    def test_gradients_by_finite_differences(self) -> None:
        generator = torch.Generator().manual_seed(1)
        crops, bases = (torch.rand(2, k, 3, generator=generator, dtype=torch.float64).requires_grad_() for k in (2, 4))
        overlap = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0.25, 0, 0.75]]] * 2, dtype=torch.float64)

        def loss(x: Tensor, q: Tensor) -> Tensor:
            return voco_loss(x, q, x, q, overlap, base_gradient=True, weights=(1, 0, 1))["loss"]

        assert torch.autograd.gradcheck(loss, (crops, bases))

    def test_no_gradient_reaches_the_teacher_unless_asked(self) -> None:
        crops, bases, crops_teacher, bases_teacher, overlap = (tensor.clone() for tensor in known_batch())
        for tensor in (crops, bases, crops_teacher, bases_teacher):
            tensor.requires_grad_()
        voco_loss(crops, bases, crops_teacher, bases_teacher, overlap)["loss"].backward()
        assert crops_teacher.grad is None
        assert bases_teacher.grad is None
        voco_loss(crops, bases, crops_teacher, bases_teacher, overlap, base_gradient=True)["loss"].backward()
        assert crops_teacher.grad is None
        assert bases_teacher.grad is not None

    def test_point_22_one_volume_has_no_inter_term(self) -> None:
        parts = [tensor[:1] for tensor in known_batch()]
        terms = voco_loss(*parts)
        assert float(terms["inter"]) == 0
        assert near(terms["intra"], 0.67044160)

    def test_weights_and_module(self) -> None:
        batch = known_batch()
        terms = VoCoLoss("v2", weights=(2.0, 0.0, 3.0))(*batch)
        assert near(terms["loss"], 2 * 4.01315847 + 3 * 0.11981579)

    def test_refuses_wrong_use(self) -> None:
        crops, bases, crops_teacher, bases_teacher, overlap = known_batch()
        with pytest.raises(UserError, match="do not fit"):
            voco_loss(crops, bases, crops_teacher, bases_teacher, overlap.transpose(1, 2))
        with pytest.raises(UserError, match="v1"):
            voco_loss(crops, bases, crops_teacher, bases_teacher, overlap, mode="v1", base_gradient=True)
        with pytest.raises(UserError, match="unknown form"):
            VoCoLoss("best")  # type: ignore[arg-type]


class TestDepth:
    def test_labels_are_products_and_the_loss_takes_them_over_all_layers(self) -> None:
        generator = torch.Generator().manual_seed(2)
        crops, bases = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 8, 5, generator=generator)
        overlap = torch.tensor([[[0.25, 0.25, 0.5, 0.0]] * 3] * 2)
        depth = torch.tensor([[[0.75, 0.25], [1.0, 0.0], [0.5, 0.5]]] * 2)
        found = VoCoLoss(depth_aware=True)(crops, bases, crops, bases, overlap, depth=depth)
        labels = torch.zeros(2, 3, 8)
        for b in range(2):
            for s in range(3):
                for place in range(4):
                    for layer in range(2):
                        labels[b, s, place * 2 + layer] = overlap[b, s, place] * depth[b, s, layer]
        expected = voco_loss(crops, bases, crops, bases, labels)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)

    def test_depth_is_asked_for_or_refused(self) -> None:
        batch = known_batch()
        with pytest.raises(UserError, match="needs the shares of layers"):
            VoCoLoss(depth_aware=True)(*batch)
        with pytest.raises(UserError, match="takes no depth"):
            VoCoLoss()(*batch, depth=torch.ones(2, 2, 1))


def _gathered_terms(parts: tuple[Tensor, ...]) -> list[Tensor]:
    """Loss of a batch with its inter term from all processes, and the gradients of its student's embeddings."""
    crops, bases, crops_teacher, bases_teacher, overlap = parts
    crops, bases = crops.clone().requires_grad_(), bases.clone().requires_grad_()
    terms = VoCoLoss(gather=True)(crops, bases, crops_teacher, bases_teacher, overlap)
    terms["loss"].backward()
    return [terms["loss"].detach(), terms["inter"].detach(), crops.grad, bases.grad]


def _one_volume(rank: int, port: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(_gathered_terms(tuple(part[rank : rank + 1] for part in known_batch())), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_point_22_neighbours_across_processes(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.spawn(_one_volume, (port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    together = _gathered_terms(known_batch())
    assert near(together[1], 0.01040632)
    for number, expected in enumerate(together):
        # The mean over processes is what data-parallel training takes of losses and gradients.
        parts = [part[number] for part in found]
        mean = sum(parts) / 2 if number < 2 else torch.cat(parts) / 2
        torch.testing.assert_close(mean, expected)


class TestMasks:
    def test_labels_are_shared_out_among_the_bases_that_count(self) -> None:
        overlap = torch.tensor([[[0.25, 0.25, 0.5, 0], [0, 0, 0, 1]]])
        target, valid = mask_overlap(overlap, torch.tensor([[True, True, False, False]]))
        torch.testing.assert_close(target[0, 0], torch.tensor([0.5, 0.5, 0, 0]))
        assert float(target[0, 1].sum()) == 0
        assert valid.tolist() == [[[True, True, False, False], [False] * 4]]

    def test_what_masked_bases_show_makes_no_difference(self) -> None:
        crops, bases, crops_teacher, bases_teacher, overlap = known_batch()
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[0, 3:6] = False
        losses = []
        for filler in (0.0, 5.0):
            hidden = [tensor.clone() for tensor in (bases, bases_teacher)]
            for tensor in hidden:
                tensor[0, 3:6] = filler
            losses.append(voco_loss(crops, hidden[0], crops_teacher, hidden[1], overlap, base_mask=mask)["loss"])
        assert torch.equal(losses[0], losses[1])

    @pytest.mark.parametrize("mode", MODES)
    def test_a_volume_of_air_counts_for_nothing(self, mode: str) -> None:
        crops, bases, crops_teacher, bases_teacher, overlap = known_batch()
        crops, bases = crops.requires_grad_(), bases.requires_grad_()
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[1] = False
        terms = voco_loss(crops, bases, crops_teacher, bases_teacher, overlap, mode=mode, base_mask=mask)
        alone = voco_loss(*(tensor[:1] for tensor in known_batch()), mode=mode)
        assert near(terms["intra"], float(alone["intra"]))
        assert near(terms["base"], float(alone["base"]))
        terms["loss"].backward()
        assert torch.isfinite(crops.grad).all()
        assert not crops.grad[1].any()
        everything = voco_loss(crops, bases, crops_teacher, bases_teacher, overlap, base_mask=torch.zeros_like(mask))
        assert float(everything["loss"].detach()) == 0


class TestNumerics:
    @pytest.mark.parametrize("mode", MODES)
    def test_point_07_zero_and_equal_embeddings_stay_finite(self, mode: str) -> None:
        overlap = overlap_labels(torch.tensor([[[96, 96], [64, 64]]] * 2))
        for crop, base in ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)):
            crops = torch.full((2, 2, 4), crop).requires_grad_()
            bases = torch.full((2, 9, 4), base).requires_grad_()
            terms = voco_loss(crops, bases, crops.detach(), bases.detach(), overlap, mode=mode)
            terms["loss"].backward()
            assert torch.isfinite(terms["loss"])
            assert torch.isfinite(crops.grad).all()
            assert torch.isfinite(bases.grad).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_point_07_half_precision_is_computed_in_single(self, dtype: torch.dtype) -> None:
        *tensors, overlap = known_batch()
        halves = [tensor.to(dtype) for tensor in tensors]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = voco_loss(*halves, overlap.float())
        exact = voco_loss(*(tensor.float() for tensor in halves), overlap.float())
        assert terms["loss"].dtype == torch.float32
        for name, value in exact.items():
            assert torch.equal(terms[name], value)


def loop_loss(x: Tensor, q: Tensor, x_t: Tensor, q_t: Tensor, overlap: Tensor, mode: str) -> Tensor:
    """The loss written out crop by crop and pair by pair, after the equations."""

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b) / (a.norm() * b.norm())

    def form(label: Tensor, logit: Tensor) -> Tensor:
        """Of one volume: (S, n) each."""
        label = label.detach()
        if mode == "paper":
            return sum(-torch.log(1 - (y - v).abs()) for y, v in zip(label.ravel(), logit.ravel(), strict=True)) / (
                label.numel()
            )
        above = below = mass = zeros = 0.0
        for y, v in zip(label.ravel(), logit.ravel(), strict=True):
            if y > 0:
                above = above + y * -torch.log(1 - (y - v).abs() + EPS)
                mass = mass + y
            else:
                below = below + (v**2 if mode == "v1" else -torch.log(1 - v + EPS))
                zeros = zeros + 1
        return above / (mass + EPS) + below / (zeros + EPS)

    def logits(crops: Tensor, bases: Tensor) -> Tensor:
        return torch.stack([torch.stack([cosine(crop, base).clamp_min(0) for base in bases]) for crop in crops])

    volumes, n = q.shape[:2]
    total = x.new_zeros(())
    for b in range(volumes):
        own = logits(x[b], q_t[b].detach())
        if mode == "v1":
            own = 0.5 * (own + logits(x_t[b].detach(), q[b]))
        total = total + form(overlap[b], own)
        if mode != "v1":
            j = (b + 1) % volumes
            total = total + form(logits(x_t[b], q_t[j]), logits(x[b], q[j]))
        pairs = []
        for i in range(n):
            for j in range(i + 1, n):
                similarity = cosine(q[b, i], q[b, j].detach() if mode in ("v1", "v2") else q[b, j])
                pairs.append(similarity.abs() if mode == "paper" else similarity.clamp_min(0) ** 2)
        total = total + torch.stack(pairs).mean()
    return total / volumes
