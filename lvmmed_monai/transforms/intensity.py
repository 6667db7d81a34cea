"""Intensities of every modality to [0, 1]: one rule for pre-training, fine-tuning and inference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from lvmmed_monai.errors import UserError

__all__ = ["DEFAULT_CT_WINDOW", "MODALITIES", "ScaleIntensityByModalityd", "intensity_rules", "scale_intensity"]

MODALITIES = ("CT", "MR", "XR", "US", "PET", "COLOR", "OTHER")

DEFAULT_CT_WINDOW = (-500.0, 400.0)
"""HU mapped to 0 and 1: wide enough to tell lung, fat, soft tissue, contrast and bone apart."""

_PERCENTILES = (0.5, 99.5)

# Rules that a user can give, and the range of their numbers.
_RULES = {"window": (-np.inf, np.inf), "percentiles": (0.0, 100.0)}

# Modalities whose 8-bit images already use their full range; percentiles would change contrast between images.
_DISPLAY_RANGE = frozenset({"XR", "US", "COLOR", "OTHER"})


def _check(modality: str, window: Sequence[float] | None) -> None:
    if modality not in MODALITIES:
        raise UserError(
            f"modality must be one of {', '.join(MODALITIES)}, got {modality!r}; intensity scaling; "
            "correct the modality of the datalist or configuration"
        )
    if window is not None and not window[0] < window[1]:
        raise UserError(
            f"window must be (low, high) with low < high, got {tuple(window)}; intensity scaling; correct the window"
        )


def intensity_rules(rules: Mapping[str, Mapping[str, Sequence[float]]] | None) -> dict[str, dict[str, list[float]]]:
    """Rules that replace those of single modalities, checked: ``{"CT": {"window": [-1000, 400]}}``.

    Args:
        rules: by modality ``{"window": [low, high]}`` in the image's units, or ``{"percentiles": [low, high]}``, 0 to
            100; each is an argument of `scale_intensity`. None for no rule.

    Raises:
        UserError: an unknown modality or rule, or numbers that cannot be.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for modality, rule in (rules or {}).items():
        _check(modality, None)
        if not _is_rule(rule):
            raise UserError(
                f"the rule of {modality} is {rule!r}; intensity; give {{'window': [low, high]}} in the image's units "
                "or {'percentiles': [low, high]} from 0 to 100, with low < high"
            )
        found[modality] = {name: [float(one) for one in numbers] for name, numbers in rule.items()}
    return found


def _is_rule(rule: Any) -> bool:
    if not isinstance(rule, Mapping) or len(rule) != 1 or not rule.keys() <= _RULES.keys():
        return False
    ((name, numbers),) = rule.items()
    if not isinstance(numbers, list | tuple) or [isinstance(one, int | float) for one in numbers] != [True, True]:
        return False
    least, most = _RULES[name]
    return bool(least <= numbers[0] < numbers[1] <= most)


def _percentile_range(array: Tensor, percentiles: Sequence[float]) -> tuple[float, float]:
    """Two percentiles of the finite values (0, 0 when there are none)."""
    values = array.detach().cpu().numpy().ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(values, percentiles)
    return float(low), float(high)


def _intensity_range(
    array: Tensor, modality: str, window: Sequence[float] | None, percentiles: Sequence[float] | None
) -> tuple[float, float]:
    if window is not None:
        return float(window[0]), float(window[1])
    if percentiles is not None:
        return _percentile_range(array, percentiles)
    # Every CT of a body holds air or fat, both below 0 HU. A "CT" without any negative value is not in HU
    # (8-bit copies, lost rescale intercepts), and an HU window would cut it in the wrong place.
    if modality == "CT" and bool((array < 0).any()):
        return DEFAULT_CT_WINDOW
    if modality in _DISPLAY_RANGE and array.dtype == torch.uint8:
        return 0.0, 255.0
    return _percentile_range(array, _PERCENTILES)


def scale_intensity(
    array: Tensor,
    modality: str,
    window: Sequence[float] | None = None,
    percentiles: Sequence[float] | None = None,
) -> Tensor:
    """Scale an image to [0, 1] by the rule of its modality, clipping what lies outside.

    CT: a window in HU, ``DEFAULT_CT_WINDOW`` unless given; a CT without any negative value is not in HU and is
    scaled by percentiles. MR and PET: 0.5 to 99.5 percentile of the whole array, so pass a whole volume, not a patch.
    XR, US, COLOR, OTHER: 8-bit images by 255, all others by the percentiles.

    Args:
        array: image of any shape and numeric dtype; a MetaTensor keeps its metadata.
        modality: one of ``MODALITIES``.
        window: (low, high) in the image's units; takes precedence over the modality's rule.
        percentiles: (low, high), 0 to 100, that become 0 and 1; takes precedence over the modality's rule.

    Returns:
        float32, same shape, within [0, 1]; NaN becomes 0, a constant image becomes 0.

    Raises:
        UserError: unknown modality, or a window that is not increasing.
    """
    _check(modality, window)
    low, high = _intensity_range(array, modality, window, percentiles)
    # double: a large offset (PET in Bq/ml reaches 1e6) would cost the contrast most of a float32's digits
    scale = 1.0 / (high - low) if high > low else 0.0
    scaled = (array.to(torch.float64) - low) * scale
    return torch.nan_to_num(scaled, nan=0.0).clamp_(0.0, 1.0).to(torch.float32)


class ScaleIntensityByModalityd(MapTransform):
    """Dictionary form of `scale_intensity`.

    Args:
        keys: image keys.
        modality: one of ``MODALITIES``.
        window: (low, high) or None for the modality's rule.
        allow_missing_keys: leave absent keys alone instead of raising.
    """

    def __init__(
        self,
        keys: KeysCollection,
        modality: str,
        window: tuple[float, float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _check(modality, window)
        self.modality = modality
        self.window = window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = scale_intensity(torch.as_tensor(result[key]), self.modality, self.window)
        return result
