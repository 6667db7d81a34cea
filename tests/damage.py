"""Damaged and awkward copies of a good series, one way each, with what a right reader makes of them.

A damage takes the slices of a good series in the order of their positions, at least 20 of them, and writes files into a
folder. It returns the volumes that the folder truly holds, as lists of slices: what a reader accepts is right when it
is these volumes, by the headers of these slices (see ``world.py``).
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from synthetic_dicom import slice_dataset

Slices = list[Dataset]
Make = Callable[[Slices, Path], list[Slices]]


@dataclass(frozen=True)
class Damage:
    """One row of the fault matrix.

    Attributes:
        name: of the row.
        make: writes the damaged copy and returns the volumes that it truly holds.
        accept: a reader may accept the folder, if it returns these volumes.
        refuse: codes, one of which our ingest must give when it refuses the folder; none: it must not refuse.
        report: codes, one of which our ingest must report when it accepts the folder; none: no demand.
        resampled: accepted volumes may be interpolated.
        visible: False where nothing in the files tells that slices are missing: the row judges nobody.
    """

    name: str
    make: Make
    accept: bool = True
    refuse: frozenset[str] = frozenset()
    report: frozenset[str] = frozenset()
    resampled: bool = False
    visible: bool = True


DAMAGES: list[Damage] = []
"""Every row, in the order of the matrix."""


def _row(
    name: str,
    *,
    refuse: str = "",
    report: str = "",
    either: bool = False,
    resampled: bool = False,
    visible: bool = True,
) -> Callable[[Make], Make]:
    """Register a row: codes are separated by spaces; ``either``: refused, or accepted as the volumes returned."""

    def register(make: Make) -> Make:
        codes, reports = frozenset(refuse.split()), frozenset(report.split())
        DAMAGES.append(Damage(name, make, either or not codes, codes, reports, resampled, visible))
        return make

    return register


# -- the good series, and how files are written -----------------------------------------------------------------------


def oblique_series(count: int = 24, *, rows: int = 40, columns: int = 48, seed: int = 0) -> Slices:
    """A clean oblique CT of ramps and blobs: no two neighbouring voxels hold the same value."""
    turn = np.radians([20.0, 17.0])
    around_z = np.array([[np.cos(turn[0]), -np.sin(turn[0]), 0], [np.sin(turn[0]), np.cos(turn[0]), 0], [0, 0, 1]])
    around_x = np.array([[1, 0, 0], [0, np.cos(turn[1]), -np.sin(turn[1])], [0, np.sin(turn[1]), np.cos(turn[1])]])
    axes = (around_z @ around_x).T
    k, row, column = np.meshgrid(np.arange(count), np.arange(rows), np.arange(columns), indexing="ij")
    values = 124 + 170 * k + 70 * row + 30 * column
    rng = np.random.default_rng(seed)
    size = np.array([count, rows, columns])
    for centre in rng.uniform(0.2 * size, 0.8 * size, (9, 3)):
        distance = ((k - centre[0]) / 1.6) ** 2 + ((row - centre[1]) / 3) ** 2 + ((column - centre[2]) / 3) ** 2
        values = values + rng.uniform(300, 700) * np.exp(-distance / 2)
    orientation = [round(float(value), 8) for value in axes[:2].ravel()]
    slices = []
    for number, pixels in enumerate(np.rint(values).astype(np.int16)):
        position = [round(float(value), 5) for value in (-30.0, 12.0, 40.0) + 2.0 * number * axes[2]]
        one = slice_dataset(pixels, position, number + 1, orientation=orientation, spacing=(0.9, 0.7))
        one.AcquisitionNumber, one.AcquisitionTime, one.ContentTime = 1, "030406", f"0304{number + 10:02d}"
        slices.append(one)
    return slices


def in_order(datasets: Sequence[Dataset]) -> Slices:
    """Slices in the order of their positions along the normal."""
    axes = np.array(datasets[0].ImageOrientationPatient, dtype=float)
    normal = np.cross(axes[:3], axes[3:])
    return sorted(datasets, key=lambda one: float(np.dot(np.array(one.ImagePositionPatient, dtype=float), normal)))


def damaged(damage: Damage, good: Sequence[Dataset], folder: Path) -> list[Slices]:
    """Write a damaged copy of a good series into a new folder; the good one stays as it is."""
    folder.mkdir(parents=True)
    return damage.make([copy.deepcopy(one) for one in good], folder)


def _bytes(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _write(slices: Sequence[Dataset], folder: Path, name: str = "{:03d}.dcm") -> None:
    for number, dataset in enumerate(slices):
        (folder / name.format(number)).write_bytes(_bytes(dataset))


def _new_uid(dataset: Dataset, mark: str) -> Dataset:
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(dataset.SOPInstanceUID), mark])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _twin(dataset: Dataset, mark: str, *, other_pixels: bool = True) -> Dataset:
    """A copy under a UID of its own, its picture upside down if wanted."""
    twin = _new_uid(copy.deepcopy(dataset), mark)
    if other_pixels:
        twin.PixelData = np.ascontiguousarray(dataset.pixel_array[::-1]).tobytes()
    return twin


def _move(dataset: Dataset, vector: np.ndarray) -> None:
    moved = np.array(dataset.ImagePositionPatient, dtype=float) + vector
    dataset.ImagePositionPatient = [round(float(value), 5) for value in moved]


def _axes(dataset: Dataset) -> np.ndarray:
    """(3, 3): along a row, along a column, normal."""
    axes = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
    return np.vstack([axes, np.cross(axes[0], axes[1])])


def _step(slices: Slices) -> float:
    ends = (np.array(slices[end].ImagePositionPatient, dtype=float) for end in (0, -1))
    return float(np.linalg.norm(np.subtract(*ends))) / (len(slices) - 1)


def _all(slices: Slices, folder: Path) -> list[Slices]:
    _write(slices, folder)
    return [slices]


# -- good series that look odd ----------------------------------------------------------------------------------------


@_row("clean")
def clean(slices: Slices, folder: Path) -> list[Slices]:
    return _all(slices, folder)


@_row("file names scrambled, without endings")
def scrambled_names(slices: Slices, folder: Path) -> list[Slices]:
    for number, place in enumerate(np.random.default_rng(1).permutation(len(slices))):
        (folder / f"F{place * 7919 % 10007:05d}").write_bytes(_bytes(slices[number]))
    return [slices]


@_row("slices stored from the other end, normal reversed")
def flipped(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices:
        axes, pixels = _axes(one), one.pixel_array
        _move(one, axes[1] * float(one.PixelSpacing[0]) * (pixels.shape[0] - 1))
        one.ImageOrientationPatient = [*one.ImageOrientationPatient[:3], *(-value for value in axes[1])]
        one.PixelData = np.ascontiguousarray(pixels[::-1]).tobytes()
    return _all(slices[::-1], folder)


@_row("InstanceNumber scrambled", report="W02")
def scrambled_numbers(slices: Slices, folder: Path) -> list[Slices]:
    for one, number in zip(slices, np.random.default_rng(2).permutation(len(slices)), strict=True):
        one.InstanceNumber = int(number) + 1
    return _all(slices, folder)


@_row("SpacingBetweenSlices and SliceThickness lie", report="W01")
def lying_spacing(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices:
        one.SpacingBetweenSlices = one.SliceThickness = 2.7 * _step(slices)
    return _all(slices, folder)


@_row("RescaleSlope differs per slice", report="W03")
def slopes(slices: Slices, folder: Path) -> list[Slices]:
    for number, one in enumerate(slices):
        one.RescaleSlope, one.RescaleIntercept = 1 + 0.25 * (number % 4), -1024 + 10 * (number % 3)
    return _all(slices, folder)


@_row("positions jitter by 0.02 mm")
def jitter(slices: Slices, folder: Path) -> list[Slices]:
    rng = np.random.default_rng(3)
    for one in slices:
        _move(one, rng.uniform(-0.02, 0.02) * _axes(one)[2])
    return _all(slices, folder)


@_row("MONOCHROME1 (CT: values stay HU)")
def monochrome1(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices:
        one.PhotometricInterpretation = "MONOCHROME1"
    return _all(slices, folder)


@_row("no FrameOfReferenceUID", report="G08")
def no_frame_of_reference(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices:
        del one.FrameOfReferenceUID
    return _all(slices, folder)


def _tilted(slices: Slices, degrees: float) -> None:
    """As a scanner does it: the planes turn about their rows, and the table moves on as before."""
    turn = np.radians(degrees)
    for one in slices:
        row, column, normal = _axes(one)
        turned = [*row, *(np.cos(turn) * column + np.sin(turn) * normal)]
        one.ImageOrientationPatient = [round(float(value), 8) for value in turned]
        one.GantryDetectorTilt = -degrees


@_row("tilt of -18.5 degrees", report="G03", resampled=True)
def tilt_backward(slices: Slices, folder: Path) -> list[Slices]:
    _tilted(slices, -18.5)
    return _all(slices, folder)


@_row("tilt of 16.5 degrees", report="G03", resampled=True)
def tilt_forward(slices: Slices, folder: Path) -> list[Slices]:
    _tilted(slices, 16.5)
    return _all(slices, folder)


# -- slices missing ---------------------------------------------------------------------------------------------------


@_row("1 slice missing in the middle", refuse="G01")
def one_missing(slices: Slices, folder: Path) -> list[Slices]:
    middle = len(slices) // 2
    return _all(slices[:middle] + slices[middle + 1 :], folder)


@_row("5 scattered slices missing", refuse="G01")
def five_missing(slices: Slices, folder: Path) -> list[Slices]:
    gone = {round(len(slices) * share) for share in (0.15, 0.3, 0.5, 0.65, 0.85)}
    return _all([one for number, one in enumerate(slices) if number not in gone], folder)


@_row("every second slice of the upper half missing", refuse="G01 G02")
def every_second_missing(slices: Slices, folder: Path) -> list[Slices]:
    half = len(slices) // 2
    return _all(slices[:half] + slices[half::2], folder)


@_row("5 slices missing at the end (nothing tells)", visible=False)
def end_missing(slices: Slices, folder: Path) -> list[Slices]:
    return _all(slices[:-5], folder)


@_row("5 missing before the last of the end", refuse="G01")
def end_missing_but_one(slices: Slices, folder: Path) -> list[Slices]:
    return _all(slices[:-6] + slices[-1:], folder)


@_row("2 slices only", refuse="G07", either=True)
def two_slices(slices: Slices, folder: Path) -> list[Slices]:
    return _all(slices[:2], folder)


# -- slices too many --------------------------------------------------------------------------------------------------


@_row("duplicate slice, same UID", report="D01")
def same_uid(slices: Slices, folder: Path) -> list[Slices]:
    _write([*slices, slices[7]], folder)
    return [slices]


@_row("duplicate slice, new UID", report="D03")
def same_pixels(slices: Slices, folder: Path) -> list[Slices]:
    _write([*slices, _twin(slices[7], "copy", other_pixels=False)], folder)
    return [slices]


@_row("same UID, other pixels", refuse="D02")
def conflicting_uid(slices: Slices, folder: Path) -> list[Slices]:
    other = _twin(slices[7], "conflict")
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = slices[7].SOPInstanceUID
    return _all([*slices, other], folder)


@_row("same position, other pixels", refuse="D04")
def conflicting_position(slices: Slices, folder: Path) -> list[Slices]:
    return _all([*slices, _twin(slices[7], "conflict")], folder)


@_row("two series in one folder")
def two_series(slices: Slices, folder: Path) -> list[Slices]:
    second = [_twin(one, "second") for one in slices[: len(slices) // 2]]
    for one in second:
        one.SeriesInstanceUID = generate_uid(entropy_srcs=[str(one.SeriesInstanceUID), "second"])
    _write([*slices, *second], folder)
    return [slices, second]


@_row("localizer with the same SeriesInstanceUID", report="R01")
def localizer(slices: Slices, folder: Path) -> list[Slices]:
    scout = _twin(slices[0], "scout")
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    rows, columns = scout.Rows // 2, scout.Columns
    scout.PixelData = np.ascontiguousarray(slices[3].pixel_array[:rows]).tobytes()
    scout.Rows, scout.Columns = rows, columns
    scout.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]
    _write([scout, *slices], folder)
    return [slices]


@_row("one slice with another SeriesInstanceUID", refuse="G01 S02", either=True, report="S02")
def strayed_slice(slices: Slices, folder: Path) -> list[Slices]:
    slices[9].SeriesInstanceUID = generate_uid(entropy_srcs=["strayed"])
    return _all(slices, folder)


def _second_time(slices: Slices) -> Slices:
    second = [_twin(one, "later") for one in slices]
    for number, one in enumerate(second):
        one.InstanceNumber = len(slices) + number + 1
    return second


@_row("two time points, numbered", report="T01")
def two_times(slices: Slices, folder: Path) -> list[Slices]:
    second = _second_time(slices)
    for time, members in ((1, slices), (2, second)):
        for one in members:
            one.TemporalPositionIdentifier, one.NumberOfTemporalPositions = time, 2
    _write([*slices, *second], folder)
    return [slices, second]


@_row("two time points, InstanceNumber alone tells", report="T01")
def two_untold_times(slices: Slices, folder: Path) -> list[Slices]:
    for number, one in enumerate(slices):
        one.InstanceNumber = number + 1
    second = _second_time(slices)
    _write([*slices, *second], folder)
    return [slices, second]


@_row("second time point incomplete", refuse="T02 D04 G01", either=True, report="T02")
def incomplete_time(slices: Slices, folder: Path) -> list[Slices]:
    second = _second_time(slices)
    for time, members in ((1, slices), (2, second)):
        for one in members:
            one.TemporalPositionIdentifier = time
    _write([*slices, *second[:4], *second[5:]], folder)
    return [slices]


@_row("two patients under one SeriesInstanceUID")
def two_patients(slices: Slices, folder: Path) -> list[Slices]:
    second = [_twin(one, "somebody else") for one in slices]
    for one in second:
        one.PatientID, one.PatientName = "SOMEBODY-ELSE", "Else^Somebody"
    _write([*slices, *second], folder)
    return [slices, second]


# -- headers that lack or contradict ----------------------------------------------------------------------------------


@_row("no ImagePositionPatient", refuse="G04")
def no_position(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices:
        del one.ImagePositionPatient
    return _all(slices, folder)


@_row("no ImagePositionPatient in one slice", refuse="G04 G01")
def one_without_position(slices: Slices, folder: Path) -> list[Slices]:
    del slices[5].ImagePositionPatient
    return _all(slices, folder)


@_row("no PixelSpacing", refuse="G05")
def no_spacing(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices:
        del one.PixelSpacing
    return _all(slices, folder)


@_row("PixelSpacing is 0", refuse="G05")
def zero_spacing(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices:
        one.PixelSpacing = [0, 0]
    return _all(slices, folder)


@_row("orientation changes by 5 degrees midway", refuse="G06 S01")
def orientation_changes(slices: Slices, folder: Path) -> list[Slices]:
    turn = np.radians(5.0)
    for one in slices[len(slices) // 2 :]:
        row, column, normal = _axes(one)
        turned = [*row, *(np.cos(turn) * column + np.sin(turn) * normal)]
        one.ImageOrientationPatient = [round(float(value), 8) for value in turned]
    return _all(slices, folder)


@_row("orientation is no pair of unit vectors", refuse="G04")
def skewed_axes(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices:
        one.ImageOrientationPatient = [1, 0, 0, 0.5, 0.5, 0]
    return _all(slices, folder)


@_row("PixelSpacing changes midway", refuse="G06 S01")
def spacing_changes(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices[len(slices) // 2 :]:
        one.PixelSpacing = [1.2 * float(value) for value in one.PixelSpacing]
    return _all(slices, folder)


@_row("image size changes midway", refuse="S01 G01")
def size_changes(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices[1::2]:
        pixels = one.pixel_array[:-4, :-4]
        one.PixelData = np.ascontiguousarray(pixels).tobytes()
        one.Rows, one.Columns = pixels.shape
    return _all(slices, folder)


@_row("two FrameOfReferenceUIDs inside", refuse="S01 G01")
def two_frames_of_reference(slices: Slices, folder: Path) -> list[Slices]:
    for one in slices[len(slices) // 2 :]:
        one.FrameOfReferenceUID = generate_uid(entropy_srcs=["elsewhere"])
    return _all(slices, folder)


@_row("one slice 40 % of a step off", refuse="G02")
def slice_off(slices: Slices, folder: Path) -> list[Slices]:
    _move(slices[8], 0.4 * _step(slices) * _axes(slices[8])[2])
    return _all(slices, folder)


@_row("one slice slid sideways by a step", refuse="G02")
def slice_slid(slices: Slices, folder: Path) -> list[Slices]:
    _move(slices[8], _step(slices) * _axes(slices[8])[0])
    return _all(slices, folder)


@_row("steps grow by 2 % each", refuse="G02")
def growing_steps(slices: Slices, folder: Path) -> list[Slices]:
    step = _step(slices)
    for number, one in enumerate(slices):
        _move(one, step * ((1.02**number - 1) / 0.02 - number) * _axes(one)[2])
    return _all(slices, folder)


@_row("tilt and uneven steps", refuse="G01 G02")
def uneven_tilt(slices: Slices, folder: Path) -> list[Slices]:
    _tilted(slices, 18.5)
    kept = slices[: len(slices) // 3] + slices[len(slices) // 3 :: 3]
    for one in kept[-4:]:
        _move(one, 0.3 * _step(slices) * _axes(one)[2])
    return _all(kept, folder)


# -- broken files -----------------------------------------------------------------------------------------------------


@_row("pixels of one file cut off", refuse="F04")
def pixels_cut(slices: Slices, folder: Path) -> list[Slices]:
    _write(slices, folder)
    path = folder / "011.dcm"
    path.write_bytes(path.read_bytes()[: -len(slices[11].PixelData) // 3])
    return [slices]


@_row("header of one file cut off", refuse="F03 G01 F04")
def header_cut(slices: Slices, folder: Path) -> list[Slices]:
    _write(slices, folder)
    path = folder / "011.dcm"
    path.write_bytes(path.read_bytes()[:420])
    return [slices]


@_row("one file empty", refuse="F01 G01")
def empty_file(slices: Slices, folder: Path) -> list[Slices]:
    _write(slices, folder)
    (folder / "011.dcm").write_bytes(b"")
    return [slices]


@_row("one file is text", refuse="F02 G01")
def text_file(slices: Slices, folder: Path) -> list[Slices]:
    _write(slices, folder)
    (folder / "011.dcm").write_text("not an image\n" * 99)
    return [slices]


@_row("notes and a screen capture beside the slices", report="R02 R03")
def beside(slices: Slices, folder: Path) -> list[Slices]:
    (folder / "notes.txt").write_text("not an image\n")
    shot = _twin(slices[0], "screen")
    shot.SOPClassUID = shot.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    shot.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    _write([*slices, shot], folder)
    return [slices]


# -- encodings --------------------------------------------------------------------------------------------------------


@_row("Implicit VR Little Endian")
def implicit(slices: Slices, folder: Path) -> list[Slices]:
    _rewritten(slices, folder, ImplicitVRLittleEndian)
    return [slices]


@_row("Explicit VR Big Endian")
def big_endian(slices: Slices, folder: Path) -> list[Slices]:
    _rewritten(slices, folder, ExplicitVRBigEndian)
    return [slices]


@_row("Deflated Explicit VR Little Endian")
def deflated(slices: Slices, folder: Path) -> list[Slices]:
    _rewritten(slices, folder, DeflatedExplicitVRLittleEndian)
    return [slices]


def _rewritten(slices: Slices, folder: Path, syntax: str) -> None:
    """Written anew, element by element, under another transfer syntax."""
    copies = []
    for one in slices:
        fresh = Dataset()
        for element in one:
            if not element.tag.is_private:
                fresh.add(element)
        if syntax == ExplicitVRBigEndian:
            fresh.PixelData = np.frombuffer(one.PixelData, "<u2").byteswap().tobytes()
        fresh.file_meta = FileMetaDataset()
        fresh.file_meta.update(one.file_meta)
        fresh.file_meta.TransferSyntaxUID = syntax
        copies.append(fresh)
    _write(copies, folder)


def _compressed(slices: Slices, folder: Path, syntax: str) -> list[Slices]:
    copies = [copy.deepcopy(one) for one in slices]
    for one in copies:
        one.compress(syntax, generate_instance_uid=False)
    _write(copies, folder)
    return [slices]


@_row("RLE")
def rle(slices: Slices, folder: Path) -> list[Slices]:
    return _compressed(slices, folder, RLELossless)


@_row("JPEG-LS lossless")
def jpeg_ls(slices: Slices, folder: Path) -> list[Slices]:
    return _compressed(slices, folder, JPEGLSLossless)


@_row("JPEG 2000 lossless")
def jpeg_2000(slices: Slices, folder: Path) -> list[Slices]:
    return _compressed(slices, folder, JPEG2000Lossless)


@_row("files without preamble")
def no_preamble(slices: Slices, folder: Path) -> list[Slices]:
    for number, one in enumerate(slices):
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        (folder / f"{number:03d}").write_bytes(_bytes(one)[132:])
    return [slices]
