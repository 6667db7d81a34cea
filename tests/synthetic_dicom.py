"""Tiny DICOM series and label objects for tests, written with pydicom alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, SEG = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.66.4"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ROWS, COLUMNS = 12, 10


def uid(text: str) -> str:
    """A UID that is always the same for the same text."""
    return str(generate_uid(entropy_srcs=[text]))


def slice_dataset(
    pixels: np.ndarray,
    position: Sequence[float],
    number: int,
    *,
    series: str = "series",
    study: str = "study",
    patient: str = "PATIENT-7",
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (0.8, 0.5),
    modality: str = "CT",
) -> Dataset:
    """One slice; ``pixels`` (rows, columns) int16."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = {"CT": CT, "MR": MR}[modality]
    dataset.SOPInstanceUID = uid(f"{patient}/{study}/{series}/{number}")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(f"{patient}/{study}"), uid(f"{patient}/{study}/{series}")
    dataset.FrameOfReferenceUID = uid(f"frame {patient}/{study}")
    dataset.PatientID, dataset.PatientName, dataset.Modality = patient, "Planted^Name", modality
    dataset.StudyDate, dataset.StudyTime = "19700102", "030405"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber, dataset.SliceThickness = number, 2.0
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(position), list(orientation)
    dataset.PixelSpacing = list(spacing)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = pixels.astype("<i2").tobytes()
    return dataset


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Stored values (count, rows, columns), from 0 so that a CT holds air."""
    values = np.random.default_rng(seed).integers(0, 1500, (count, ROWS, COLUMNS), dtype=np.int16)
    values[:, 0, 0] = 0
    return values


def series(
    count: int = 6, *, step: float = 2.0, origin: Sequence[float] = (-3.0, 4.0, 7.0), **kinds: Any
) -> list[Dataset]:
    """A clean axial series of ``count`` slices."""
    seed = sum(map(ord, str(kinds.get("series", "")) + str(kinds.get("patient", ""))))
    pixels = noise(count, seed)
    return [
        slice_dataset(pixels[k], (origin[0], origin[1], origin[2] + k * step), k + 1, **kinds) for k in range(count)
    ]


def save(datasets: Sequence[Dataset], folder: Path, name: Callable[[int], str] = "{:03d}.dcm".format) -> list[Path]:
    """Write data sets into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name(index) for index in range(len(datasets))]
    for dataset, path in zip(datasets, paths, strict=True):
        dataset.save_as(path, enforce_file_format=True)
    return paths


def _plane_position(position: Sequence[float]) -> DicomSequence:
    item = Dataset()
    item.ImagePositionPatient = list(position)
    return DicomSequence([item])


def _segment(number: int, label: str) -> Dataset:
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel = number, label
    return item


def _frame(number: int, position: Sequence[float]) -> Dataset:
    item, identification = Dataset(), Dataset()
    identification.ReferencedSegmentNumber = number
    item.SegmentIdentificationSequence = DicomSequence([identification])
    item.PlanePositionSequence = _plane_position(position)
    return item


def segmentation(
    source: Sequence[Dataset],
    masks: dict[int, np.ndarray],
    labels: dict[int, str],
    *,
    kind: str = "BINARY",
    maximum: int = 255,
    reference: bool = True,
) -> Dataset:
    """A SEG of ``masks`` {number: (slices, rows, columns)} in the order of ``source``; empty frames are left out."""
    first = source[0]
    frames = [(number, k) for number, mask in masks.items() for k in range(len(source)) if mask[k].any()]
    planes = np.stack([masks[number][k] for number, k in frames])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SEG
    dataset.SOPInstanceUID = uid(f"seg of {first.SeriesInstanceUID} {sorted(labels.items())}")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality = uid(f"series of {dataset.SOPInstanceUID}"), "SEG"
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "Rows", "Columns"):
        setattr(dataset, name, first[name].value)
    if reference:
        item = Dataset()
        item.SeriesInstanceUID = first.SeriesInstanceUID
        dataset.ReferencedSeriesSequence = DicomSequence([item])
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = first.ImageOrientationPatient, first.PixelSpacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = (
        DicomSequence([orientation]),
        DicomSequence([measures]),
    )
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(
        [_frame(number, source[k].ImagePositionPatient) for number, k in frames]
    )
    dataset.SegmentSequence = DicomSequence([_segment(number, label) for number, label in labels.items()])
    dataset.SegmentationType, dataset.NumberOfFrames = kind, len(frames)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 1 if kind == "BINARY" else 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    if kind == "FRACTIONAL":
        dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = "PROBABILITY", maximum
    packed = np.packbits(planes.ravel() > 0, bitorder="little") if bits == 1 else planes.astype(np.uint8)
    data = packed.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    return dataset
