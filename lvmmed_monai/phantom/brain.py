"""A T1-like MR of the head: scalp, skull, fluid, folded cortex, white matter, deep nuclei, ventricles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lvmmed_monai.phantom.scanner import mr_scan
from lvmmed_monai.phantom.shapes import (
    Canvas,
    SplineField,
    capsule,
    edge_width,
    ellipsoid,
    intersection,
    rotation,
    smoothstep,
    union,
)
from lvmmed_monai.phantom.volume import PhantomVolume, lps_affine

__all__ = ["BRAIN_LABELS", "brain_mr"]

BRAIN_LABELS = {1: "white_matter", 2: "grey_matter", 3: "ventricle"}
WHITE, GREY, VENTRICLE = 1, 2, 3

# Signal of a T1-weighted gradient echo, arbitrary units.
_SIGNAL = {
    "scalp": 560.0, "marrow": 330.0, "bone": 35.0, "fluid": 95.0, "grey": 300.0, "white": 445.0, "nuclei": 350.0,
    "muscle": 260.0, "dura": 150.0,
}  # fmt: skip
_LOW, _HIGH = (-110.0, -130.0, -110.0), (110.0, 130.0, 120.0)
_SLAB_VOXELS = 3_000_000
_WARP_REACH = 12.0


@dataclass(frozen=True)
class _Head:
    """One head: its size, the size of its fluid spaces, its folds. Distances in millimetres, axes LPS."""

    scale: tuple[float, float, float]
    atrophy: float
    ventricles: float
    scalp: float
    signal: dict[str, float]
    warp: tuple[SplineField, SplineField, SplineField]
    folds: tuple[SplineField, SplineField]
    texture: SplineField
    bias: SplineField


def brain_mr(seed: tuple[int, ...], *, size: int = 96, slice_mm: tuple[float, float] = (3.2, 4.0)) -> PhantomVolume:
    """Generate one MR volume with its labels, slightly oblique as head scans are.

    Args:
        seed: integers that name the subject.
        size: columns and rows over a field of view of about 190 to 215 mm.
        slice_mm: the distance between slices is drawn from this range (millimetres).
    """
    rng = np.random.default_rng((*seed, 30))
    head = _sample_head(rng)
    noise_rng = np.random.default_rng((*seed, 40))
    spacing = float(np.round(rng.uniform(202.0, 222.0) / size, 4))
    step = float(np.round(rng.uniform(*slice_mm), 2))
    count = max(round(float(rng.uniform(138.0, 150.0)) / step), 3)
    middle = 0.5 * (size - 1)
    x = (np.arange(size) - middle) * spacing + rng.normal(0.0, 1.5)
    y = (np.arange(size) - middle) * spacing + rng.normal(0.0, 1.5)
    z = (np.arange(count) - count + 1) * step + 88.0 + rng.normal(0.0, 2.0)
    values, labels, bias = _paint(head, (x, y, z))
    image = mr_scan(values, bias, float(rng.uniform(8.0, 15.0)), noise_rng)
    # The slices follow the line through the commissures; the head lies a little turned in the scanner.
    tilt = rotation(float(rng.uniform(-14.0, -4.0)), float(rng.normal(0.0, 2.0)), float(rng.normal(0.0, 3.0)))
    directions = tilt.astype(np.float64).T
    origin = np.round(directions @ np.array([x[0], y[0], z[0]]) + rng.normal(0.0, 5.0, 3), 3)
    affine = lps_affine(directions, (spacing, spacing, step), origin)
    acquisition: dict[str, object] = {"EchoTime": "3.4", "RepetitionTime": "9.2", "FlipAngle": "8"}
    acquisition["SeriesDescription"] = "PHANTOM head, T1-like"
    return PhantomVolume(image, labels, affine, dict(BRAIN_LABELS), "MR", acquisition)


def _sample_head(rng: np.random.Generator) -> _Head:
    def field(step: float, std: float) -> SplineField:
        return SplineField(rng, _LOW, _HIGH, step, std)

    atrophy = float(rng.uniform(0.0, 1.0))
    return _Head(
        scale=(rng.uniform(0.94, 1.06), rng.uniform(0.94, 1.06), rng.uniform(0.95, 1.05)),
        atrophy=atrophy,
        ventricles=float(0.8 + 0.5 * atrophy + rng.uniform(-0.1, 0.15)),
        scalp=float(rng.uniform(4.5, 8.5)),
        signal={name: value * float(rng.normal(1.0, 0.04)) for name, value in _SIGNAL.items()},
        warp=(field(60.0, 1.8), field(60.0, 1.8), field(60.0, 1.8)),
        folds=(field(9.0, 1.0), field(15.0, 1.0)),
        texture=field(9.0, 1.0),
        bias=field(85.0, 0.12),
    )


def _paint(head: _Head, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal, labels and coil sensitivity, slab by slab."""
    slices = max(_SLAB_VOXELS // (len(axes[0]) * len(axes[1])), 1)
    edge = edge_width([float(axis[1] - axis[0]) / scale for axis, scale in zip(axes, head.scale, strict=True)])
    blocks = []
    for start in range(0, len(axes[2]), slices):
        nominal = (axes[0], axes[1], axes[2][start : start + slices])
        reference = tuple(axis / scale for axis, scale in zip(nominal, head.scale, strict=True))
        shifts = [field(reference) for field in head.warp]
        canvas = Canvas.empty(reference, shifts, 0.0, edge=edge, margin=_WARP_REACH)
        canvas.fields["fine"], canvas.fields["coarse"] = _folds(canvas, head)
        canvas.fields["texture"] = head.texture(reference)
        brain = _paint_coverings(canvas, head)
        _paint_cerebrum(canvas, head, brain)
        _paint_deep(canvas, head)
        _paint_hindbrain(canvas, head)
        blocks.append((canvas.values, canvas.labels, np.exp(head.bias(reference))))
    values, labels, bias = (np.concatenate(parts, axis=2) for parts in zip(*blocks, strict=True))
    return values, labels, bias


def _folds(canvas: Canvas, head: _Head) -> tuple[np.ndarray, np.ndarray]:
    """Distances (mm) to two families of winding sheets, the sulci: where smooth random fields cross zero."""
    fine, coarse = (field(canvas.axes) for field in head.folds)
    # A field falls by about its standard deviation over one lattice step.
    return 7.5 * np.abs(fine), 13.0 * np.abs(coarse)


def _paint_coverings(canvas: Canvas, head: _Head) -> np.ndarray:
    """Scalp, skull with marrow, dura and fluid; gives the distance to the inside of the skull."""
    x, y, z = canvas.x, canvas.y, canvas.z
    # The skull is narrower in front, and its base is flat.
    narrow = 1.0 + 0.10 * smoothstep(-y, 20.0, 90.0)
    bent = replace(canvas, x=x * narrow)
    inner = ellipsoid(bent, (0.0, 2.0, 6.0), (68.0, 85.0, 76.0))
    outer = inner - 8.5 - 2.0 * smoothstep(y, 60.0, 95.0)
    neck = ellipsoid(canvas, (0.0, 28.0, -80.0), (52.0, 56.0, 70.0))
    face = ellipsoid(canvas, (0.0, -42.0, -72.0), (56.0, 50.0, 66.0))
    skin = union(union(outer - head.scalp, neck - 6.0, 18.0), face, 14.0)
    signal, texture = head.signal, canvas.fields["texture"]
    canvas.paint(skin, signal["scalp"] + 30.0 * texture)
    canvas.paint(np.maximum(skin + 6.0, z + 34.0), signal["muscle"] + 45.0 * texture)
    for side in (-1.0, 1.0):
        orbit = ellipsoid(canvas, (30.0 * side, -74.0, -34.0), (17.0, 21.0, 16.0))
        canvas.paint(orbit, signal["scalp"])
        canvas.paint(ellipsoid(canvas, (31.0 * side, -80.0, -34.0), (12.0, 12.0, 12.0)), 110.0)
        canvas.paint(ellipsoid(canvas, (14.0 * side, -60.0, -52.0), (9.0, 24.0, 14.0)), 12.0)
    canvas.paint(outer, signal["bone"])
    diploe = np.abs(inner - 4.3) - 1.3
    canvas.paint(np.maximum(diploe, -15.0 - z), signal["marrow"])
    canvas.paint(inner, signal["dura"])
    canvas.paint(inner + 1.2, signal["fluid"])
    return inner


def _paint_cerebrum(canvas: Canvas, head: _Head, skull: np.ndarray) -> None:
    """Two hemispheres: the surface sinks into the sulci, white matter follows it at the cortex' thickness."""
    x, y, z = canvas.x, canvas.y, canvas.z
    gap = 1.8 + 1.4 * head.atrophy
    base = -26.0 - 16.0 * smoothstep(-y, -30.0, 5.0) + 22.0 * smoothstep(-y, 32.0, 50.0)
    surface = intersection(skull + gap, base - z, 12.0)
    # The fissure between the hemispheres; in the middle they join through the corpus callosum.
    joined = ellipsoid(canvas, (0.0, 2.0, 2.0), (30.0, 42.0, 24.0))
    fissure = np.minimum(1.2 + 0.4 * head.atrophy - np.abs(x), joined)
    surface = intersection(surface, fissure, 3.0)
    for side in (-1.0, 1.0):
        # The fissure between frontal and temporal lobe, running backwards and upwards.
        valley = capsule(canvas, (72.0 * side, -34.0, -14.0), (66.0 * side, 22.0, 10.0), 2.2)
        valley = union(valley, capsule(canvas, (44.0 * side, -24.0, -8.0), (72.0 * side, -26.0, -10.0), 2.2), 3.0)
        surface = intersection(surface, -valley, 5.0)
    # Sulci end some way under the surface; grey matter lines both their walls.
    inward = -surface
    sulcus = np.minimum(
        np.maximum(canvas.fields["fine"], inward - 11.0), np.maximum(canvas.fields["coarse"], inward - 18.0)
    )
    width = 0.5 + 0.5 * head.atrophy
    grey = intersection(surface, width - sulcus, 2.0)
    # Thicker than true cortex (3 mm), so that a coarse grid still resolves it.
    white = intersection(surface + 3.8, width + 3.2 - sulcus, 2.5)
    canvas.paint(grey, head.signal["grey"] + 8.0 * canvas.fields["texture"], GREY)
    canvas.paint(white, head.signal["white"] + 6.0 * canvas.fields["texture"], WHITE)


def _paint_deep(canvas: Canvas, head: _Head) -> None:
    """Deep nuclei and the lateral and third ventricles."""
    signal, size = head.signal, head.ventricles
    ventricle = ellipsoid(canvas, (0.0, 8.0, -4.0), (2.2 * size, 15.0, 11.0))
    for side in (-1.0, 1.0):
        for centre, radii, turn, tone in (
            ((16.0, -14.0, 12.0), (6.0, 15.0, 9.0), -14.0, "grey"),
            ((24.0, 0.0, 1.0), (7.0, 17.0, 11.0), -12.0, "nuclei"),
            ((12.0, 14.0, 3.0), (8.5, 14.0, 9.0), -24.0, "nuclei"),
        ):
            at = (centre[0] * side, centre[1], centre[2])
            nucleus = ellipsoid(canvas, at, radii, rotation(0.0, 0.0, turn * side))
            canvas.paint(nucleus, signal[tone], GREY)
        horn = [(9.0, -36.0, 9.0), (9.0, -14.0, 19.0), (13.0, 14.0, 22.0), (24.0, 38.0, 9.0)]
        points = [np.array([p * side, q, r]) for p, q, r in horn]
        radii_along = (3.6 * size, 5.2 * size, 5.4 * size, 5.8 * size)
        pieces = [
            capsule(canvas, a, b, ra, rb)
            for a, b, ra, rb in zip(points[:-1], points[1:], radii_along[:-1], radii_along[1:], strict=True)
        ]
        back = capsule(canvas, points[3], (25.0 * side, 56.0, 6.0), 4.6 * size, 1.5)
        under = capsule(canvas, points[3], (31.0 * side, -2.0, -19.0), 4.0 * size, 2.2)
        for piece in (*pieces, back, under):
            ventricle = union(ventricle, piece, 3.0)
    canvas.paint(ventricle, signal["fluid"], VENTRICLE)


def _paint_hindbrain(canvas: Canvas, head: _Head) -> None:
    """Cerebellum with its leaves, brain stem and the fourth ventricle."""
    part = canvas.crop((-70.0, -30.0, -110.0), (70.0, 90.0, 0.0))
    if not part.values.size:
        return
    signal = head.signal
    cerebellum = union(
        ellipsoid(part, (-23.0, 42.0, -46.0), (29.0, 27.0, 20.0)),
        ellipsoid(part, (23.0, 42.0, -46.0), (29.0, 27.0, 20.0)),
        6.0,
    )
    leaves = np.sin(0.85 * part.z + 0.25 * part.y + 0.8 * part.fields["texture"])
    part.paint(cerebellum - 2.0, signal["fluid"], 0)
    part.paint(cerebellum, signal["grey"] + 35.0 * leaves, GREY)
    part.paint(cerebellum + 9.0 + 3.0 * leaves, signal["white"], WHITE)
    stem = union(
        capsule(part, (0.0, 10.0, -14.0), (0.0, 18.0, -100.0), 12.0, 9.0),
        ellipsoid(part, (0.0, 7.0, -38.0), (17.0, 14.0, 14.0)),
        6.0,
    )
    part.paint(stem - 2.5, signal["fluid"], 0)
    part.paint(stem, 0.93 * signal["white"], WHITE)
    part.paint(ellipsoid(part, (0.0, 25.0, -42.0), (7.0, 5.0, 11.0)), signal["fluid"], VENTRICLE)
