"""A generated volume as the DICOM instances that a scanner would have made of it."""

from __future__ import annotations

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from lvmmed_monai import __version__
from lvmmed_monai.dicom.uids import derived_uid
from lvmmed_monai.phantom.volume import PhantomVolume

__all__ = ["series_of"]

_CT_OFFSET = 1024

_COMMON = {
    "AccessionNumber": "",
    "InstitutionName": "PHANTOM",
    "Manufacturer": "lvmmed phantom",
    "ManufacturerModelName": "generated anatomy",
    "PatientBirthDate": "",
    "PatientSex": "",
    "PositionReferenceIndicator": "",
    "ReferringPhysicianName": "",
    "SeriesNumber": 2,
    "StudyDescription": "PHANTOM, generated, no patient",
    "StudyTime": "080000",
    "AcquisitionNumber": 1,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "PatientPosition": "HFS",
}

_CT = {
    "Modality": "CT",
    "SOPClassUID": CTImageStorage,
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "BodyPartExamined": "ABDOMEN",
    "RescaleIntercept": str(-_CT_OFFSET),
    "RescaleSlope": "1",
    "RescaleType": "HU",
    "ConvolutionKernel": "PHANTOM",
    "WindowCenter": "50",
    "WindowWidth": "400",
}

_MR = {
    "Modality": "MR",
    "SOPClassUID": MRImageStorage,
    "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
    "BodyPartExamined": "BRAIN",
    "ScanningSequence": "GR",
    "SequenceVariant": "SP",
    "ScanOptions": "",
    "MRAcquisitionType": "3D",
    "EchoTrainLength": 1,
    "MagneticFieldStrength": "1.5",
    "WindowCenter": "300",
    "WindowWidth": "600",
}


def series_of(volume: PhantomVolume, *, patient_id: str, date: str, identity: tuple[str, ...]) -> list[pydicom.Dataset]:
    """The instances of a volume, in the order of its slices.

    Args:
        volume: what to write.
        patient_id: synthetic identifier of the subject.
        date: YYYYMMDD of study and series.
        identity: what tells this volume from all others; the UIDs follow from it.
    """
    shared = _shared_header(volume, patient_id, date, identity)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    count = volume.image.shape[2]
    stored = volume.image.astype(np.int32) + (_CT_OFFSET if volume.modality == "CT" else 0)
    stored = np.clip(stored, 0, 4095).astype("<u2")
    instances = []
    for k in range(count):
        position = to_lps[:3, 2] * k + to_lps[:3, 3]
        instance = pydicom.Dataset()
        instance.update(shared)
        instance.file_meta = FileMetaDataset()
        instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        instance.SOPInstanceUID = derived_uid("phantom instance", *identity, str(k))
        # A scan from the head downwards, numbered as it was made: number and position run against each other.
        instance.InstanceNumber = count - k
        instance.ImagePositionPatient = [f"{value:.6f}" for value in position]
        instance.SliceLocation = f"{position[2]:.3f}"
        instance.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        instance["PixelData"].VR = "OW"
        instances.append(instance)
    return instances


def _shared_header(volume: PhantomVolume, patient_id: str, date: str, identity: tuple[str, ...]) -> pydicom.Dataset:
    """All attributes that the instances of a series have in common."""
    header = pydicom.Dataset()
    for name, value in {**_COMMON, **(_CT if volume.modality == "CT" else _MR), **volume.acquisition}.items():
        setattr(header, name, value)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    step_x, step_y, step_z = (float(value) for value in np.linalg.norm(to_lps[:3, :3], axis=0))
    orientation = (*(to_lps[:3, 0] / step_x), *(to_lps[:3, 1] / step_y))
    header.SoftwareVersions = __version__
    header.PatientName = patient_id.replace("-", "^", 1)
    header.PatientID = patient_id
    header.StudyID = "1"
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = date
    header.SeriesTime = header.AcquisitionTime = header.ContentTime = "080000"
    header.StudyInstanceUID = derived_uid("phantom study", *identity)
    header.SeriesInstanceUID = derived_uid("phantom series", *identity)
    header.FrameOfReferenceUID = derived_uid("phantom frame of reference", *identity)
    header.Columns, header.Rows = volume.image.shape[:2]
    header.PixelSpacing = [f"{step_y:.6f}", f"{step_x:.6f}"]
    header.SliceThickness = header.SpacingBetweenSlices = f"{step_z:.6f}"
    if volume.modality == "CT":
        # SpacingBetweenSlices is no attribute of the CT image module.
        del header.SpacingBetweenSlices
    header.ImageOrientationPatient = [f"{value:.10f}" for value in orientation]
    return header
