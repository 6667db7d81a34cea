"""Headers: what the pipeline needs of an instance, read without its pixels."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.problems import DicomError, silent_pydicom

__all__ = [
    "DEFLATED_LIMIT_BYTES",
    "Header",
    "header_from_dataset",
    "looks_like_dicom",
    "read_dataset",
    "read_header",
    "sop_class_of",
]

DEFLATED_LIMIT_BYTES = 512 * 1024**2
"""A deflated data set may unpack to this much; a file of 1 MB can be made to unpack to 4 GB."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_INFLATE_CHUNK = 16 * 1024**2
# What pydicom raises when a value cannot be turned into what its type demands.
_VALUE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError, struct.error)


@dataclass(frozen=True)
class Header:
    """One instance, as far as grouping and checks need it. Holds identifiers: never written out or logged.

    Attributes:
        source: where it lies.
        sop_class, sop_uid, series_uid, study_uid, frame_of_reference: UIDs, "" where absent.
        patient: PatientID, else "".
        names: words of PatientName and PatientID, in lower case, to keep them out of labels.
        modality: DICOM modality ("CT", "MR", "PT", ...).
        study_date: StudyDate and StudyTime as they stand; only for ordering.
        image_type: values of ImageType in upper case.
        rows, columns, frames, samples, bits_allocated, bits_stored, pixel_representation: of the pixels.
        photometric: PhotometricInterpretation.
        transfer_syntax: UID, "" where absent.
        position: (x, y, z) of the first pixel in mm (LPS), or None.
        orientation: six direction cosines, or None.
        pixel_spacing: (between rows, between columns) in mm, or None.
        slice_thickness, spacing_between: mm as declared, or None; positions win over both.
        slope, intercept: from stored to real values, or None.
        instance_number: or None.
        burned_in: BurnedInAnnotation in upper case, "" where absent.
        mosaic: a tiled volume in one image (Siemens).
    """

    source: Source
    sop_class: str
    sop_uid: str
    series_uid: str
    study_uid: str
    patient: str
    names: frozenset[str]
    modality: str
    study_date: str
    frame_of_reference: str
    image_type: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    pixel_representation: int
    photometric: str
    transfer_syntax: str
    position: tuple[float, float, float] | None
    orientation: tuple[float, float, float, float, float, float] | None
    pixel_spacing: tuple[float, float] | None
    slice_thickness: float | None
    spacing_between: float | None
    slope: float | None
    intercept: float | None
    instance_number: int | None
    burned_in: str
    mosaic: bool


def looks_like_dicom(data: bytes) -> bool:
    """Whether bytes can be DICOM: the mark after the preamble, or a first element of group 2 or 8 without one."""
    return data[128:132] == b"DICM" or data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08", b"\x00\x02")


def _value(dataset: Dataset, name: str) -> Any:
    """A value, or None where it is absent, empty or malformed."""
    try:
        value = dataset.get(name)
    except _VALUE_ERRORS:
        return None
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value


def _text(dataset: Dataset, name: str) -> str:
    value = _value(dataset, name)
    return "" if value is None else str(value).strip()


def _numbers(dataset: Dataset, name: str, count: int) -> tuple[float, ...] | None:
    value = _value(dataset, name)
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        numbers = tuple(float(number) for number in (value if isinstance(value, Sequence) else [value]))
    except _VALUE_ERRORS:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _number(dataset: Dataset, name: str) -> float | None:
    numbers = _numbers(dataset, name, 1)
    return numbers[0] if numbers else None


def _integer(dataset: Dataset, name: str, default: int) -> int:
    number = _number(dataset, name)
    return default if number is None else int(number)


def _words(dataset: Dataset) -> frozenset[str]:
    text = f"{_text(dataset, 'PatientName')} {_text(dataset, 'PatientID')}".lower()
    return frozenset(word for word in "".join(c if c.isalnum() else " " for c in text).split() if len(word) > 2)


def _image_type(dataset: Dataset) -> tuple[str, ...]:
    value = _value(dataset, "ImageType")
    values = [value] if isinstance(value, str) else list(value or [])
    return tuple(str(part).strip().upper() for part in values)


def sop_class_of(dataset: Dataset) -> str:
    """SOPClassUID, or that of the file's own header (a DICOMDIR has only this one), or ""."""
    meta = getattr(dataset, "file_meta", None)
    return _text(dataset, "SOPClassUID") or (_text(meta, "MediaStorageSOPClassUID") if meta is not None else "")


def header_from_dataset(dataset: Dataset, source: Source) -> Header:
    """Pick what the pipeline needs; a malformed value counts as absent."""
    meta = getattr(dataset, "file_meta", None)
    image_type = _image_type(dataset)
    instance_number = _number(dataset, "InstanceNumber")
    return Header(
        source=source,
        sop_class=sop_class_of(dataset),
        sop_uid=_text(dataset, "SOPInstanceUID") or (_text(meta, "MediaStorageSOPInstanceUID") if meta else ""),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        patient=_text(dataset, "PatientID"),
        names=_words(dataset),
        modality=_text(dataset, "Modality").upper(),
        study_date=_text(dataset, "StudyDate") + _text(dataset, "StudyTime"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        image_type=image_type,
        rows=_integer(dataset, "Rows", 0),
        columns=_integer(dataset, "Columns", 0),
        frames=_integer(dataset, "NumberOfFrames", 1),
        samples=_integer(dataset, "SamplesPerPixel", 1),
        bits_allocated=_integer(dataset, "BitsAllocated", 0),
        bits_stored=_integer(dataset, "BitsStored", 0),
        pixel_representation=_integer(dataset, "PixelRepresentation", 0),
        photometric=_text(dataset, "PhotometricInterpretation").upper(),
        transfer_syntax=_text(meta, "TransferSyntaxUID") if meta is not None else "",
        position=_numbers(dataset, "ImagePositionPatient", 3),  # type: ignore[arg-type]
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),  # type: ignore[arg-type]
        pixel_spacing=_numbers(dataset, "PixelSpacing", 2),  # type: ignore[arg-type]
        slice_thickness=_number(dataset, "SliceThickness"),
        spacing_between=_number(dataset, "SpacingBetweenSlices"),
        slope=_number(dataset, "RescaleSlope"),
        intercept=_number(dataset, "RescaleIntercept"),
        instance_number=None if instance_number is None else int(instance_number),
        burned_in=_text(dataset, "BurnedInAnnotation").upper(),
        mosaic="MOSAIC" in image_type,
    )


def _refuse_bomb(data: bytes) -> None:
    """Raise F06 when a deflated data set unpacks beyond the limit; pydicom unpacks all of it at once."""
    # The file meta group: 12 bytes of its own length element at 132, then that many bytes.
    if data[132:138] != b"\x02\x00\x00\x00UL":
        return
    start = 144 + int.from_bytes(data[140:144], "little")
    if _DEFLATED not in data[144:start]:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    pending, size = data[start:], 0
    while pending and not inflater.eof:
        size += len(inflater.decompress(pending, _INFLATE_CHUNK))
        pending = inflater.unconsumed_tail
        if size > DEFLATED_LIMIT_BYTES:
            raise DicomError("F06", "a deflated file beyond the limit", f"at most {DEFLATED_LIMIT_BYTES} bytes")


def read_dataset(data: bytes, *, pixels: bool) -> Dataset:
    """Parse an instance.

    Args:
        data: its bytes. A file without preamble is read too, if a SOP class is found in it.
        pixels: read the pixels as well.

    Raises:
        DicomError: F01 empty, F02 not DICOM, F03 broken header, F06 over a limit.
    """
    if not data:
        raise DicomError("F01", "0 bytes", "an image")
    if not looks_like_dicom(data):
        raise DicomError("F02", "no DICOM mark", "a DICOM file")
    has_preamble = data[128:132] == b"DICM"
    try:
        with silent_pydicom():
            if has_preamble:
                _refuse_bomb(data)
            dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels, force=True)
            sop_class = sop_class_of(dataset)
    except DicomError:
        raise
    except (MemoryError, RecursionError) as error:
        raise DicomError("F06", f"parsing ended with {type(error).__name__}", "usual size and nesting") from None
    except InvalidDicomError:
        raise DicomError("F02", "no DICOM data set", "a DICOM file") from None
    except Exception as error:
        # Whatever a broken file makes the parser raise, it costs this file and not the run. Its text may hold values.
        raise DicomError("F03", f"parsing ended with {type(error).__name__}", "a whole header") from None
    if not sop_class.startswith("1."):
        code, found = ("F03", "no SOP class in the header") if has_preamble else ("F02", "no SOP class")
        raise DicomError(code, found, "a SOP class UID")
    return dataset


def read_header(data: bytes, source: Source) -> Header:
    """Read one instance's header.

    Args:
        data: its bytes; only those before the pixels matter.
        source: where it lies.

    Raises:
        DicomError: see `read_dataset`.
    """
    dataset = read_dataset(data, pixels=False)
    with silent_pydicom():
        return header_from_dataset(dataset, source)
