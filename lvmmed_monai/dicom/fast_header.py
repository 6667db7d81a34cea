"""The values of a header straight from its bytes. Whatever is not plain is left to pydicom; the results are equal."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword

from lvmmed_monai.dicom.elements import UnsureError, walk
from lvmmed_monai.dicom.header_rules import (
    HEAD_KEYWORDS,
    PHASE_KEYWORDS,
    PLANAR_SPACING_KEYWORDS,
    speaks_of_head,
    words_of,
)

__all__ = ["fast_values", "shared_text"]

_KEYWORDS = (
    *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"),
    *("StudyDate", "StudyTime", "Modality", "PatientName", "PatientID", "FrameOfReferenceUID"),
    *("SliceThickness", "SpacingBetweenSlices", "SequenceOfUltrasoundRegions", "InstanceNumber"),
    *("ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel", "PhotometricInterpretation"),
    *("NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("BurnedInAnnotation", "RescaleIntercept", "RescaleSlope"),
    *(*HEAD_KEYWORDS, *PHASE_KEYWORDS, *PLANAR_SPACING_KEYWORDS),
)


def _wanted() -> dict[int, tuple[bytes, str]]:
    tags = {keyword: tag_for_keyword(keyword) for keyword in _KEYWORDS}
    return {tag: (dictionary_VR(tag).encode(), keyword) for keyword, tag in tags.items() if tag is not None}


_WANTED = _wanted()
_KINDS = {keyword: vr for vr, keyword in _WANTED.values()}
# A file cut off inside its header must not pass because one damaged tag looks as if all the others came before it.
_IMAGE_KEYWORDS = {"SOPInstanceUID", "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"}
_ENCODINGS = {"": "latin-1", "ISO_IR 6": "latin-1", "ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}

_NUMBER = rb" *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})? *"
_DECIMALS = re.compile(_NUMBER + rb"(?:\\" + _NUMBER + rb")*")
_INTEGER = re.compile(rb" *[+-]?[0-9]{1,9} *")
_UID = re.compile(rb"[0-9.]*")
_PADDING = b"\0 "

_unsigned = struct.Struct("<H").unpack
_double = struct.Struct("<d").unpack

Values = Mapping[str, bytes]


def _text(raw: bytes, encoding: str = "latin-1") -> str:
    """One value of text. A second value, or an escape to another alphabet, is not plain."""
    text = raw.decode(encoding)
    if "\\" in text or "\x1b" in text:
        raise UnsureError
    return text.rstrip("\0 ").strip()


@lru_cache(maxsize=4096)
def shared_text(raw: bytes, encoding: str = "latin-1") -> str:
    """Text of an element that many instances share: one string for all of them."""
    return _text(raw, encoding)


def _uid(raw: bytes) -> str:
    uid = raw.rstrip(_PADDING)
    if not _UID.fullmatch(uid):
        raise UnsureError
    return uid.decode("ascii")


@lru_cache(maxsize=4096)
def _shared_uid(raw: bytes) -> str:
    return _uid(raw)


@lru_cache(maxsize=1024)
def _image_type(raw: bytes) -> tuple[str, ...]:
    text = raw.decode("latin-1").rstrip(" \0")
    return tuple(part.strip().upper() for part in text.split("\\")) if text else ()


def _decimals(raw: bytes) -> tuple[float, ...]:
    text = raw.rstrip(_PADDING)
    if not text:
        return ()
    if not _DECIMALS.fullmatch(text):
        raise UnsureError
    numbers = tuple(map(float, text.split(b"\\")))
    if not all(map(math.isfinite, numbers)):
        raise UnsureError
    return numbers


_shared_decimals = lru_cache(maxsize=4096)(_decimals)


def _exactly(numbers: tuple[float, ...], count: int) -> tuple[float, ...] | None:
    return numbers if len(numbers) == count else None


def _decimal(values: Values, keyword: str) -> float | None:
    numbers = _shared_decimals(values.get(keyword, b""))
    return numbers[0] if len(numbers) == 1 else None


def _integer(values: Values, keyword: str) -> int | None:
    text = values.get(keyword, b"").rstrip(_PADDING)
    if not text:
        return None
    if not _INTEGER.fullmatch(text):
        raise UnsureError
    return int(text)


def _short(values: Values, keyword: str, default: int = 0) -> int:
    raw = values.get(keyword, b"")
    if len(raw) not in (0, 2):
        raise UnsureError
    number: int = _unsigned(raw)[0] if raw else default
    return number


def _time(raw: bytes) -> float | None:
    try:
        number = float(_text(raw))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _phase(values: Values, keyword: str) -> float | None:
    raw = values.get(keyword, b"")
    if not raw:
        return None
    kind = _KINDS[keyword]
    if kind == b"TM":
        return _time(raw)
    if kind == b"IS":
        number = _integer(values, keyword)
        return None if number is None else float(number)
    if kind == b"FD":
        if len(raw) != 8:
            raise UnsureError
        value: float = _double(raw)[0]
        return value if math.isfinite(value) else None
    numbers = _shared_decimals(raw)
    if len(numbers) > 1:
        raise UnsureError
    return numbers[0] if numbers else None


def _planar_spacing(values: Values) -> tuple[float, ...] | None:
    found = (_shared_decimals(values.get(keyword, b"")) for keyword in PLANAR_SPACING_KEYWORDS)
    spacing = next((numbers for numbers in found if len(numbers) == 2 and min(numbers) > 0), None)
    if spacing is None and "SequenceOfUltrasoundRegions" in values:
        raise UnsureError
    return spacing


@lru_cache(maxsize=64)
def _encoding(charset: bytes) -> str:
    """Codec of text. Of the many others only what they share with ASCII is plain."""
    names = charset.rstrip(_PADDING).decode("latin-1").split("\\")
    if not all(name in python_encoding for name in names):
        raise UnsureError
    return _ENCODINGS.get(names[0], "ascii") if len(names) == 1 else "ascii"


def _identity(values: Values) -> dict[str, Any]:
    """Fields that say what the instance is and whom it shows."""
    encoding = _encoding(values.get("SpecificCharacterSet", b""))
    sop_class = _shared_uid(values.get("SOPClassUID", b"")) or _shared_uid(values.get("MediaStorageSOPClassUID", b""))
    if not sop_class.startswith("1."):
        raise UnsureError
    if b"=" in values.get("PatientName", b""):  # it is written in several alphabets
        raise UnsureError
    patient = shared_text(values.get("PatientID", b""), encoding)
    name = shared_text(values.get("PatientName", b""), encoding)
    image_type = _image_type(values.get("ImageType", b""))
    head_texts = [
        shared_text(values.get(keyword, b""), "latin-1" if _KINDS[keyword] == b"CS" else encoding)
        for keyword in HEAD_KEYWORDS
    ]
    study_date = shared_text(values.get("StudyDate", b"")) + shared_text(values.get("StudyTime", b""))
    return {
        "sop_class": sop_class,
        "sop_uid": _uid(values.get("SOPInstanceUID", b"")) or _uid(values.get("MediaStorageSOPInstanceUID", b"")),
        "series_uid": _shared_uid(values.get("SeriesInstanceUID", b"")),
        "study_uid": _shared_uid(values.get("StudyInstanceUID", b"")),
        "frame_of_reference": _shared_uid(values.get("FrameOfReferenceUID", b"")),
        "transfer_syntax": _shared_uid(values.get("TransferSyntaxUID", b"")),
        "patient": patient,
        "names": words_of(name, patient),
        "modality": shared_text(values.get("Modality", b"")).upper(),
        "study_date": study_date,
        "image_type": image_type,
        "mosaic": "MOSAIC" in image_type,
        "burned_in": shared_text(values.get("BurnedInAnnotation", b"")).upper(),
        "head": speaks_of_head(" ".join(head_texts)),
    }


def _image(values: Values) -> dict[str, Any]:
    """Fields that say how the pixels are stored and where they lie."""
    frames = _integer(values, "NumberOfFrames")
    return {
        "rows": _short(values, "Rows"),
        "columns": _short(values, "Columns"),
        "frames": 1 if frames is None else frames,
        "samples": _short(values, "SamplesPerPixel", 1),
        "bits_allocated": _short(values, "BitsAllocated"),
        "bits_stored": _short(values, "BitsStored"),
        "pixel_representation": _short(values, "PixelRepresentation"),
        "photometric": shared_text(values.get("PhotometricInterpretation", b"")).upper(),
        "position": _exactly(_decimals(values.get("ImagePositionPatient", b"")), 3),
        "orientation": _exactly(_shared_decimals(values.get("ImageOrientationPatient", b"")), 6),
        "pixel_spacing": _exactly(_shared_decimals(values.get("PixelSpacing", b"")), 2),
        "slice_thickness": _decimal(values, "SliceThickness"),
        "spacing_between": _decimal(values, "SpacingBetweenSlices"),
        "slope": _decimal(values, "RescaleSlope"),
        "intercept": _decimal(values, "RescaleIntercept"),
        "instance_number": _integer(values, "InstanceNumber"),
        "phases": tuple([_phase(values, keyword) for keyword in PHASE_KEYWORDS]),
        "planar_spacing": _planar_spacing(values),
    }


def fast_values(data: bytes, *, complete: bool) -> dict[str, Any] | None:
    """The fields of a `Header`, except where it lies.

    Args:
        data: the first bytes of a file, or all of them.
        complete: ``data`` are all bytes.

    Returns:
        Field name to value, or None where pydicom has to decide, or more bytes are needed.
    """
    try:
        found = walk(data, _WANTED, complete=complete)
        if found.pixels is None and not complete and not found.values.keys() >= _IMAGE_KEYWORDS:
            return None
        return _identity(found.values) | _image(found.values)
    except (UnsureError, UnicodeDecodeError):
        return None
