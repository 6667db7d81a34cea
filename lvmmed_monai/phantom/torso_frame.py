"""The torso's shell: skin, fat, muscle, cavity, diaphragm, spine, ribs, sternum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lvmmed_monai.phantom.shapes import Canvas, capsule, ellipsoid, intersection, smoothstep, superellipse, union
from lvmmed_monai.phantom.torso_subject import TorsoSubject

__all__ = ["FAT_HU", "add_fields", "paint_shell", "paint_skeleton"]

Array = np.ndarray

FAT_HU = -102.0
BONE = 6
_RIB_PITCH, _LOWEST_RIB = 28.0, -74.0


def add_fields(canvas: Canvas, subject: TorsoSubject) -> None:
    """Compute what many parts need: distances to the cavity and the diaphragm, irregularity and texture."""
    x, y, z = canvas.x, canvas.y, canvas.z
    canvas.fields["surface"] = subject.surface(canvas.axes)
    canvas.fields["texture"] = subject.texture(canvas.axes)
    canvas.fields["grain"] = subject.grain(canvas.axes)
    low = smoothstep(-z, 30.0, 130.0)
    chest = smoothstep(z, 0.0, 110.0)
    half_width = 119.0 - 12.0 * chest + (0.5 * subject.belly - 5.0) * low
    half_depth = 84.0 - 5.0 * chest + subject.belly * low
    canvas.fields["cavity"] = superellipse(x, y + 8.0 + 0.5 * subject.belly * low, half_width, half_depth, 2.3)
    canvas.fields["diaphragm"] = _above_diaphragm(canvas, subject)


def _above_diaphragm(canvas: Canvas, subject: TorsoSubject) -> Array:
    """Distance to the diaphragm, positive above it: two domes, and the heart's bed between them."""
    x, y, z = canvas.x, canvas.y, canvas.z
    recess = 20.0 * smoothstep(y, 10.0, 70.0)
    domes = []
    for centre, top in ((-58.0, 0.0), (58.0, subject.dome)):
        squared = ((x - centre) / 70.0) ** 2 + ((y + 6.0) / 90.0) ** 2
        flat = np.sqrt(np.maximum(1.0 - squared, 0.0))
        height = top - 76.0 * (1.0 - flat) - 60.0 * np.maximum(squared - 1.0, 0.0) - recess
        # A steep surface is nearer than its height difference says.
        domes.append((height, np.maximum(flat, 0.4)))
    bed = -17.0 - 60.0 * (((x - 12.0) / 62.0) ** 2 + ((y + 40.0) / 58.0) ** 2)
    (right, right_slope), (left, left_slope) = domes
    height = intersection(intersection(right, left, 14.0), bed, 14.0)
    return (z - height) * np.where(x < 0, right_slope, left_slope)


def paint_shell(canvas: Canvas, subject: TorsoSubject) -> None:
    """Skin, subcutaneous fat, muscle of the wall and back, and fat in the cavity."""
    x, y, z = canvas.x, canvas.y, canvas.z
    cavity, texture, grain = (canvas.fields[name] for name in ("cavity", "texture", "grain"))
    midline = x - subject.spine.x(z)
    # Erector muscles on both sides of the spinous processes, the groove between them shallow.
    back = smoothstep(y, 15.0, 75.0)
    erector = back * (25.0 * np.exp(-((midline / 66.0) ** 4)) - 4.0 * np.exp(-((midline / 9.0) ** 2)))
    wall = cavity - 16.0 - erector
    low = smoothstep(-z, -40.0, 120.0)
    thickness = subject.fat * (0.55 + 0.45 * low) * (1.0 - 0.35 * back * np.exp(-((midline / 60.0) ** 2)))
    bosom = np.exp(-(((np.abs(x) - 62.0) / 34.0) ** 2) - ((z - 42.0) / 34.0) ** 2) * smoothstep(-y, 40.0, 80.0)
    skin = wall - thickness - subject.breast * bosom - 2.0
    canvas.fields["skin"] = skin
    canvas.paint(skin, 25.0)
    canvas.paint(skin + 2.0, FAT_HU + 5.0 * texture)
    if subject.breast:
        gland = np.maximum(np.maximum(np.abs(skin + 12.0) - 7.0, 12.0 * (0.6 - bosom)), 4.0 * (0.2 - grain))
        canvas.paint(gland, 15.0, opacity=0.7)
    canvas.paint(wall, 54.0 + 4.0 * texture + 3.0 * grain)
    # Fat between the muscle layers and between the bundles of the back.
    septa = np.maximum(np.abs(cavity - 8.5 - 1.5 * texture) - 0.9, wall + 3.0)
    bundles = np.maximum(3.5 * (np.abs(grain) - 0.2), np.maximum(wall + 4.0, 12.0 - cavity))
    canvas.paint(septa, FAT_HU, opacity=0.55)
    canvas.paint(bundles, FAT_HU, opacity=0.45)
    canvas.paint(cavity, FAT_HU + 6.0 * texture)
    # The muscle of the diaphragm, a thin sheet between chest and abdomen.
    canvas.paint(np.maximum(np.abs(canvas.fields["diaphragm"]) - 1.8, cavity), 48.0)


def paint_skeleton(canvas: Canvas, subject: TorsoSubject) -> None:
    """Ribs with their cartilage, sternum, and the spine."""
    _paint_ribs(canvas, subject)
    _paint_sternum(canvas)
    _paint_spine(canvas, subject)


def _bone(canvas: Canvas, distance: Array, cortical: float, marrow: float, wall: float) -> None:
    share = smoothstep(distance, -2.0 * wall, -0.3 * wall)
    canvas.paint(distance, marrow + (cortical - marrow) * share, BONE)


def _paint_ribs(canvas: Canvas, subject: TorsoSubject) -> None:
    """All ribs at once: the distance to the nearest of a family of oblique curves on the cavity's surface."""
    x, y, z, cavity = canvas.x, canvas.y, canvas.z, canvas.fields["cavity"]
    # 0 at the spine, 1 at the sternum.
    turn = np.arctan2(np.abs(x) / 119.0, (y + 8.0) / 84.0) / np.pi
    fall = 118.0 * smoothstep(turn, -0.12, 0.82) - 66.0 * smoothstep(turn, 0.76, 1.05) - 6.0
    steps = (z + fall - _LOWEST_RIB) / _RIB_PITCH
    number = np.maximum(np.round(steps), 0.0)
    # The course is oblique, so the way across a rib is a little shorter than the way along z.
    across = (steps - number) * _RIB_PITCH * 0.93
    depth = cavity - 5.5
    section = (np.sqrt((across / 5.6) ** 2 + (depth / 4.0) ** 2) - 1.0) * 4.5
    end = np.select([number == 0, number == 1, number == 2], [0.36, 0.52, 0.68], 0.76) + 0.012 * np.cos(3.0 * number)
    clear_of_spine = 21.0 - np.abs(x - subject.spine.x(z))
    rib = np.maximum(np.maximum(section, (turn - end) * 250.0), clear_of_spine)
    cartilage = np.maximum(section - 0.5, np.maximum(end - turn, turn - 0.955) * 250.0)
    canvas.paint(np.where(number >= 2, cartilage, 99.0), 105.0)
    _bone(canvas, rib, 720.0, 330.0, 2.0)


def _paint_sternum(canvas: Canvas) -> None:
    part = canvas.crop((-30.0, -120.0, -20.0), (30.0, -55.0, 130.0))
    if not part.values.size:
        return
    width = 15.0 + 3.0 * smoothstep(part.z, -5.0, 25.0)
    plate = intersection(np.abs(part.x) - width, np.abs(part.fields["cavity"] - 5.0) - 5.5, 5.0)
    plate = intersection(plate, np.maximum(-2.0 - part.z, part.y + 40.0), 5.0)
    _bone(part, plate, 560.0, 260.0, 2.0)


def _paint_spine(canvas: Canvas, subject: TorsoSubject) -> None:
    """Vertebrae, one shape repeated along the spine: coordinates are taken from the nearest vertebra's centre."""
    spine = subject.spine
    part = canvas.crop((-62.0, 10.0, -260.0), (62.0, 135.0, 130.0))
    if not part.values.size:
        return
    steps = (part.z - spine.phase) / spine.pitch
    centre_z = np.round(steps) * spine.pitch + spine.phase
    local = replace(part, x=part.x - spine.x(part.z), y=part.y - spine.y(part.z), z=part.z - centre_z)
    x, y, z = local.x, local.y, local.z
    # Lumbar vertebrae are larger than thoracic ones.
    grow = 1.0 + 0.12 * smoothstep(-part.z, 20.0, 120.0)
    waist = grow * (1.0 - 0.09 * np.clip(1.0 - (z / 12.0) ** 2, 0.0, 1.0))
    column = superellipse(x, y, 21.0 * waist, 15.5 * waist, 2.2)
    canal = superellipse(x, y - 23.0, 11.5, 8.5, 2.0)
    local.paint(intersection(column - 0.5, 4.0 - canal, 3.0), 88.0)
    body = intersection(intersection(column, np.abs(z) - 11.2, 3.0), 3.0 - canal, 3.0)
    arch = np.maximum(np.maximum(np.abs(canal - 3.0) - 3.2, 13.0 - y), np.abs(z + 1.0) - 10.0)
    pedicle = np.maximum(np.maximum(np.abs(np.abs(x) - 14.5) - 4.5, np.abs(y - 17.0) - 8.0), np.abs(z - 4.0) - 6.0)
    bone = union(body, union(arch, pedicle, 2.0), 2.0)
    side = replace(local, x=np.abs(x))
    for start, end, radius, end_radius in (
        ((15.0, 27.0, -13.0), (15.0, 27.0, 13.0), 4.8, 4.8),
        ((15.0, 26.0, 3.0), (40.0, 31.0, 6.0), 5.0, 3.8),
        ((0.0, 33.0, 0.0), (0.0, 55.0, -9.0), 4.6, 3.6),
    ):
        bone = union(bone, capsule(side, start, end, radius, end_radius), 2.0)
    _bone(local, bone, 690.0, 275.0, 2.0)
    local.paint(canal, 14.0, 0)
    local.paint(ellipsoid(local, (0.0, 23.0, 0.0), (6.5, 5.0, 40.0)), 38.0, 0)
