"""The liver: its shape, its vessels, the gallbladder, and its lesions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lvmmed_monai.phantom.shapes import Canvas, Point, capsule, ellipsoid, intersection, rotation, smoothstep, union
from lvmmed_monai.phantom.torso_frame import add_fields
from lvmmed_monai.phantom.torso_subject import TorsoSubject

__all__ = ["Lesion", "kidney_centre", "lesions_of", "liver_distance", "paint_liver", "under_diaphragm"]

Array = np.ndarray
Lesion = tuple[Array, float]

LIVER, LESION = 2, 7


def under_diaphragm(canvas: Canvas, distance: Array, gap: float) -> Array:
    """What of a shape lies in the abdominal cavity, ``gap`` millimetres from wall and diaphragm."""
    inside = intersection(distance, canvas.fields["cavity"] + gap, 7.0)
    return intersection(inside, canvas.fields["diaphragm"] + gap, 7.0)


def kidney_centre(subject: TorsoSubject, part: str) -> Array:
    """Where a kidney stands; liver and spleen are hollowed for it."""
    return (
        subject.place(part, -60.0, 37.0, -112.0) if part == "kidney_right" else subject.place(part, 60.0, 35.0, -98.0)
    )


def liver_distance(canvas: Canvas, subject: TorsoSubject) -> Array:
    """Right lobe filling the right dome, left lobe tapering across the midline, a sloping lower surface."""
    x, y, z = canvas.x, canvas.y, canvas.z
    right = ellipsoid(canvas, subject.place("liver", -66.0, 0.0, -64.0), subject.radii("liver", 78.0, 92.0, 90.0))
    left = ellipsoid(
        canvas,
        subject.place("left_lobe", 6.0, -48.0, -46.0),
        subject.radii("left_lobe", 74.0, 38.0, 34.0),
        rotation(0.0, -14.0, 8.0),
    )
    liver = union(right, left, 20.0)
    # The lower surface rises to the left and falls to the front.
    lower = -158.0 + 0.74 * np.clip(x + 112.0, 0.0, 200.0) + 0.10 * y
    liver = intersection(liver, (lower - z) * 0.78, 16.0)
    bed = ellipsoid(canvas, kidney_centre(subject, "kidney_right"), subject.radii("kidney_right", 40.0, 36.0, 64.0))
    middle = np.hypot(x + 4.0, y - 48.0) - 46.0
    stomach = ellipsoid(canvas, (62.0, 8.0, -52.0), (44.0, 40.0, 60.0))
    for hollow in (bed, middle, stomach):
        liver = intersection(liver, -hollow, 10.0)
    fissure = np.maximum(np.abs(x + 10.0 + 0.25 * (z + 60.0)) - 0.8, np.maximum(y + 46.0, z + 62.0))
    liver = intersection(liver, -fissure, 4.0)
    return under_diaphragm(canvas, liver, 2.5) + 0.6 * canvas.fields["surface"]


def paint_liver(canvas: Canvas, subject: TorsoSubject, lesions: Sequence[Lesion]) -> None:
    """Liver, gallbladder, portal and hepatic veins, lesions."""
    part = canvas.crop((-140.0, -120.0, -200.0), (110.0, 110.0, 30.0))
    if not part.values.size:
        return
    liver = liver_distance(part, subject)
    part.fields["liver"] = liver
    gallbladder = ellipsoid(
        part,
        subject.place("gallbladder", -40.0, -44.0, -106.0),
        subject.radii("gallbladder", 14.0, 14.0, 27.0),
        rotation(35.0, 0.0, 0.0),
    )
    liver = intersection(liver, 0.5 - gallbladder, 3.0)
    part.paint(liver, subject.hu["liver"] + 3.0 * part.fields["texture"] + 2.0 * part.fields["grain"], LIVER)
    part.paint(gallbladder, 45.0, 0)
    part.paint(gallbladder + 2.0, 10.0, 0)
    _paint_liver_vessels(part, subject)
    for centre, radius in lesions:
        _paint_lesion(part, subject, centre, radius)


def _paint_liver_vessels(canvas: Canvas, subject: TorsoSubject) -> None:
    """Portal vein from the hilum with its branches; three hepatic veins that meet at the vena cava."""
    root, cava = np.array([-18.0, -10.0, -78.0]), np.array([-22.0, 2.0, -14.0])
    segments: list[tuple[Point, Point, float, float]] = [
        ((-12.0, -8.0, -100.0), root, 7.0, 7.0),
        (root, (-52.0, 2.0, -70.0), 6.5, 5.0),
        ((-52.0, 2.0, -70.0), (-88.0, 22.0, -88.0), 4.5, 2.5),
        ((-52.0, 2.0, -70.0), (-90.0, -22.0, -58.0), 4.5, 2.5),
        ((-52.0, 2.0, -70.0), (-72.0, 32.0, -46.0), 4.0, 2.0),
        ((-74.0, -10.0, -62.0), (-88.0, -40.0, -80.0), 3.0, 1.6),
        (root, (-2.0, -42.0, -62.0), 5.0, 4.0),
        ((-2.0, -42.0, -62.0), (36.0, -52.0, -48.0), 3.6, 1.8),
        (cava, (-62.0, 14.0, -34.0), 5.0, 4.0),
        ((-62.0, 14.0, -34.0), (-100.0, 22.0, -62.0), 4.0, 1.8),
        (cava, (-48.0, -34.0, -42.0), 5.0, 4.0),
        ((-48.0, -34.0, -42.0), (-66.0, -58.0, -78.0), 3.8, 1.6),
        (cava, (4.0, -34.0, -34.0), 4.5, 3.2),
        ((4.0, -34.0, -34.0), (40.0, -58.0, -42.0), 3.0, 1.5),
    ]
    fades = {"portal": 0.75, "arterial": 0.15, "native": 1.0}[subject.phase]
    for start, end, radius, end_radius in segments:
        part = canvas.along(start, end, radius)
        if part.values.size:
            vessel = np.maximum(capsule(part, start, end, radius, end_radius), part.fields["liver"] + 2.0)
            part.paint(vessel, subject.hu["vein"], opacity=fades)


def _paint_lesion(canvas: Canvas, subject: TorsoSubject, centre: Array, radius: float) -> None:
    part = canvas.around(centre, 1.4 * radius)
    if not part.values.size:
        return
    lesion = ellipsoid(part, centre, (radius, 0.92 * radius, 0.95 * radius)) + 0.10 * radius * part.fields["surface"]
    lesion = intersection(lesion, part.fields["liver"] + 1.0, 2.0)
    depth = smoothstep(-lesion, 0.0, 0.8 * radius)
    contrast = 26.0 if subject.phase == "native" else 44.0
    part.paint(lesion, subject.hu["liver"] - contrast - 14.0 * depth + 4.0 * part.fields["grain"], LESION)


def lesions_of(subject: TorsoSubject) -> list[Lesion]:
    """Centres and radii (millimetres) of the liver's lesions, searched on a fixed lattice of the reference frame.

    The lattice, not the image grid, decides the places: a subject is the same one at every resolution.
    """
    if not subject.lesions:
        return []
    axes = (np.arange(-120.0, 60.0, 6.0), np.arange(-90.0, 80.0, 6.0), np.arange(-115.0, 0.0, 6.0))
    lattice = Canvas.empty(axes, (0.0, 0.0, 0.0), 0.0, edge=6.0)
    add_fields(lattice, subject)
    depth = -liver_distance(lattice, subject)
    rng = np.random.default_rng((*subject.seed, 3))
    lesions: list[Lesion] = []
    for _ in range(subject.lesions):
        radius = float(rng.uniform(9.0, 20.0))
        for centre, _radius in lesions:
            apart = np.sqrt((lattice.x - centre[0]) ** 2 + (lattice.y - centre[1]) ** 2 + (lattice.z - centre[2]) ** 2)
            depth = np.where(apart < _radius + 22.0, 0.0, depth)
        candidates = np.argwhere(depth > 0.7 * radius)
        if not len(candidates):
            continue
        i, j, k = candidates[rng.integers(len(candidates))]
        lesions.append((np.array([axes[0][i], axes[1][j], axes[2][k]]), radius))
    return lesions
