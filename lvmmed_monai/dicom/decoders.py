"""Decoding of compressed pixels: one decoder after the other, until one gives the image."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    UID_dictionary,
)

from lvmmed_monai.dicom.problems import DicomError, silent_pydicom

__all__ = ["DECODERS", "SECONDS", "decode_frame", "decoder_of", "transfer_syntax"]

DECODERS = ("pylibjpeg", "pyjpegls", "gdcm", "pillow", "pydicom")
"""pydicom's names of its decoders, in the order of trial; SimpleITK comes last."""

SECONDS = 60
"""Time for a decoder in a process of its own to decode one frame."""

# Broken pixels make GDCM end the process that decodes them, so whatever uses it gets one of its own.
_APART = {
    "gdcm": """
import sys, numpy, pydicom
dataset = pydicom.dcmread(sys.argv[1])
dataset.pixel_array_options(decoding_plugin="gdcm")
numpy.save(sys.argv[2], dataset.pixel_array)
""",
    "SimpleITK": """
import sys, numpy, SimpleITK
image = SimpleITK.ReadImage(sys.argv[1], imageIO="GDCMImageIO")
numpy.save(sys.argv[2], SimpleITK.GetArrayFromImage(image)[0])
""",
}
_BARE = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_BARE_TOO = ("PlanarConfiguration",)


def transfer_syntax(dataset: Dataset) -> UID:
    """Transfer syntax as declared, else the plain one that the data set was read with."""
    meta = getattr(dataset, "file_meta", None)
    declared = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    if declared:
        return UID(declared)
    return ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian


def decoder_of(dataset: Dataset) -> Decoder:
    """pydicom's decoder for the transfer syntax of a data set.

    Raises:
        DicomError: F05 there is none.
    """
    syntax = transfer_syntax(dataset)
    try:
        return get_decoder(syntax)
    except NotImplementedError:
        # Anything may stand in a broken header: only a UID of the standard is repeated.
        named = f"transfer syntax {syntax}" if syntax in UID_dictionary else "an unknown transfer syntax"
        expected = f"one of those that pydicom ({', '.join(DECODERS)}) decodes"
        raise DicomError("F05", named, expected) from None


def _bare(dataset: Dataset, syntax: UID, frame: int) -> Dataset:
    """An instance that holds one frame as it is packed, and nothing that could rescale it or name a patient."""
    bare = Dataset()
    for keyword in (*_BARE, *(keyword for keyword in _BARE_TOO if keyword in dataset)):
        setattr(bare, keyword, dataset[keyword].value)
    # MONOCHROME1 would be inverted by SimpleITK.
    bare.PhotometricInterpretation = "MONOCHROME2" if bare.SamplesPerPixel == 1 else dataset.PhotometricInterpretation
    frames = int(dataset.get("NumberOfFrames") or 1)
    bare.PixelData = encapsulate([get_frame(dataset.PixelData, frame, number_of_frames=frames)])
    bare["PixelData"].VR, bare["PixelData"].is_undefined_length = "OB", True
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    bare.SOPClassUID = bare.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    bare.SOPInstanceUID = bare.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    return bare


def _decode_apart(name: str, dataset: Dataset, syntax: UID, frame: int) -> NDArray[Any]:
    """Decode one frame in a process of its own, which may end as it likes."""
    with tempfile.TemporaryDirectory() as folder:
        image, array = Path(folder, "frame.dcm"), Path(folder, "frame.npy")
        _bare(dataset, syntax, frame).save_as(image, enforce_file_format=True)
        command = [sys.executable, "-c", _APART[name], str(image), str(array)]
        subprocess.run(command, check=True, timeout=SECONDS, capture_output=True)
        decoded = np.load(array)
    values: NDArray[Any] = decoded.astype(f"{'ui'[int(dataset.PixelRepresentation)]}{int(dataset.BitsAllocated) // 8}")
    if not np.array_equal(values, decoded):
        raise ValueError("values beyond the type that the header states")
    return values


def _decode_with(name: str, decoder: Decoder, dataset: Dataset, frame: int | None) -> NDArray[Any]:
    if name in _APART:
        return _decode_apart(name, dataset, decoder.UID, frame or 0)
    return decoder.as_array(dataset, index=frame, decoding_plugin=name)[0]


def decode_frame(dataset: Dataset, frame: int | None) -> tuple[NDArray[Any], str]:
    """Stored values of one frame, and the name of the decoder that gave them.

    Args:
        dataset: an instance with its pixels.
        frame: its index; None for an instance that has one only.

    Returns:
        (rows, columns), or (rows, columns, 3) as RGB where the instance is stored in colour; and a name.

    Raises:
        DicomError: F04 no decoder gave an image of the stated size; F05 none is there.
    """
    decoder = decoder_of(dataset)
    packed = decoder.UID.is_encapsulated
    plugins = [name for name in DECODERS if name in decoder.available_plugins] if packed else [""]
    samples = int(dataset.get("SamplesPerPixel") or 1)
    shape = (int(dataset.Rows), int(dataset.Columns), *([samples] if samples > 1 else []))
    tried, reason = [], ""
    # Every decoder can do RLE, and those that forgive make some picture of a damaged one: the first one's word counts.
    # SimpleITK gives colour as it likes.
    last = ["SimpleITK"] if packed and samples == 1 else []
    for name in plugins[:1] if RLELossless == decoder.UID else [*plugins, *last]:
        tried.append(name or "pydicom")
        try:
            with silent_pydicom():
                values = _decode_with(name, decoder, dataset, frame)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            # Decoders of several packages raise what they like on broken data, not all of it an Exception; it costs
            # this series and not the run.
            reason = reason or f"decoding ended with {type(error).__name__}"
        else:
            if values.shape == shape:
                return values, tried[-1]
            reason = reason or f"decoded to {values.shape}"
    if not plugins:
        raise DicomError("F05", f"transfer syntax {decoder.UID} (tried: {', '.join(tried)})", "an installed decoder")
    raise DicomError("F04", f"{reason} (tried: {', '.join(tried)})", f"{shape[0]} rows of {shape[1]} columns")
