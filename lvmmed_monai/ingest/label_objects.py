"""Label objects of either kind (SEG, RTSTRUCT), and the images that they may belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.geometry import SliceGrid
from lvmmed_monai.dicom.headers import Header, read_dataset
from lvmmed_monai.dicom.rtstruct_reader import RTSTRUCT_SOP_CLASS, read_structure_set
from lvmmed_monai.dicom.seg_reader import read_segmentation

__all__ = ["ImageStack", "LabelContent", "LabelObject", "Pairing", "read_content", "read_label_object"]


class LabelContent(Protocol):
    """What a label object says: `Segmentation` and `StructureSet` have it in common."""

    @property
    def segments(self) -> Mapping[int, str]:
        """Label text of each segment (SEG) or structure (RTSTRUCT), by its number."""

    @property
    def vocabulary(self) -> frozenset[str]:
        """Words, in lower case, of coded terms; they name nobody."""

    @property
    def frame_of_reference(self) -> str:
        """UID, "" where absent."""

    @property
    def referenced_series(self) -> frozenset[str]:
        """SeriesInstanceUIDs that it names."""

    @property
    def referenced_instances(self) -> frozenset[str]:
        """SOPInstanceUIDs that it names."""

    @property
    def referenced_classes(self) -> frozenset[str]:
        """SOPClassUIDs of the instances that it names."""

    def summary(self) -> LabelContent:
        """The same without what only `masks` needs: small."""

    def lies_on(self, grid: SliceGrid) -> bool:
        """Whether it can be drawn on the grid."""

    def masks(self, grid: SliceGrid) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """Number, slice index and pixels inside (columns, rows), plane by plane."""


class ImageStack(Protocol):
    """Images that a label object may belong to: one volume."""

    @property
    def first(self) -> Header:
        """An instance that stands for all."""

    @property
    def slices(self) -> tuple[Header, ...]:
        """Its instances, in the order of the slices."""

    @property
    def grid(self) -> SliceGrid:
        """Its voxel grid."""


@dataclass(frozen=True)
class LabelObject:
    """A label object as far as pairing and naming need it: `content` is a summary."""

    header: Header
    content: LabelContent


@dataclass(frozen=True)
class Pairing:
    """A label object and the images that it belongs to.

    Attributes:
        label: the object.
        stack: the accepted volume, or None if there is none.
        by_reference: the object names the volume or its instances; else it was found by its geometry.
    """

    label: LabelObject
    stack: ImageStack | None
    by_reference: bool


def read_content(header: Header, reader: SourceReader, *, pixels: bool) -> LabelContent:
    """Parse a label object.

    Args:
        header: its header; the SOP class says which kind it is.
        reader: of the source files.
        pixels: read the pixels of a SEG as well; contours are always read.

    Raises:
        DicomError: it is broken, or has no place in space.
    """
    dataset = read_dataset(reader.read(header.source), pixels=pixels)
    return read_structure_set(dataset) if header.sop_class == RTSTRUCT_SOP_CLASS else read_segmentation(dataset)


def read_label_object(header: Header, reader: SourceReader) -> LabelObject:
    """Read what a label object (SEG or RTSTRUCT) says about itself.

    Raises:
        DicomError: it is broken, or has no place in space.
    """
    return LabelObject(header, read_content(header, reader, pixels=False).summary())
