"""The two orders in which MONAI's SwinUNETR merges 2 x 2 x 2 neighbours, independent of the MONAI installed.

MONAI 1.5.0 repaired the order (issue 8284 of Project-MONAI/MONAI). Both orders take the same tensors, so that
weights made with one load into the other without a word and give wrong features from the first merging on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lvmmed_monai.errors import UserError

__all__ = [
    "CURRENT_ORDER",
    "LEGACY_ORDER",
    "PATCH_MERGING",
    "CurrentPatchMerging",
    "LegacyPatchMerging",
    "merging_class",
    "order_of_weights",
    "set_patch_merging",
]

logger = logging.getLogger(__name__)

CURRENT_ORDER = "monai_1.5"
LEGACY_ORDER = "monai_1.4"


class CurrentPatchMerging(nn.Module):
    """Merging as ``PatchMerging`` of MONAI 1.5 and later: eight neighbours, each once.

    Args:
        dim: channels of the input; the output has twice as many.
        norm_layer: normalisation of the ``8 * dim`` concatenated channels.
        spatial_dims: 3; an argument because MONAI's ``SwinTransformer(downsample=…)`` gives it.
    """

    # Along depth, height, width, in the order of concatenation.
    offsets = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))

    def __init__(self, dim: int, norm_layer: type[nn.Module] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise UserError(
                f"{type(self).__name__} merges volumes, got spatial_dims={spatial_dims}; network; use MONAI's own in 2D"
            )
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D, H, W, dim)`` to ``(B, D/2, H/2, W/2, 2 * dim)``; odd sides are padded with zeros at their end."""
        odd = [side % 2 for side in x.shape[3:0:-1]]
        if any(odd):
            x = F.pad(x, (0, 0, 0, odd[0], 0, odd[1], 0, odd[2]))
        neighbours = [x[:, d::2, h::2, w::2] for d, h, w in self.offsets]
        return self.reduction(self.norm(torch.cat(neighbours, -1)))


class LegacyPatchMerging(CurrentPatchMerging):
    """Merging as ``PatchMerging`` of MONAI 1.4 and earlier: two neighbours twice, 110 and 011 never.

    Weights that were trained so need it: all published ones of VoCo, of NVIDIA's SwinUNETR and of SuPreM.
    """

    offsets = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


PATCH_MERGING: dict[str, type[CurrentPatchMerging]] = {
    CURRENT_ORDER: CurrentPatchMerging,
    LEGACY_ORDER: LegacyPatchMerging,
}


def merging_class(order: str) -> type[CurrentPatchMerging]:
    """The module of an order.

    Args:
        order: ``monai_1.5`` (1.5 and later) or ``monai_1.4`` (1.4 and earlier).

    Raises:
        UserError: another order.
    """
    if order not in PATCH_MERGING:
        raise UserError(f"unknown patch_merging {order!r}; encoder_options; use one of {', '.join(PATCH_MERGING)}")
    return PATCH_MERGING[order]


def set_patch_merging(network: nn.Module, order: str) -> None:
    """Let a SwinUNETR merge in ``order``; its parameters stay the same objects.

    Args:
        network: MONAI's ``SwinUNETR`` or ``SwinTransformer``, or a module that holds one.
        order: as for `merging_class`.

    Raises:
        UserError: unknown order, or nothing in ``network`` merges patches.
    """
    kind = merging_class(order)
    stages = [module for module in network.modules() if hasattr(getattr(module, "downsample", None), "reduction")]
    if not stages:
        raise UserError(f"no patch merging in {type(network).__name__}; set_patch_merging; give a SwinUNETR")
    for stage in stages:
        before: Any = stage.downsample
        # Built on "meta", for its parameters are replaced at once: those of the size H are gigabytes.
        with torch.device("meta"):
            after = kind(before.reduction.out_features // 2)
        after.reduction, after.norm = before.reduction, before.norm
        after.train(before.training)
        stage.downsample = after


def order_of_weights(origin: Mapping[str, Any], chosen: str | None = None) -> str:
    """The order that weights were trained in: what their file records, else the version of MONAI that it names.

    A foreign file that says neither is taken as made with MONAI 1.4 or earlier, as all published ones were, unless
    ``chosen`` says otherwise.

    Args:
        origin: what `read_encoder_file` returns.
        chosen: the order that the user gave, None without.
    """
    recorded = origin["options"].get("patch_merging")
    if recorded is not None:
        return str(recorded)
    version = _major_minor((origin["provenance"].get("versions") or {}).get("monai"))
    if version is not None:
        return LEGACY_ORDER if version < (1, 5) else CURRENT_ORDER
    if origin["name"] is not None:
        # Our own files from before the option was written: made with MONAI 1.6.
        return CURRENT_ORDER
    if chosen is None:
        logger.warning(
            "the weights do not say with which MONAI they were made and are taken as made with 1.4 or earlier, as all "
            "published SwinUNETR weights are: patches are merged in the old order. If they were made with "
            "MONAI 1.5 or later, set the encoder option patch_merging to %s",
            CURRENT_ORDER,
        )
    return chosen or LEGACY_ORDER


def _major_minor(version: object) -> tuple[int, int] | None:
    """(1, 3) of "1.3.0", None of what does not begin so, e.g. the "0+unknown" of a MONAI that was never installed."""
    found = re.match(r"(\d+)\.(\d+)", str(version))
    return (int(found[1]), int(found[2])) if found else None
