"""Checks as data: one function a check, each returning findings; each file lists its own in ``CHECKS``.

files      one instance's header        (subject: Header)
routing    which way a series goes      (subject: Series)
stack      copies, splits, counts       (subject: Series)
geometry   positions and spacing        (subject: Series)
values     after decoding               (subject: DecodedVolume)
masks      a label and its images       (subject: Pairing)
"""

from __future__ import annotations

from lvmmed_monai.ingest.checks import geometry, routing, stack

__all__ = ["SERIES_CHECKS"]

SERIES_CHECKS = (*routing.CHECKS, *stack.CHECKS, *geometry.CHECKS)
"""All checks that need headers only (and the pixels of possible copies)."""
