"""Values of a parsed data set. What is absent, empty or malformed is None, and no error carries a value out."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence

from lvmmed_monai.dicom.problems import DicomError, silent_pydicom

__all__ = ["VALUE_ERRORS", "image_type_of", "integer_of", "number_of", "numbers_of", "parsing", "text_of", "value_of"]

VALUE_ERRORS = (
    *(ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError, struct.error),
    *(BytesLengthException, OSError, EOFError),
)
"""What pydicom raises when a value cannot be turned into what its type demands."""
# What a damaged type of value makes of a text.
_NO_TEXT = (DicomSequence, bytes)


def value_of(dataset: Dataset, name: str) -> Any:
    """A value, or None where it is absent, empty or malformed."""
    try:
        value = dataset.get(name)
    except VALUE_ERRORS:
        return None
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value


def text_of(dataset: Dataset, name: str) -> str:
    """A value as text without blanks around it, "" where it is absent."""
    value = value_of(dataset, name)
    return "" if value is None or isinstance(value, _NO_TEXT) else str(value).strip()


def numbers_of(dataset: Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """Exactly ``count`` finite numbers, or None."""
    value = value_of(dataset, name)
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        numbers = tuple(float(number) for number in (value if isinstance(value, Sequence) else [value]))
    except VALUE_ERRORS:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def number_of(dataset: Dataset, name: str) -> float | None:
    """One finite number, or None."""
    numbers = numbers_of(dataset, name, 1)
    return numbers[0] if numbers else None


def integer_of(dataset: Dataset, name: str, default: int) -> int:
    """A number without its fraction, or the default."""
    number = number_of(dataset, name)
    return default if number is None else int(number)


def image_type_of(dataset: Dataset, name: str = "ImageType") -> tuple[str, ...]:
    """The values of ImageType, or of the FrameType of one frame, in upper case."""
    value = value_of(dataset, name)
    if value is None or isinstance(value, _NO_TEXT):
        return ()
    return tuple(str(part).strip().upper() for part in (value if isinstance(value, MultiValue) else [value]))


@contextmanager
def parsing() -> Iterator[None]:
    """Turn whatever a broken file makes the parser raise into our errors: its texts may hold values."""
    try:
        with silent_pydicom():
            yield
    except DicomError:
        raise
    except (MemoryError, RecursionError) as error:
        raise DicomError("F06", f"parsing ended with {type(error).__name__}", "usual size and nesting") from None
    except InvalidDicomError:
        raise DicomError("F02", "no DICOM data set", "a DICOM file") from None
    except Exception as error:
        # It costs this file and not the run.
        raise DicomError("F03", f"parsing ended with {type(error).__name__}", "a whole header") from None
