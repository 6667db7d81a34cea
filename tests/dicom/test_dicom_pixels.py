"""Pixels: lengths, rescaling, inversion."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.uid import RLELossless
from synthetic_dicom import noise, series

from lvmmed_monai.dicom.pixels import check_pixel_length, decode_slice, inverted, rescale_stack
from lvmmed_monai.dicom.problems import DicomError


def test_stored_values_as_they_stand():
    assert np.array_equal(decode_slice(series(3)[1]), noise(3)[1])


def test_compressed_pixels_are_equal():
    dataset = series(3)[1]
    dataset.compress(RLELossless)
    assert np.array_equal(decode_slice(dataset), noise(3)[1])


@pytest.mark.parametrize("length", [0, 1, 239])
def test_short_pixels_are_refused(length):
    dataset = series(3)[0]
    dataset.PixelData = dataset.PixelData[:length]
    with pytest.raises(DicomError, match="F04"):
        decode_slice(dataset)


def test_absent_pixels_size_and_decoder():
    dataset = series(3)[0]
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    with pytest.raises(DicomError, match="F05"):
        check_pixel_length(dataset)
    del dataset.PixelData
    with pytest.raises(DicomError, match="F04"):
        check_pixel_length(dataset)
    del dataset.Rows
    with pytest.raises(DicomError, match="F03"):
        check_pixel_length(dataset)


def test_giant_declared_size_is_refused_before_decoding():
    dataset = series(3)[0]
    dataset.Rows = dataset.Columns = 65535
    with pytest.raises(DicomError, match="F06"):
        check_pixel_length(dataset)


def test_broken_compressed_pixels_are_refused():
    dataset = series(3)[1]
    dataset.compress(RLELossless)
    dataset.PixelData = dataset.PixelData[:40]
    with pytest.raises(DicomError, match="F04"):
        decode_slice(dataset)


def test_bits_above_those_stored_are_cleared():
    dataset = series(3)[0]
    dataset.Rows, dataset.Columns, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 2, 2, 12, 11, 0
    stored = np.array([[0, 5], [100, 2047]], dtype=np.uint16)
    dataset.PixelData = (stored | 0x8000).tobytes()
    assert np.array_equal(decode_slice(dataset), stored)


def test_whole_hounsfield_units_stay_integers():
    slices = list(noise(4))
    volume = rescale_stack(slices, [1] * 4, [-1024] * 4)
    assert volume.dtype == np.int16
    assert volume.shape == (10, 12, 4)
    for k, stored in enumerate(slices):
        for row, column in np.ndindex(*stored.shape):
            assert volume[column, row, k] == stored[row, column] - 1024


@pytest.mark.parametrize(
    ("slopes", "intercepts"),
    [([1, 2], [0, 0]), ([1, 1], [0.5, 0]), ([1, 1], [40000, 0])],
    ids=["slope", "part", "range"],
)
def test_other_values_become_floats_slice_by_slice(slopes, intercepts):
    slices = list(noise(2))
    volume = rescale_stack(slices, slopes, intercepts)
    assert volume.dtype == np.float32
    for k in range(2):
        assert np.allclose(volume[:, :, k], slices[k].T.astype(float) * slopes[k] + intercepts[k])


def test_inversion_turns_the_stored_range():
    assert inverted(np.array([0, 1, 4095], np.uint16), 12, signed=False).tolist() == [4095, 4094, 0]
    assert inverted(np.array([-2048, 0, 2047], np.int16), 12, signed=True).tolist() == [2047, -1, -2048]
