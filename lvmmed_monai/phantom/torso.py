"""A CT of the trunk from the middle of the chest to the kidneys."""

from __future__ import annotations

import numpy as np

from lvmmed_monai.phantom.scanner import ct_scan
from lvmmed_monai.phantom.shapes import Canvas, edge_width
from lvmmed_monai.phantom.torso_abdomen import paint_abdomen
from lvmmed_monai.phantom.torso_chest import paint_chest, paint_great_vessels
from lvmmed_monai.phantom.torso_frame import add_fields, paint_shell, paint_skeleton
from lvmmed_monai.phantom.torso_liver import Lesion, lesions_of
from lvmmed_monai.phantom.torso_subject import TORSO_LABELS, TorsoSubject, sample_torso
from lvmmed_monai.phantom.volume import PhantomVolume, lps_affine

__all__ = ["torso_ct"]

_AIR_HU = -1000.0
# Largest displacement that the deformation fields reach in practice (millimetres).
_WARP_REACH = 20.0
# Voxels that are painted at a time, so that memory stays bounded at any size.
_SLAB_VOXELS = 3_000_000


def torso_ct(
    seed: tuple[int, ...], *, size: int = 96, slice_mm: tuple[float, float] = (5.0, 6.0), lesion: bool = True
) -> PhantomVolume:
    """Generate one CT volume with its labels.

    Anatomy is a function of millimetres and of ``seed`` alone; ``size`` and ``slice_mm`` only sample it.

    Args:
        seed: integers that name the subject.
        size: columns and rows. The field of view follows the body, about 310 to 370 mm, so 96 gives 3.2 to 3.8 mm.
        slice_mm: the distance between slices is drawn from this range (millimetres).
        lesion: whether the liver has lesions.
    """
    subject = sample_torso((*seed, 10), lesion=lesion)
    rng = np.random.default_rng((*seed, 20))
    widest = 2.0 * (119.0 + 16.0 + subject.fat + 2.0) * subject.scale[0]
    spacing = max(widest, 292.0) * float(rng.uniform(1.04, 1.12)) / size
    step = float(np.round(rng.uniform(*slice_mm), 2))
    spacing = float(np.round(spacing, 4))
    count = max(round(float(rng.uniform(205.0, 232.0)) / step), 3)
    top = float(rng.uniform(60.0, 76.0))
    x = (np.arange(size) - 0.5 * (size - 1)) * spacing + rng.normal(0.0, 3.0)
    y = (np.arange(size) - 0.5 * (size - 1)) * spacing + 6.0 + rng.normal(0.0, 3.0)
    z = top - (count - 1 - np.arange(count)) * step
    table_height = float(rng.uniform(-30.0, 30.0))
    origin = np.round([x[0], y[0] + table_height, z[0] + rng.uniform(-500.0, 500.0)], 3)
    noise = float(rng.uniform(9.0, 17.0))
    acquisition: dict[str, object] = {"KVP": "120", "XRayTubeCurrent": str(int(rng.integers(120, 400)))}
    acquisition["SeriesDescription"] = f"PHANTOM torso, {subject.phase} phase"
    # All that belongs to the subject is drawn by now; noise depends on the number of voxels.
    values, labels, skin = _paint(subject, (x, y, z), lesions_of(subject))
    _paint_couch(values, skin, (x, y))
    image = ct_scan(values, skin, noise, rng)
    if subject.phase != "native":
        acquisition["ContrastBolusAgent"] = "PHANTOM contrast"
    return PhantomVolume(
        image, labels, lps_affine(np.eye(3), (spacing, spacing, step), origin), dict(TORSO_LABELS), "CT", acquisition
    )


def _paint(
    subject: TorsoSubject, axes: tuple[np.ndarray, np.ndarray, np.ndarray], lesions: list[Lesion]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, labels and distance to the skin, slab by slab."""
    slices = max(_SLAB_VOXELS // (len(axes[0]) * len(axes[1])), 1)
    edge = edge_width([float(axis[1] - axis[0]) / scale for axis, scale in zip(axes, subject.scale, strict=True)])
    blocks = []
    for start in range(0, len(axes[2]), slices):
        nominal = (axes[0], axes[1], axes[2][start : start + slices])
        reference = tuple(axis / scale for axis, scale in zip(nominal, subject.scale, strict=True))
        shifts = [field(reference) for field in subject.warp]
        canvas = Canvas.empty(reference, shifts, _AIR_HU, edge=edge, margin=_WARP_REACH)
        add_fields(canvas, subject)
        paint_shell(canvas, subject)
        paint_abdomen(canvas, subject, lesions)
        paint_chest(canvas, subject)
        paint_great_vessels(canvas, subject)
        paint_skeleton(canvas, subject)
        blocks.append((canvas.values, canvas.labels, canvas.fields["skin"]))
    values, labels, skin = (np.concatenate(parts, axis=2) for parts in zip(*blocks, strict=True))
    return values, labels, skin


def _paint_couch(values: np.ndarray, skin: np.ndarray, axes: tuple[np.ndarray, np.ndarray]) -> None:
    """The scanner's table under the back: a pad on a curved shell.

    Args:
        values: (x, y, z) HU, painted on.
        skin: (x, y, z) distance to the skin (mm), negative inside.
        axes: coordinates of columns and rows (mm).
    """
    rear = float(axes[1][np.flatnonzero((skin < 0).any(axis=(0, 2))).max()])
    x, y = (grid.astype(np.float32) for grid in np.meshgrid(*axes, indexing="ij"))
    edge = float(axes[0][1] - axes[0][0])
    surface = rear + 4.0 - x**2 / 900.0
    end = np.abs(x) - 165.0
    pad = np.clip(0.5 - np.maximum(np.abs(y - surface - 9.0) - 8.0, end) / edge, 0.0, 1.0)
    shell = np.clip(0.5 - np.maximum(np.abs(y - surface) - 1.6, end) / edge, 0.0, 1.0)
    for k in range(values.shape[2]):
        outside = np.clip(0.5 + skin[:, :, k] / edge, 0.0, 1.0)
        values[:, :, k] += pad * outside * (-930.0 - values[:, :, k])
        values[:, :, k] += shell * outside * (-250.0 - values[:, :, k])
