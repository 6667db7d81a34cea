"""Inside the abdomen: spleen, kidneys, stomach, bowel, pancreas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from lvmmed_monai.phantom.shapes import (
    Canvas,
    capsule,
    ellipsoid,
    intersection,
    rotation,
    union,
)
from lvmmed_monai.phantom.torso_frame import FAT_HU
from lvmmed_monai.phantom.torso_liver import Lesion, kidney_centre, paint_liver, under_diaphragm
from lvmmed_monai.phantom.torso_subject import TorsoSubject

__all__ = ["paint_abdomen"]

Array = np.ndarray

SPLEEN, KIDNEY_RIGHT, KIDNEY_LEFT = 3, 4, 5
GAS_HU = -930.0


def paint_abdomen(canvas: Canvas, subject: TorsoSubject, lesions: Sequence[Lesion]) -> None:
    """Everything under the diaphragm, from back to front in the order in which organs cover each other."""
    if float(canvas.axes[2].min()) > 20.0:
        return
    _paint_psoas(canvas)
    _paint_bowel(canvas, subject)
    _paint_stomach(canvas, subject)
    _paint_pancreas(canvas, subject)
    _paint_kidneys(canvas, subject)
    _paint_spleen(canvas, subject)
    paint_liver(canvas, subject, lesions)


def _paint_psoas(canvas: Canvas) -> None:
    for side in (-1.0, 1.0):
        start, end = (25.0 * side, 50.0, -62.0), (46.0 * side, 38.0, -200.0)
        part = canvas.along(start, end, 24.0)
        part.paint(capsule(part, start, end, 8.0, 24.0), 56.0 + 3.0 * part.fields["grain"])
        crus = (12.0 * side, 30.0, -95.0), (16.0 * side, 32.0, -25.0)
        part = canvas.along(*crus, 7.0)
        part.paint(capsule(part, *crus, 4.0, 7.0), 50.0)


def _paint_bowel(canvas: Canvas, subject: TorsoSubject) -> None:
    """Loops of small bowel in the middle, colon with stool and gas around them."""
    rng = np.random.default_rng((*subject.seed, 2))
    for _ in range(5):
        point = np.array([rng.uniform(-60, 70), rng.uniform(-65, -15), rng.uniform(-190, -112)])
        for _ in range(7):
            step = rng.normal(0.0, 1.0, 3) * (26.0, 20.0, 16.0)
            target = np.clip(point + step, (-80, -78, -215), (88, 2, -104))
            gas = bool(rng.random() < 0.18)
            _paint_tube(canvas, point, target, float(rng.uniform(9.5, 13.5)), 28.0 + rng.normal(0.0, 9.0), gas)
            point = target
    course = np.array(
        [(-92, 22, -215), (-95, 18, -165), (-90, -8, -128), (-62, -58, -126), (-15, -72, -132), (40, -68, -120),
         (84, -30, -96), (98, 14, -74), (101, 34, -105), (100, 34, -160), (96, 30, -220)]
    ) + subject.shift["colon"]  # fmt: skip
    radius = 19.0 * subject.size["colon"]
    for index, (start, end) in enumerate(pairwise(course)):
        _paint_tube(canvas, start, end, radius, 45.0, gas=index % 3 != 0, pouches=True)


def _paint_tube(
    canvas: Canvas, start: Array, end: Array, radius: float, content: float, gas: bool, pouches: bool = False
) -> None:
    part = canvas.along(start, end, radius + 4.0)
    if not part.values.size:
        return
    tube = capsule(part, start, end, radius) + 0.8 * part.fields["surface"]
    if pouches:
        along = (end - start) / np.linalg.norm(end - start)
        way = part.x * along[0] + part.y * along[1] + part.z * along[2]
        tube = tube + 2.6 * np.cos(way * (2.0 * np.pi / 27.0))
    tube = intersection(tube, part.fields["cavity"] + 4.0, 4.0)
    part.paint(tube, 52.0)
    mottled = 60.0 if pouches else 12.0
    part.paint(tube + 2.6, content + mottled * np.clip(part.fields["grain"], -2.0, 1.0))
    if gas:
        # Gas rises to the front of a patient on the back, over a level of fluid.
        centre_y = 0.5 * (start[1] + end[1])
        part.paint(np.maximum(tube + 3.2, part.y - (centre_y - 0.15 * radius)), GAS_HU)


def _paint_stomach(canvas: Canvas, subject: TorsoSubject) -> None:
    part = canvas.crop((-40.0, -100.0, -150.0), (115.0, 60.0, 20.0))
    if not part.values.size:
        return
    size = subject.size["stomach"]
    at = partial(subject.place, "stomach")
    fundus = ellipsoid(part, at(58.0, -4.0, -36.0), subject.radii("stomach", 39.0, 40.0, 34.0))
    body = capsule(part, at(60.0, -24.0, -50.0), at(38.0, -54.0, -92.0), 31.0 * size, 22.0 * size)
    antrum = capsule(part, at(36.0, -54.0, -92.0), at(-14.0, -44.0, -94.0), 20.0 * size, 13.0 * size)
    stomach = union(union(fundus, body, 16.0), antrum, 12.0) + 0.8 * part.fields["surface"]
    stomach = under_diaphragm(part, stomach, 3.5)
    part.paint(stomach, 62.0 if subject.phase == "native" else 82.0)
    food = 26.0 + 16.0 * np.maximum(part.fields["grain"], -0.5) + 6.0 * part.fields["texture"]
    part.paint(stomach + 4.2, food)
    level = at(0.0, -44.0, 0.0)[1] + 10.0 * np.sin(float(at(0.0, 0.0, 0.0)[0]))
    part.paint(np.maximum(stomach + 4.8, part.y - level), GAS_HU)


def _paint_pancreas(canvas: Canvas, subject: TorsoSubject) -> None:
    at = partial(subject.place, "pancreas")
    course = [((-30, -12, -116), 13.0), ((-12, -18, -100), 11.0), ((12, -22, -92), 8.0), ((40, -6, -84), 9.5),
              ((66, 18, -74), 8.0)]  # fmt: skip
    part = canvas.crop((-55.0, -50.0, -145.0), (90.0, 45.0, -50.0))
    if not part.values.size:
        return
    pieces = [capsule(part, at(*a), at(*b), ra, rb) for (a, ra), (b, rb) in pairwise(course)]
    pancreas = np.minimum.reduce(pieces) + 1.6 * part.fields["surface"] + 1.2 * part.fields["grain"]
    part.paint(pancreas, subject.hu["pancreas"] + 8.0 * part.fields["grain"])
    splenic = capsule(part, at(-8.0, -6.0, -96.0), at(70.0, 26.0, -68.0), 4.5, 3.5)
    part.paint(splenic, subject.hu["vein"])
    part.paint(capsule(part, (-14.0, -8.0, -98.0), (-8.0, -16.0, -200.0), 5.0), subject.hu["vein"])
    part.paint(capsule(part, (6.0, 4.0, -92.0), (6.0, -14.0, -200.0), 3.6), subject.hu["aorta"])


def _paint_kidneys(canvas: Canvas, subject: TorsoSubject) -> None:
    for name, side, label in (("kidney_right", -1.0, KIDNEY_RIGHT), ("kidney_left", 1.0, KIDNEY_LEFT)):
        centre = kidney_centre(subject, name)
        part = canvas.around(centre, 75.0)
        if not part.values.size:
            continue
        # The upper pole leans to the spine, the hilum looks inwards and forwards.
        frame = rotation(-8.0, 12.0 * side, 28.0 * side)
        radii = subject.radii(name, 29.0, 25.0, 53.0)
        sinus_at = centre - frame[0] * 19.0 * side
        kidney = ellipsoid(part, centre, radii, frame)
        sinus = ellipsoid(part, sinus_at, (19.0, 9.0, 26.0), frame)
        kidney = intersection(kidney, -sinus, 5.0) + 0.5 * part.fields["surface"]
        # Fascia: a thin sheet in the fat around the kidney.
        shell = np.abs(ellipsoid(part, centre, tuple(r + 14.0 for r in radii), frame)) - 0.4
        part.paint(np.maximum(shell, part.fields["cavity"]), 10.0, opacity=0.25)
        part.paint(kidney, subject.hu["cortex"] + 3.0 * part.fields["grain"], label)
        pyramids = np.maximum(kidney + 8.0, 7.0 * (np.abs(part.fields["texture"]) - 0.9))
        part.paint(pyramids, subject.hu["medulla"])
        part.paint(sinus + 1.0, FAT_HU + 30.0)
        part.paint(ellipsoid(part, sinus_at - frame[0] * 1.0 * side, (11.0, 4.0, 13.0), frame), 9.0)
        hilum = centre - frame[0] * 22.0 * side
        part.paint(capsule(part, hilum, (18.0 * side, 12.0, hilum[2] + 8.0), 4.5), subject.hu["vein"])


def _paint_spleen(canvas: Canvas, subject: TorsoSubject) -> None:
    centre = subject.place("spleen", 84.0, 34.0, -44.0)
    part = canvas.around(centre, 80.0)
    if not part.values.size:
        return
    frame = rotation(22.0, 0.0, -20.0)
    spleen = ellipsoid(part, centre, subject.radii("spleen", 44.0, 56.0, 54.0), frame)
    hollow = ellipsoid(part, centre + np.array((-56.0, -32.0, -6.0)), subject.radii("stomach", 40.0, 42.0, 58.0), frame)
    spleen = intersection(spleen, -hollow, 7.0)
    bed = ellipsoid(part, kidney_centre(subject, "kidney_left"), subject.radii("kidney_left", 33.0, 29.0, 57.0))
    spleen = intersection(intersection(spleen, -bed, 5.0), 60.0 - part.x, 6.0) + 0.5 * part.fields["surface"]
    spleen = under_diaphragm(part, spleen, 2.5)
    mottle = 9.0 if subject.phase == "arterial" else 2.5
    part.paint(spleen, subject.hu["spleen"] + mottle * part.fields["texture"], SPLEEN)
