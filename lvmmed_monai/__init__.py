"""LVM-Med and VoCo for hospital imaging teams: from a folder of DICOM to a trained, evaluated model."""

__version__ = "0.1.0"
