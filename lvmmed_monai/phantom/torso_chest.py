"""Inside the chest: heart, great vessels, lungs and their vessels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lvmmed_monai.phantom.shapes import (
    Canvas,
    capsule,
    ellipsoid,
    intersection,
    rotation,
    smoothstep,
    superellipse,
    union,
)
from lvmmed_monai.phantom.torso_subject import TorsoSubject

__all__ = ["paint_chest", "paint_great_vessels"]

Array = np.ndarray

LUNG = 1
_HEART_FRAME = rotation(0.0, 28.0, -38.0)


def paint_chest(canvas: Canvas, subject: TorsoSubject) -> None:
    """Heart and mediastinum, then the lungs on both sides of them."""
    if float(canvas.axes[2].max()) < -130.0:
        return
    heart = _heart_distance(canvas, subject)
    canvas.fields["heart"] = heart
    _paint_mediastinum(canvas, subject)
    _paint_heart(canvas.crop((-70.0, -110.0, -45.0), (90.0, 45.0, 110.0)), subject)
    lung = _lung_distance(canvas, subject, heart)
    canvas.fields["lung"] = lung
    gravity = 55.0 * smoothstep(canvas.y, -60.0, 75.0)
    tissue = -875.0 + gravity + 14.0 * canvas.fields["texture"] + 14.0 * canvas.fields["grain"]
    canvas.paint(lung, tissue, LUNG)
    _paint_lung_vessels(canvas, subject)


def _heart_distance(canvas: Canvas, subject: TorsoSubject) -> Array:
    centre = subject.place("heart", 17.0, -36.0, 34.0)
    whole = ellipsoid(canvas, centre, subject.radii("heart", 58.0, 44.0, 47.0), _HEART_FRAME)
    return intersection(whole, 3.0 - canvas.fields["diaphragm"], 10.0)


def _paint_mediastinum(canvas: Canvas, subject: TorsoSubject) -> None:
    """Oesophagus, trachea's bifurcation and the large vessels above the heart."""
    blood = subject.hu["heart"] + 25.0
    spine_y = float(subject.spine.y(60.0))
    above = canvas.crop((-60.0, -90.0, -10.0), (70.0, 60.0, 130.0))
    if not above.values.size:
        return
    gullet = np.hypot(above.x - 7.0, above.y - spine_y + 33.0) - 7.5
    above.paint(np.maximum(gullet, -20.0 - above.z), 42.0)
    for start, end, radius in (
        ((-14.0, -28.0, 55.0), (-16.0, -34.0, 130.0), 15.0),
        ((8.0, -46.0, 60.0), (18.0, -22.0, 92.0), 13.0),
        ((18.0, -14.0, 84.0), (-38.0, 6.0, 78.0), 10.0),
        ((18.0, -14.0, 84.0), (44.0, 10.0, 80.0), 10.0),
        ((-30.0, -22.0, 40.0), (-30.0, -20.0, 130.0), 9.0),
    ):
        above.paint(capsule(above, start, end, radius), blood)
    for side in (-1.0, 1.0):
        bronchus = capsule(above, (0.0, 8.0, 100.0), (34.0 * side, 14.0, 66.0), 7.5, 5.5)
        above.paint(bronchus, 40.0)
        above.paint(bronchus + 2.0, -960.0)


def _paint_heart(canvas: Canvas, subject: TorsoSubject) -> None:
    """Pericardial fat, muscle and the four chambers."""
    heart = canvas.fields["heart"]
    blood, muscle = subject.hu["heart"] + 45.0 * (subject.phase != "native"), subject.hu["heart"] * 0.9 + 8.0
    canvas.paint(heart - 1.0, 20.0)
    canvas.paint(heart + 1.2, -85.0)
    inner = heart + 5.0 + 1.5 * canvas.fields["surface"]
    canvas.paint(inner, muscle + 3.0 * canvas.fields["grain"])
    centre = subject.place("heart", 17.0, -36.0, 34.0)
    right_blood = blood + (60.0 if subject.phase == "arterial" else 0.0)
    for offset, radii, value in (
        ((24.0, -4.0, -8.0), (33.0, 17.0, 20.0), blood + 6.0),
        ((-2.0, -22.0, -4.0), (36.0, 13.0, 25.0), right_blood),
        ((-4.0, 24.0, 14.0), (27.0, 16.0, 20.0), blood),
        ((-38.0, 2.0, 4.0), (17.0, 22.0, 27.0), right_blood),
    ):
        chamber = ellipsoid(canvas, centre + np.array(offset), subject.radii("heart", *radii), _HEART_FRAME)
        canvas.paint(intersection(chamber, inner + 3.5, 4.0), value)
    # Fat in the groove between atria and ventricles.
    groove_at = centre + np.array((-26.0, -14.0, 6.0))
    groove = np.maximum(np.abs(ellipsoid(canvas, groove_at, (24.0, 30.0, 40.0))) - 1.6, inner - 4.0)
    canvas.paint(np.maximum(groove, -inner - 7.0), -70.0, opacity=0.8)


def _lung_distance(canvas: Canvas, subject: TorsoSubject, heart: Array) -> Array:
    """Both lungs: the cavity above the diaphragm without the mediastinum."""
    x, y, z = canvas.x, canvas.y, canvas.z
    middle = superellipse(x - 5.0, y + 10.0, 31.0 + 8.0 * smoothstep(z, 20.0, 75.0), 84.0, 2.0)
    spine_y = subject.spine.y(z)
    spine = np.hypot(x - subject.spine.x(z), y - spine_y) - 25.0
    behind = np.maximum(np.abs(x - subject.spine.x(z)) - 9.0, 20.0 - y)
    aorta = np.hypot(x - 24.0, y - spine_y + 20.0) - 18.0
    inside = union(union(union(middle, spine, 8.0), behind, 4.0), union(heart - 2.0, aorta, 6.0), 10.0)
    lung = intersection(canvas.fields["cavity"] + 3.0, -inside, 9.0)
    return intersection(lung, 2.5 - canvas.fields["diaphragm"], 4.0)


def paint_great_vessels(canvas: Canvas, subject: TorsoSubject) -> None:
    """Descending aorta and inferior vena cava, through chest and abdomen."""
    part = canvas.crop((-55.0, -50.0, -260.0), (60.0, 60.0, 130.0))
    if not part.values.size:
        return
    x, y, z = part.x, part.y, part.z
    front = subject.spine.y(z) - 16.0
    aorta_x = 6.0 + 18.0 * smoothstep(z, -70.0, 60.0)
    aorta_y = front - 12.0 + 10.0 * smoothstep(z, -30.0, 50.0)
    aorta = np.hypot(x - aorta_x, y - aorta_y) - 11.5
    part.paint(aorta - 1.5, 45.0, 0)
    part.paint(aorta, subject.hu["aorta"], 0)
    cava_y = front - 10.0 - 22.0 * smoothstep(z, -70.0, 10.0)
    cava = np.hypot((x + 22.0) / 1.12, (y - cava_y) * 1.08) - 11.0
    below_heart = np.maximum(cava, z - 16.0)
    part.paint(below_heart, 0.75 * subject.hu["vein"] + 12.0, 0)


def _paint_lung_vessels(canvas: Canvas, subject: TorsoSubject) -> None:
    rng = np.random.default_rng(subject.seed)
    # Hundreds of small blocks are cut out: carry only the field that is needed.
    canvas = replace(canvas, fields={"lung": canvas.fields["lung"]})
    for start, end, radius, end_radius in _branches(rng):
        part = canvas.along(start, end, radius)
        if not part.values.size or part.fields["lung"].min() > 0:
            continue
        vessel = capsule(part, start, end, radius, end_radius)
        # A vessel thinner than a voxel fills only part of it, however near its axis is.
        opacity = min(1.0, (2.0 * radius / part.edge) ** 1.2)
        part.paint(np.maximum(vessel, part.fields["lung"] + 2.5), 35.0, opacity=opacity)


def _branches(rng: np.random.Generator) -> Iterator[tuple[Array, Array, float, float]]:
    """Segments (start, end, radius at both) of the vessel trees of both lungs, from the hila outwards."""
    for side in (-1.0, 1.0):
        hilum = np.array([40.0 * side, 8.0, 62.0])
        for target in _lobe_targets(side, rng):
            pending = [(hilum, (target - hilum) * 0.27, 5.2, 0)]
            while pending:
                start, step, radius, depth = pending.pop()
                end = start + step
                yield start, end, radius, radius * 0.82
                if depth == 4:
                    continue
                for _ in range(2):
                    bent = step + rng.normal(0.0, 0.36 * np.linalg.norm(step), 3)
                    bent *= rng.uniform(0.74, 0.9) * np.linalg.norm(step) / max(float(np.linalg.norm(bent)), 1e-3)
                    pending.append((end, bent, radius * rng.uniform(0.66, 0.84), depth + 1))


def _lobe_targets(side: float, rng: np.random.Generator) -> list[Array]:
    """Where the main branches of one lung head for."""
    targets = [(95, 45, -30), (60, 68, -40), (100, 5, 0), (85, -45, 25), (55, -70, 50), (95, 30, 70), (60, 60, 95)]
    return [np.array([side * a, b, c]) + rng.normal(0.0, 8.0, 3) for a, b, c in targets]
