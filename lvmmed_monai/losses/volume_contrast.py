"""Volume contrast (VoCo): the overlap of crops with a grid of base crops, learnt as similarity of embeddings.

Wu, Zhuang, Chen: "VoCo" (CVPR 2024, arXiv 2402.17300) and "Large-Scale 3D Medical Image Pre-training"
(TPAMI, arXiv 2410.09890). A random crop's similarity to each base crop of its volume is to equal the share
of its area that lies in that base (intra); its similarity to the bases of another volume is to equal what a
slow teacher says (inter); base crops are pushed apart (base).

Shapes: B volumes, S random crops and n base crops of each, C embedding channels.

Four forms exist. ``paper``: the printed equations. ``v1`` and ``v2``: the two published codes, which treat labels
of zero apart from the others and give the last base no gradient from the base term. ``fixed``: ``v2`` with a
base term whose gradient reaches every base. All of them are computed in at least float32.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from lvmmed_monai.errors import UserError
from lvmmed_monai.losses.gathering import gathered, processes

__all__ = [
    "MODES",
    "Mode",
    "VoCoLoss",
    "base_regulariser",
    "joint_labels",
    "mask_overlap",
    "overlap_similarity",
    "position_loss",
    "voco_loss",
]

Mode = Literal["paper", "v1", "v2", "fixed"]
MODES: tuple[str, ...] = get_args(Mode)

# The published codes' constant, in every logarithm and every denominator.
_EPS = 1e-6
# Below this length a vector counts as zero: its similarities and their gradients are zero.
_TINY_NORM = 1e-8


def _check_mode(mode: str, base_gradient: bool = False) -> None:
    if mode not in MODES:
        raise UserError(f"unknown form of the volume contrast loss {mode!r}; mode; choose one of {', '.join(MODES)}")
    if mode == "v1" and base_gradient:
        raise UserError("base_gradient means nothing in mode 'v1'; volume contrast loss; set it to false")


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def overlap_similarity(crops: Tensor, bases: Tensor) -> Tensor:
    """Cosine similarity of crops and bases, negative values set to zero.

    Args:
        crops: (..., S, C).
        bases: (..., n, C).

    Returns:
        (..., S, n), from 0 to 1; a zero vector has similarity 0 to everything.
    """
    with torch.autocast(crops.device.type, enabled=False):
        return _cosines(_unit(crops), _unit(bases))


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(_full(vectors), dim=-1, eps=_TINY_NORM)


def _units(crops: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """`_unit` of both in one go."""
    first, second = _unit(torch.cat([_full(crops), _full(bases)], 1)).split([crops.shape[1], bases.shape[1]], 1)
    return first, second


def _cosines(crops: Tensor, bases: Tensor) -> Tensor:
    """Of unit vectors, negative values set to zero."""
    return F.relu(crops @ bases.transpose(-1, -2))


def mask_overlap(overlap: Tensor, base_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out bases that show only air: their share of a crop's label goes to the crop's other bases.

    Args:
        overlap: (B, S, n) labels, each row summing to 1.
        base_mask: (B, n), True where a base counts.

    Returns:
        Labels (B, S, n) whose rows sum to 1 again, or to 0 where a crop lies in air alone, and the entries that
        count (B, S, n), bool.
    """
    kept = overlap * base_mask.unsqueeze(1)
    mass = kept.sum(-1, keepdim=True)
    inside = mass > _EPS
    return torch.where(inside, kept / mass.clamp_min(_EPS), torch.zeros_like(kept)), base_mask.unsqueeze(1) & inside


def _paper_form(target: Tensor, similarity: Tensor, valid: Tensor, floor: float) -> Tensor:
    remainder = (1 - (target - similarity).abs()).clamp_min(floor)
    # log only where it counts: the gradient of a masked infinity would be NaN.
    terms = -torch.log(torch.where(valid, remainder, torch.ones_like(remainder)))
    return terms.sum((-1, -2)) / valid.sum((-1, -2)).clamp_min(1)


def _code_form(target: Tensor, similarity: Tensor, valid: Tensor, squared: bool) -> Tensor:
    none = target == 0
    # Weights that sum to 1 for each kind of label: constants, apart from all that has a gradient.
    both = target * valid, (valid & none).to(similarity.dtype)
    inside, outside = (weight / (weight.sum((-1, -2), keepdim=True) + _EPS) for weight in both)
    # Where the label is 0 the distance is the similarity: one logarithm serves both kinds.
    logarithm = torch.log1p(_EPS - torch.where(none, similarity, (target - similarity).abs()))
    if squared:
        return (outside * similarity.square() - inside * logarithm).sum((-1, -2))
    return -((inside + outside) * logarithm).sum((-1, -2))


def _position_losses(target: Tensor, similarity: Tensor, mode: Mode, valid: Tensor, floor: float = 0.0) -> Tensor:
    """(..., B) of (..., B, S, n); sums run over all crops of a volume together, as in the published codes."""
    target = target.detach().to(similarity.dtype)
    if mode == "paper":
        return _paper_form(target, similarity, valid, floor)
    return _code_form(target, similarity, valid, squared=mode == "v1")


def _position_means(target: Tensor, similarity: Tensor, mode: Mode, valid: Tensor, floor: float) -> Tensor:
    """(...) of (..., B, S, n): the mean of `_position_losses` over the volumes with a valid entry; 0 without any."""
    counts = valid.flatten(-2).any(-1)
    return (_position_losses(target, similarity, mode, valid, floor) * counts).sum(-1) / counts.sum(-1).clamp_min(1)


def position_loss(
    target: Tensor, similarity: Tensor, mode: Mode = "v2", *, valid: Tensor | None = None, floor: float = 0.0
) -> Tensor:
    """How far similarities are from the labels: the mean over volumes.

    Sums run over all crops of a volume together, as in the published codes. ``fixed`` equals ``v2`` here.

    Args:
        target: (B, S, n), 0 to 1; no gradient is taken through it.
        similarity: (B, S, n), 0 to 1.
        mode: ``paper``, ``v1``, ``v2`` or ``fixed``.
        valid: (B, S, n), bool: the entries that count; all of them when None. Volumes without any are left out.
        floor: ``paper`` only: the least value its logarithm may see. With 0, the printed equation, a
            similarity of 1 beside a label of 0 costs infinity.

    Returns:
        A scalar; 0 without a valid entry.

    Raises:
        UserError: unknown mode, or shapes that differ.
    """
    _check_mode(mode)
    if target.shape != similarity.shape or target.ndim != 3:
        raise UserError(
            f"labels and similarities must both be (B, S, n), got {tuple(target.shape)} and {tuple(similarity.shape)}; "
            "position_loss; pass one label for each crop and base"
        )
    with torch.autocast(similarity.device.type, enabled=False):
        valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid
        return _position_means(target, _full(similarity), mode, valid, floor)


def base_regulariser(bases: Tensor, mode: Mode = "fixed", *, base_mask: Tensor | None = None) -> Tensor:
    """Mean over pairs of bases of their similarity: squared, negatives as zero; its absolute value in ``paper``.

    Args:
        bases: (B, n, C).
        mode: in ``v1`` and ``v2`` a pair's gradient reaches only its first base, as published.
        base_mask: (B, n), bool: the bases that count. Volumes with fewer than two are left out.

    Returns:
        A scalar, the mean over volumes; 0 without a pair.
    """
    _check_mode(mode)
    with torch.autocast(bases.device.type, enabled=False):
        return _regulariser(_unit(bases), mode, base_mask)


def _regulariser(unit: Tensor, mode: Mode, base_mask: Tensor | None) -> Tensor:
    other = unit.detach() if mode in ("v1", "v2") else unit
    similarity = unit @ other.transpose(-1, -2)
    penalty = similarity.abs() if mode == "paper" else F.relu(similarity).square()
    pairs = torch.ones_like(similarity, dtype=torch.bool).triu(1)
    if base_mask is not None:
        pairs = pairs & base_mask.unsqueeze(1) & base_mask.unsqueeze(2)
    counts = pairs.sum((-1, -2), keepdim=True)
    # A volume's pairs weigh 1 together, and a volume without any does not count.
    return (penalty * (pairs / counts.clamp_min(1))).sum() / (counts > 0).sum().clamp_min(1)


def _intra_similarity(crops: Tensor, bases: Tensor, crops_teacher: Tensor, bases_teacher: Tensor, mode: Mode) -> Tensor:
    """Of unit vectors."""
    if mode == "v1":
        return 0.5 * (_cosines(crops, bases_teacher) + _cosines(crops_teacher, bases))
    return _cosines(crops, bases_teacher)


def joint_labels(overlap: Tensor, depth: Tensor) -> Tensor:
    """Labels over all bases of a grid with layers: (..., n) axial shares and (..., m) shares of layers to (..., n * m).

    The layer is the fast index, as in `lvmmed_monai.transforms.crops_3d.base_centers`.
    """
    return (overlap.unsqueeze(-1) * depth.unsqueeze(-2)).flatten(-2)


def voco_loss(
    crops: Tensor,
    bases: Tensor,
    crops_teacher: Tensor,
    bases_teacher: Tensor,
    overlap: Tensor,
    *,
    mode: Mode = "fixed",
    base_gradient: bool = False,
    base_mask: Tensor | None = None,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    gather: bool = False,
) -> dict[str, Tensor]:
    """The whole loss of a batch.

    The inter term compares each volume with the next one of the batch; with one volume, and in ``v1``, it is 0.
    All else is computed within a volume, so that a batch divided over processes gives the same gradients.

    Args:
        crops: (B, S, C), the student's embeddings of the random crops.
        bases: (B, n, C), the student's embeddings of the base crops.
        crops_teacher: (B, S, C), the teacher's.
        bases_teacher: (B, n, C), the teacher's.
        overlap: (B, S, n), each crop's share in each base.
        mode: ``paper``, ``v1``, ``v2`` or ``fixed``.
        base_gradient: let the intra term's gradient through the bases too. The published forms stop it; short
            runs learn faster with it.
        base_mask: (B, n), bool: bases to count; the others show air.
        weights: of the intra, inter and base terms.
        gather: take the next volume from the batch of all processes, with gradients; all must have equal B. Without
            it each process compares the volumes of its own part.

    Returns:
        Scalars ``loss``, ``intra``, ``inter``, ``base``.

    Raises:
        UserError: shapes do not fit, or ``base_gradient`` with ``v1``, whose two-way similarity fixes the gradients.
    """
    _check_mode(mode, base_gradient)
    _check_shapes(crops, bases, overlap)
    with torch.autocast(crops.device.type, enabled=False):
        # Few operations: on tensors as small as these they cost more than their arithmetic.
        crops, bases = _units(crops, bases)
        bases_teacher = bases_teacher if base_gradient else bases_teacher.detach()
        crops_teacher, bases_teacher = _units(crops_teacher.detach(), bases_teacher)
        target, valid = _full(overlap), torch.ones_like(overlap, dtype=torch.bool)
        if base_mask is not None:
            target, valid = mask_overlap(target, base_mask)
        floor = _EPS if mode == "paper" else 0.0
        similarity = _intra_similarity(crops, bases, crops_teacher, bases_teacher, mode)
        compared = [(target, similarity, valid)]
        base = _regulariser(bases, mode, base_mask)
        if mode != "v1" and (len(crops) > 1 or _processes(gather) > 1):
            bases, bases_teacher = (_next_volume(tensor, gather) for tensor in (bases, bases_teacher.detach()))
            counted = valid
            if base_mask is not None:
                counted = valid.any(-1, keepdim=True) & _next_volume(base_mask, gather).unsqueeze(1)
            teacher = _cosines(crops_teacher, bases_teacher)
            compared.append((teacher, _cosines(crops, bases), counted))
        labels, found, counts = (torch.stack(parts) for parts in zip(*compared, strict=True))
        intra, *others = _position_means(labels, found, mode, counts, floor)
        inter = others[0] if others else intra.new_zeros(())
        total = weights[0] * intra + weights[1] * inter + weights[2] * base
        return {"loss": total, "intra": intra, "inter": inter, "base": base}


def _processes(gather: bool) -> int:
    return processes() if gather else 1


def _next_volume(tensor: Tensor, gather: bool) -> Tensor:
    """Row i + 1 in place of row i of (B, ...), the first after the last; over all processes with ``gather``."""
    if _processes(gather) == 1:
        return tensor.roll(-1, 0)
    # Collectives take no bool.
    everywhere = gathered(tensor if tensor.is_floating_point() else tensor.to(torch.uint8))
    following = torch.arange(1, len(tensor) + 1, device=tensor.device) + dist.get_rank() * len(tensor)
    return everywhere[following % len(everywhere)].to(tensor.dtype)


def _check_shapes(crops: Tensor, bases: Tensor, overlap: Tensor) -> None:
    expected = (*crops.shape[:2], bases.shape[1]) if crops.ndim == 3 and bases.ndim == 3 else None
    if expected is None or tuple(overlap.shape) != expected or crops.shape[::2] != bases.shape[::2]:
        raise UserError(
            f"crops (B, S, C), bases (B, n, C) and overlap (B, S, n) do not fit: {tuple(crops.shape)}, "
            f"{tuple(bases.shape)}, {tuple(overlap.shape)}; volume contrast loss; pass one label for each crop and base"
        )


class VoCoLoss(nn.Module):
    """`voco_loss` with its settings kept; see there for the arguments.

    Args:
        depth_aware: bases lie in layers along z, and `forward` takes each crop's share in each layer.
    """

    def __init__(
        self,
        mode: Mode = "fixed",
        *,
        base_gradient: bool = False,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        depth_aware: bool = False,
        gather: bool = False,
    ) -> None:
        super().__init__()
        _check_mode(mode, base_gradient)
        self.mode = mode
        self.base_gradient = base_gradient
        self.weights = weights
        self.depth_aware = depth_aware
        self.gather = gather

    def forward(
        self,
        crops: Tensor,
        bases: Tensor,
        crops_teacher: Tensor,
        bases_teacher: Tensor,
        overlap: Tensor,
        base_mask: Tensor | None = None,
        *,
        depth: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scalars ``loss``, ``intra``, ``inter``, ``base`` of a batch.

        Args:
            crops, bases, crops_teacher, bases_teacher, base_mask: as `voco_loss`; of n * m bases with m layers.
            overlap: (B, S, n), each crop's share in each axial place.
            depth: (B, S, m), each crop's share in each layer, rows summing to 1; needed if ``depth_aware``.

        Raises:
            UserError: as `voco_loss`, or ``depth`` is missing or not expected.
        """
        if (depth is not None) != self.depth_aware:
            need = "needs the shares of layers (depth)" if self.depth_aware else "takes no depth"
            raise UserError(
                f"the loss with depth_aware={self.depth_aware} {need}; volume contrast loss; change one of them"
            )
        return voco_loss(
            crops,
            bases,
            crops_teacher,
            bases_teacher,
            overlap if depth is None else joint_labels(overlap, depth),
            mode=self.mode,
            base_gradient=self.base_gradient,
            base_mask=base_mask,
            weights=self.weights,
            gather=self.gather,
        )
