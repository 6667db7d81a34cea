"""Why a DICOM object cannot be used, without a word of what stands in it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["DicomError", "silent_pydicom"]


class DicomError(Exception):
    """A DICOM object, or one instance of a series, cannot be used.

    Attributes:
        code: reason code of the ingest ("F04"); codes are never reused.
        measured: what was found, in words and numbers that identify nobody.
        expected: what was needed.
    """

    def __init__(self, code: str, measured: str, expected: str) -> None:
        super().__init__(f"{code}: {measured}; expected {expected}")
        self.code = code
        self.measured = measured
        self.expected = expected

    def __reduce__(self) -> tuple[type[DicomError], tuple[str, str, str]]:
        # An exception is copied by its message otherwise, and could not cross to another process.
        return type(self), (self.code, self.measured, self.expected)


@contextmanager
def silent_pydicom() -> Iterator[None]:
    """Keep pydicom's log lines and warnings back: they quote header values and paths, which name patients."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
