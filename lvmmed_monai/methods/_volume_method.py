"""What all 3D methods share: encoder, preparation of volumes, and their cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lvmmed_monai.data.volume_cache import VolumeCache
from lvmmed_monai.errors import UserError
from lvmmed_monai.methods._preparation import VolumePreparation, prepared_volumes
from lvmmed_monai.networks import Encoder, build_encoder

__all__ = ["PATIENCE_STEPS", "VolumeMethod", "last_monitors"]

# Alarms judge a run after this many steps, half a minute of a small network.
PATIENCE_STEPS = 300


class VolumeMethod:
    """Base class of 3D methods. The encoder's random weights are the first that are drawn.

    So methods that are built under the same seed start from the same encoder.

    Args:
        encoder_name: a 3D encoder of the registry.
        in_channels: channels of the volumes.
        encoder_options: of the encoder.
        spacing_mm: voxel size that volumes are resampled to, a number or (R, A, S).
        ct_window: HU that become 0 and 1, or None for the package's window.
        preset: of a body part, in place of both (`transforms.body_parts`): a name, or "by_body_part" for each volume's
            own; volumes of other body parts go by spacing_mm and ct_window.
        crop_size: edge of a crop in voxels, even.
        monitor_blocks: places that `monitors` looks at.

    Raises:
        UserError: an option that cannot be.
    """

    name: str

    def __init__(
        self,
        *,
        encoder_name: str = "segresnet_tiny",
        in_channels: int = 1,
        encoder_options: Mapping[str, Any] | None = None,
        spacing_mm: float | Sequence[float] = 2.0,
        ct_window: Sequence[float] | None = None,
        preset: str | None = None,
        crop_size: int = 24,
        monitor_blocks: int = 32,
    ) -> None:
        if crop_size < 2 or crop_size % 2:
            raise UserError(f"crop_size must be even and at least 2, got {crop_size}; {self.name}; correct it")
        if monitor_blocks < 1:
            raise UserError(f"monitor_blocks must be at least 1, got {monitor_blocks}; {self.name}; correct it")
        self.crop_size = crop_size
        self.monitor_blocks = monitor_blocks
        self.preparation = VolumePreparation(
            self._spacing(spacing_mm),
            in_channels,
            self._window(ct_window),
            preset=preset,
            block_size=self.block_size(crop_size),
        )
        self._encoder = build_encoder(encoder_name, in_channels, **(encoder_options or {}))
        if self._encoder.spatial_dims != 3:
            raise UserError(
                f"encoder {encoder_name!r} is not 3D; {self.name}; choose a 3D encoder such as segresnet_tiny"
            )

    def block_size(self, crop_size: int) -> tuple[int, int, int]:
        """(X, Y, Z) to which presets that resize a volume do so; that of VoCo with 3 x 3 bases."""
        return 3 * crop_size, 3 * crop_size, crop_size

    def encoder(self) -> Encoder:
        """The encoder being trained."""
        return self._encoder

    def input_spec(self) -> dict[str, Any]:
        """What the encoder was fed with, for its file."""
        window = self.preparation.ct_window
        return {
            "spatial_dims": 3,
            "in_channels": self.preparation.in_channels,
            "spacing_mm": list(self.preparation.spacing_mm),
            "intensity": "scale_intensity by modality, 0..1",
            "ct_window": list(window) if window else None,
            "preset": self.preparation.preset,
        }

    def after_step(self, network: nn.Module) -> None:
        """Nothing moves but the weights."""

    def volumes(
        self, datalists: Sequence[str | Path], section: str, cache_dir: str | Path
    ) -> tuple[list[dict[str, Any]], VolumeCache]:
        """Items of a section of datalists, and their prepared volumes; see `prepared_volumes`."""
        return prepared_volumes(datalists, section, cache_dir, self.preparation)

    def _spacing(self, spacing: float | Sequence[float]) -> tuple[float, float, float]:
        values = (spacing,) * 3 if isinstance(spacing, int | float) else tuple(spacing)
        if len(values) != 3 or min(values) <= 0:
            raise UserError(
                f"spacing_mm must be one or three positive numbers, got {spacing!r}; {self.name}; correct it"
            )
        return float(values[0]), float(values[1]), float(values[2])

    def _window(self, window: Sequence[float] | None) -> tuple[float, float] | None:
        if window is None:
            return None
        if len(window) != 2 or window[0] >= window[1]:
            raise UserError(f"ct_window must be two growing numbers in HU, got {window!r}; {self.name}; correct it")
        return float(window[0]), float(window[1])


def last_monitors(history: Mapping[str, Any]) -> dict[str, float] | None:
    """The monitors measured last, None before `PATIENCE_STEPS`."""
    monitors = history["monitors"]
    return monitors[-1][1] if monitors and monitors[-1][0] >= PATIENCE_STEPS else None
