"""Generated anatomy, written as DICOM studies with labels."""

from __future__ import annotations

from lvmmed_monai.phantom.brain import BRAIN_LABELS, brain_mr
from lvmmed_monai.phantom.study import KINDS, generate, generate_studies, write_studies
from lvmmed_monai.phantom.torso import torso_ct
from lvmmed_monai.phantom.torso_subject import TORSO_LABELS
from lvmmed_monai.phantom.volume import PhantomVolume

__all__ = [
    "BRAIN_LABELS",
    "KINDS",
    "TORSO_LABELS",
    "PhantomVolume",
    "brain_mr",
    "generate",
    "generate_studies",
    "torso_ct",
    "write_studies",
]
