"""Which elements a header is made of, and what is read out of their words; both ways to read a header keep to it."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["HEAD_KEYWORDS", "PHASE_KEYWORDS", "PLANAR_SPACING_KEYWORDS", "speaks_of_head", "words_of"]

PHASE_KEYWORDS = (
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "TriggerTime",
    "AcquisitionTime",
    "ContentTime",
    "DiffusionBValue",
    "EchoTime",
)
"""What tells volumes apart that lie at the same positions, the most telling first."""

HEAD_KEYWORDS = ("BodyPartExamined", "StudyDescription", "SeriesDescription", "ProtocolName")
"""Where words stand that tell the body part."""

PLANAR_SPACING_KEYWORDS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
"""Spacing of an image without a place in space, the best first."""

_HEAD_WORDS = {"head", "brain", "skull", "face", "facial", "neuro", "sinus", "sinuses", "orbit", "orbits", "cranial"}


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


@lru_cache(maxsize=1024)
def words_of(name: str, patient: str) -> frozenset[str]:
    """Words of a patient's name and id in lower case, those of three letters and more."""
    return frozenset(word for word in _words(f"{name} {patient}") if len(word) > 2)


@lru_cache(maxsize=1024)
def speaks_of_head(text: str) -> bool:
    """Whether a text names the head or a part of it that shows a face."""
    return not _HEAD_WORDS.isdisjoint(_words(text))
