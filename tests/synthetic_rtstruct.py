"""Tiny RTSTRUCT objects for tests, written with pydicom alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian
from synthetic_dicom import uid

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def _item(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _image(source: Dataset) -> Dataset:
    return _item(ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID)


def contour(points: np.ndarray, kind: str = "CLOSED_PLANAR", image: Dataset | None = None) -> Dataset:
    """One contour; ``points`` (n, 3) mm (LPS)."""
    item = _item(ContourGeometricType=kind, NumberOfContourPoints=len(points))
    item.ContourData = [f"{value:.10g}" for value in np.ravel(points)]
    if image is not None:
        item.ContourImageSequence = DicomSequence([_image(image)])
    return item


def structure_set(
    source: Sequence[Dataset], structures: Mapping[str, Sequence[Dataset]], *, reference: bool = True
) -> Dataset:
    """An RTSTRUCT of named structures, numbered from 1, drawn on the images ``source``."""
    first = source[0]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTSTRUCT
    dataset.SOPInstanceUID = uid(f"rtstruct of {first.SeriesInstanceUID} {sorted(structures)}")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality = uid(f"series of {dataset.SOPInstanceUID}"), "RTSTRUCT"
    for name in ("StudyInstanceUID", "PatientID", "PatientName"):
        setattr(dataset, name, first[name].value)
    frame = _item(FrameOfReferenceUID=first.FrameOfReferenceUID)
    if reference:
        series = _item(SeriesInstanceUID=first.SeriesInstanceUID)
        series.ContourImageSequence = DicomSequence([_image(image) for image in source])
        study = _item(RTReferencedSeriesSequence=DicomSequence([series]))
        frame.RTReferencedStudySequence = DicomSequence([study])
    dataset.ReferencedFrameOfReferenceSequence = DicomSequence([frame])
    dataset.StructureSetROISequence = DicomSequence(
        [
            _item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID)
            for number, name in enumerate(structures, start=1)
        ]
    )
    dataset.ROIContourSequence = DicomSequence(
        [
            _item(ReferencedROINumber=number, ContourSequence=DicomSequence(list(contours)))
            for number, contours in enumerate(structures.values(), start=1)
        ]
    )
    return dataset
