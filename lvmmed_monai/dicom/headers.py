"""Headers: what the pipeline needs of an instance, read without its pixels."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.fast_header import fast_values
from lvmmed_monai.dicom.header_rules import (
    HEAD_KEYWORDS,
    PHASE_KEYWORDS,
    PLANAR_SPACING_KEYWORDS,
    speaks_of_head,
    words_of,
)
from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.dicom.values import image_type_of, integer_of, number_of, numbers_of, parsing, text_of, value_of

__all__ = [
    "DEFLATED_LIMIT_BYTES",
    "HEAD_BYTES",
    "PHASE_KEYWORDS",
    "Header",
    "header_from_dataset",
    "looks_like_dicom",
    "read_dataset",
    "read_header",
    "sop_class_of",
]

DEFLATED_LIMIT_BYTES = 512 * 1024**2
"""A deflated data set may unpack to this much; a file of 1 MB can be made to unpack to 4 GB."""

HEAD_BYTES = 64 * 1024
"""The first bytes of a file that hold nearly every header."""

_CENTIMETRES = 3  # PhysicalUnitsXDirection of an ultrasound region

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_INFLATE_CHUNK = 16 * 1024**2


@dataclass(frozen=True, slots=True)
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
        phases: a number for each of `PHASE_KEYWORDS`, None where absent; times as HHMMSS.
        planar_spacing: (between rows, between columns) in mm of an image without a place in space: PixelSpacing, else
            that of the detector, else of the first ultrasound region measured in centimetres; or None.
        head: body part or descriptions speak of the head, so that a volume may show a face.
        frame: index of the frame that the header stands for, or None for a whole instance.
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
    phases: tuple[float | None, ...]
    planar_spacing: tuple[float, float] | None
    head: bool
    frame: int | None = None

    def __reduce__(self) -> tuple[type[Header], tuple[Any, ...]]:
        # Headers cross between processes by the thousand; the way that dataclasses have takes three times as long.
        return Header, _all_fields(self)


_all_fields = attrgetter(*Header.__slots__)


def looks_like_dicom(data: bytes) -> bool:
    """Whether bytes can be DICOM: the mark after the preamble, or a first element of group 2 or 8 without one."""
    return data[128:132] == b"DICM" or data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08", b"\x00\x02")


def _head(dataset: Dataset) -> bool:
    return speaks_of_head(" ".join(text_of(dataset, keyword) for keyword in HEAD_KEYWORDS))


def _phase(dataset: Dataset, keyword: str) -> float | None:
    """A number; times are stored as text (HHMMSS.ffffff)."""
    try:
        number = float(text_of(dataset, keyword))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _region_spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Spacing of the first ultrasound region that is measured in centimetres both ways (PS3.3 C.8.5.5)."""
    for region in value_of(dataset, "SequenceOfUltrasoundRegions") or []:
        units = {number_of(region, "PhysicalUnitsXDirection"), number_of(region, "PhysicalUnitsYDirection")}
        deltas = number_of(region, "PhysicalDeltaY"), number_of(region, "PhysicalDeltaX")
        if units == {_CENTIMETRES} and deltas[0] and deltas[1]:
            return abs(deltas[0]) * 10, abs(deltas[1]) * 10
    return None


def _planar_spacing(dataset: Dataset) -> tuple[float, float] | None:
    found = (numbers_of(dataset, keyword, 2) for keyword in PLANAR_SPACING_KEYWORDS)
    spacing = next((numbers for numbers in found if numbers and min(numbers) > 0), None)
    return (spacing[0], spacing[1]) if spacing else _region_spacing(dataset)


def sop_class_of(dataset: Dataset) -> str:
    """SOPClassUID, or that of the file's own header (a DICOMDIR has only this one), or ""."""
    meta = getattr(dataset, "file_meta", None)
    return text_of(dataset, "SOPClassUID") or (text_of(meta, "MediaStorageSOPClassUID") if meta is not None else "")


def header_from_dataset(dataset: Dataset, source: Source) -> Header:
    """Pick what the pipeline needs; a malformed value counts as absent."""
    meta = getattr(dataset, "file_meta", None)
    image_type = image_type_of(dataset)
    instance_number = number_of(dataset, "InstanceNumber")
    return Header(
        source=source,
        sop_class=sop_class_of(dataset),
        sop_uid=text_of(dataset, "SOPInstanceUID") or (text_of(meta, "MediaStorageSOPInstanceUID") if meta else ""),
        series_uid=text_of(dataset, "SeriesInstanceUID"),
        study_uid=text_of(dataset, "StudyInstanceUID"),
        patient=text_of(dataset, "PatientID"),
        names=words_of(text_of(dataset, "PatientName"), text_of(dataset, "PatientID")),
        modality=text_of(dataset, "Modality").upper(),
        study_date=text_of(dataset, "StudyDate") + text_of(dataset, "StudyTime"),
        frame_of_reference=text_of(dataset, "FrameOfReferenceUID"),
        image_type=image_type,
        rows=integer_of(dataset, "Rows", 0),
        columns=integer_of(dataset, "Columns", 0),
        frames=integer_of(dataset, "NumberOfFrames", 1),
        samples=integer_of(dataset, "SamplesPerPixel", 1),
        bits_allocated=integer_of(dataset, "BitsAllocated", 0),
        bits_stored=integer_of(dataset, "BitsStored", 0),
        pixel_representation=integer_of(dataset, "PixelRepresentation", 0),
        photometric=text_of(dataset, "PhotometricInterpretation").upper(),
        transfer_syntax=text_of(meta, "TransferSyntaxUID") if meta is not None else "",
        position=numbers_of(dataset, "ImagePositionPatient", 3),  # type: ignore[arg-type]
        orientation=numbers_of(dataset, "ImageOrientationPatient", 6),  # type: ignore[arg-type]
        pixel_spacing=numbers_of(dataset, "PixelSpacing", 2),  # type: ignore[arg-type]
        slice_thickness=number_of(dataset, "SliceThickness"),
        spacing_between=number_of(dataset, "SpacingBetweenSlices"),
        slope=number_of(dataset, "RescaleSlope"),
        intercept=number_of(dataset, "RescaleIntercept"),
        instance_number=None if instance_number is None else int(instance_number),
        burned_in=text_of(dataset, "BurnedInAnnotation").upper(),
        mosaic="MOSAIC" in image_type,
        phases=tuple(_phase(dataset, keyword) for keyword in PHASE_KEYWORDS),
        planar_spacing=_planar_spacing(dataset),
        head=_head(dataset),
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
    with parsing():
        if has_preamble:
            _refuse_bomb(data)
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels, force=True)
        sop_class = sop_class_of(dataset)
    if not sop_class.startswith("1."):
        code, found = ("F03", "no SOP class in the header") if has_preamble else ("F02", "no SOP class")
        raise DicomError(code, found, "a SOP class UID")
    return dataset


def read_header(head: bytes, source: Source, whole: Callable[[], bytes] | None = None) -> Header:
    """Read one instance's header: fast from its first bytes, by pydicom where anything is unusual.

    Args:
        head: its first bytes, `HEAD_BYTES` or fewer where the file is shorter; all bytes without ``whole``.
        source: where it lies.
        whole: gives all bytes; asked only when ``head`` does not settle it.

    Raises:
        DicomError: see `read_dataset`; and what ``whole`` raises.
    """
    values = fast_values(head, complete=whole is None or len(head) < HEAD_BYTES)
    if values is None and whole is not None and looks_like_dicom(head):
        head = whole()
        values = fast_values(head, complete=True)
    if values is not None:
        return Header(source=source, **values)
    dataset = read_dataset(head, pixels=False)
    with parsing():
        return header_from_dataset(dataset, source)
