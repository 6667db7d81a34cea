"""What one torso is like: sizes, places, contrast phase, drawn once per subject.

All generators share one reference frame in LPS millimetres: x to the patient's left, y to the back,
z to the head, the origin in the middle of the body at the top of the right diaphragm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lvmmed_monai.phantom.shapes import SplineField

__all__ = ["TORSO_LABELS", "Spine", "TorsoSubject", "sample_torso"]

TORSO_LABELS = {1: "lung", 2: "liver", 3: "spleen", 4: "kidney_right", 5: "kidney_left", 6: "bone", 7: "lesion"}

# The region in which anatomy is defined, generous in every direction (reference millimetres).
REGION_LOW, REGION_HIGH = (-190.0, -160.0, -230.0), (190.0, 170.0, 120.0)

# Mean HU by contrast phase; each subject draws its own around these.
_PHASES = {
    "native": {
        "aorta": 44.0, "vein": 42.0, "liver": 60.0, "spleen": 52.0, "cortex": 46.0, "medulla": 44.0, "heart": 46.0,
        "pancreas": 42.0,
    },
    "arterial": {
        "aorta": 290.0, "vein": 80.0, "liver": 76.0, "spleen": 104.0, "cortex": 146.0, "medulla": 78.0,
        "heart": 105.0, "pancreas": 102.0,
    },
    "portal": {
        "aorta": 158.0, "vein": 160.0, "liver": 103.0, "spleen": 108.0, "cortex": 144.0, "medulla": 124.0,
        "heart": 98.0, "pancreas": 92.0,
    },
}  # fmt: skip
_PHASE_NAMES, _PHASE_SHARES = ("portal", "native", "arterial"), (0.6, 0.25, 0.15)

_PARTS = (
    "heart", "liver", "left_lobe", "spleen", "kidney_right", "kidney_left", "stomach", "pancreas", "gallbladder",
    "colon",
)  # fmt: skip


@dataclass(frozen=True)
class Spine:
    """Course of the vertebral bodies' centres (millimetres)."""

    lateral: float
    lumbar: float
    phase: float
    pitch: float = 28.0

    def x(self, z: np.ndarray | float) -> np.ndarray:
        """Sideways, a slight scoliosis."""
        return self.lateral * np.sin(np.asarray(z) / 70.0)

    def y(self, z: np.ndarray | float) -> np.ndarray:
        """Front to back: kyphosis of the chest, lordosis of the loins."""
        return 50.0 + self.lumbar * np.tanh((np.asarray(z) + 45.0) / 60.0)


@dataclass(frozen=True)
class TorsoSubject:
    """The parameters of one torso; see the module for the frame.

    Attributes:
        scale: reference to real millimetres along x, y and z.
        fat: thickness of the subcutaneous fat (mm).
        belly: how far the abdomen bulges (mm).
        breast: thickness added in front of the chest (mm).
        dome: height of the left diaphragm relative to the right (mm).
        phase: contrast phase.
        hu: mean HU by tissue.
        shift: by organ, displacement (mm).
        size: by organ, scale of the radii.
        spine: its course.
        warp: displacement fields along x, y and z (mm).
        surface: small irregularities of surfaces (mm).
        texture, grain: coarse and fine inhomogeneity (unit variance).
        seed: for branching structures.
        lesions: how many the liver has.
    """

    scale: tuple[float, float, float]
    fat: float
    belly: float
    breast: float
    dome: float
    phase: str
    hu: dict[str, float]
    shift: dict[str, np.ndarray]
    size: dict[str, float]
    spine: Spine
    warp: tuple[SplineField, SplineField, SplineField]
    surface: SplineField
    texture: SplineField
    grain: SplineField
    seed: tuple[int, ...]
    lesions: int

    def place(self, part: str, x: float, y: float, z: float) -> np.ndarray:
        """Where an organ stands in this subject."""
        return np.array([x, y, z]) + self.shift[part]

    def radii(self, part: str, *radii: float) -> tuple[float, ...]:
        """How large an organ is in this subject."""
        return tuple(radius * self.size[part] for radius in radii)


def sample_torso(seed: tuple[int, ...], *, lesion: bool) -> TorsoSubject:
    """Draw one torso.

    Args:
        seed: integers that name the subject; nothing else decides what comes out.
        lesion: whether the liver has one to three lesions.
    """
    rng = np.random.default_rng(seed)
    phase = str(rng.choice(_PHASE_NAMES, p=_PHASE_SHARES))
    hu = {name: value + rng.normal(0.0, 0.02 * value + 1.5) for name, value in _PHASES[phase].items()}
    female = rng.random() < 0.5
    return TorsoSubject(
        scale=(rng.uniform(0.92, 1.08), rng.uniform(0.92, 1.10), rng.uniform(0.94, 1.07)),
        fat=float(np.clip(rng.gamma(4.0, 3.6), 7.0, 30.0)),
        belly=float(rng.uniform(-6.0, 14.0)),
        breast=float(rng.uniform(8.0, 20.0)) if female else 0.0,
        dome=float(rng.uniform(-20.0, -8.0)),
        phase=phase,
        hu=hu,
        shift={part: rng.normal(0.0, 3.5, 3) for part in _PARTS},
        size={part: float(np.clip(rng.normal(1.0, 0.06), 0.86, 1.15)) for part in _PARTS},
        spine=Spine(float(rng.normal(0.0, 2.5)), float(rng.uniform(4.0, 9.0)), float(rng.uniform(0.0, 28.0))),
        warp=(_field(rng, 62.0, 4.0), _field(rng, 62.0, 4.0), _field(rng, 62.0, 3.0)),
        surface=_field(rng, 17.0, 1.5),
        texture=_field(rng, 11.0, 1.0),
        grain=_field(rng, 6.0, 1.0),
        seed=(*seed, 1),
        lesions=int(rng.integers(1, 4)) if lesion else 0,
    )


def _field(rng: np.random.Generator, step: float, std: float) -> SplineField:
    return SplineField(rng, REGION_LOW, REGION_HIGH, step, std)
