"""Checks as data: one function a check, each returning findings; each file lists its own in ``CHECKS``.

files      one instance's header        (subject: Header)
routing    which way a series goes      (subject: Series)
privacy    text in pixels, faces        (subject: Series)
stack      copies, splits, counts       (subject: Series; Stack for what one volume may not mix)
geometry   positions and spacing        (subject: Stack)
values     after decoding               (subject: DecodedVolume)
planar     pictures and clips           (subject: PlanarImage)
neighbours other series of the study    (subject: Stack and their headers)
masks      a label and its images       (subject: Pairing)
"""

from __future__ import annotations

from lvmmed_monai.ingest.checks import geometry, privacy, routing, stack

__all__ = ["SERIES_CHECKS", "STACK_CHECKS"]

SERIES_CHECKS = (*routing.CHECKS, *privacy.CHECKS, *stack.CHECKS)
"""Checks of a whole series that need headers only (and the pixels of possible copies)."""
STACK_CHECKS = (*stack.STACK_CHECKS, *geometry.CHECKS)
"""Checks of each volume in it."""
