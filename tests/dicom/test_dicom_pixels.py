"""Pixels: lengths, rescaling, inversion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from synthetic_dicom import noise, series

from lvmmed_monai.dicom import decoders, pixels
from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.decoders import DECODERS
from lvmmed_monai.dicom.headers import Header, read_header
from lvmmed_monai.dicom.pixels import PixelReader, check_pixel_length, decode_slice, inverted, rescale_stack
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


def reading(dataset: Dataset, folder: Path) -> tuple[Header, CountingReader]:
    """A header of a written data set, and a reader that counts."""
    path = folder / "instance.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return read_header(path.read_bytes(), Source(str(path))), CountingReader()


class CountingReader(SourceReader):
    """Counts the files read."""

    count = 0

    def read(self, source: Source) -> bytes:
        self.count += 1
        return super().read(source)


def test_native_pixels_need_no_decoder(tmp_path, monkeypatch):
    header, reader = reading(series(3)[1], tmp_path)
    monkeypatch.setattr(pixels, "read_dataset", lambda *_, **__: pytest.fail("parsed by pydicom"))
    stored = PixelReader(reader).stored(header)
    assert stored.decoder == "native"
    assert np.array_equal(stored.values, noise(3)[1])
    assert reader.count == 1


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("allocated", "stored"), [(8, 8), (8, 5), (16, 16), (16, 12), (32, 32), (32, 20), (1, 1)])
def test_native_values_are_those_of_pydicom(tmp_path, allocated, stored, signed, implicit):
    dataset = series(3)[1]
    if implicit:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation, dataset.NumberOfFrames, dataset.Rows, dataset.Columns = signed, 3, 5, 7
    size = -(-5 * 7 * 3 * allocated // 8)
    dataset.PixelData = np.random.default_rng(1).bytes(size + size % 2)
    dataset["PixelData"].VR = "OW"
    header, reader = reading(dataset, tmp_path)
    wanted, pixel_reader = dataset.pixel_array, PixelReader(reader)
    for frame in (0, 2, 1):
        got = pixel_reader.stored(replace(header, frame=frame))
        assert got.decoder == "native"
        assert got.values.dtype == wanted.dtype
        assert np.array_equal(got.values, wanted[frame])
    assert reader.count == 1
    with pytest.raises(DicomError, match="F04"):
        pixel_reader.stored(header)
    with pytest.raises(DicomError, match="F04"):
        pixel_reader.stored(replace(header, frame=3))


def test_compressed_frames_are_parsed_once_and_name_their_decoder(tmp_path):
    dataset = series(3)[1]
    dataset.NumberOfFrames, dataset.PixelData = 3, noise(3).astype("<i2").tobytes()
    dataset.compress(RLELossless)
    header, reader = reading(dataset, tmp_path)
    pixel_reader = PixelReader(reader)
    for frame in range(3):
        stored = pixel_reader.stored(replace(header, frame=frame))
        assert stored.decoder == "pylibjpeg"
        assert np.array_equal(stored.values, noise(3)[frame])
    assert reader.count == 1


@pytest.mark.parametrize(("syntax", "signed"), [(JPEG2000Lossless, 0), (JPEGLSLossless, 0), (RLELossless, 1)])
def test_every_decoder_gives_the_same(tmp_path, monkeypatch, syntax, signed):
    dataset = series(3)[1]
    image = np.tile(noise(3)[1], (6, 7))
    dataset.Rows, dataset.Columns, dataset.PixelData = *image.shape, image.tobytes()
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = signed, 12, 11
    dataset.PhotometricInterpretation, dataset.RescaleSlope = "MONOCHROME1", 2
    dataset.compress(syntax)
    header, reader = reading(dataset, tmp_path)
    names = [name for name in DECODERS if name in get_decoder(syntax).available_plugins]
    assert len(names) > 1
    for name in names:
        monkeypatch.setattr(decoders, "DECODERS", (name,))
        stored = PixelReader(reader).stored(header)
        assert stored.decoder == name
        assert np.array_equal(stored.values, image)


def test_simpleitk_comes_last_and_neither_rescales_nor_inverts(tmp_path, monkeypatch):
    dataset = series(3)[1]
    dataset.PhotometricInterpretation, dataset.RescaleSlope = "MONOCHROME1", 2
    pixels = np.abs(noise(3)[1])
    dataset.PixelRepresentation, dataset.PixelData = 0, pixels.astype("<u2").tobytes()
    dataset.compress(JPEGLSLossless)
    header, reader = reading(dataset, tmp_path)
    monkeypatch.setattr(decoders, "DECODERS", ())
    stored = PixelReader(reader).stored(header)
    assert stored.decoder == "SimpleITK"
    assert stored.values.dtype == np.uint16
    assert np.array_equal(stored.values, pixels)


def test_all_decoders_that_failed_are_named(tmp_path):
    dataset = series(3)[1]
    dataset.PixelRepresentation = 0
    dataset.compress(JPEGLSLossless)
    dataset.PixelData = encapsulate([b"\0" * 80])
    header, reader = reading(dataset, tmp_path)
    with pytest.raises(DicomError, match=r"F04: .*tried: .*pyjpegls.*SimpleITK"):
        PixelReader(reader).stored(header)


def test_of_damaged_rle_the_first_decoder_s_word_counts(tmp_path):
    dataset = series(3)[1]
    dataset.compress(RLELossless)
    dataset.PixelData = encapsulate([b"\0" * 80])
    header, reader = reading(dataset, tmp_path)
    with pytest.raises(DicomError, match=r"F04: .*tried: pylibjpeg\)"):
        PixelReader(reader).stored(header)


class PanicError(BaseException):
    """What a decoder written in Rust raises: no Exception."""


def test_a_panicking_decoder_costs_the_image_alone(tmp_path, monkeypatch):
    def panic(*_):
        raise PanicError

    dataset = series(3)[1]
    dataset.compress(RLELossless)
    header, reader = reading(dataset, tmp_path)
    monkeypatch.setattr(decoders, "_decode_with", panic)
    with pytest.raises(DicomError, match="F04: decoding ended with PanicError"):
        PixelReader(reader).stored(header)


def test_pixels_that_end_their_process_are_refused(tmp_path, monkeypatch):
    dataset = series(3)[1]
    dataset.PixelRepresentation = 0
    dataset.compress(JPEGLSLossless)
    header, reader = reading(dataset, tmp_path)
    monkeypatch.setattr(decoders, "DECODERS", ())
    monkeypatch.setitem(decoders._APART, "SimpleITK", "import os; os.abort()")
    with pytest.raises(DicomError, match=r"F05: .*tried: SimpleITK"):
        PixelReader(reader).stored(header)


def test_fewer_frames_than_stated_are_refused(tmp_path):
    dataset = series(3)[1]
    dataset.NumberOfFrames, dataset.PixelData = 3, noise(3).astype("<i2").tobytes()
    dataset.compress(RLELossless)
    dataset.NumberOfFrames = 4
    header, reader = reading(dataset, tmp_path)
    with pytest.raises(DicomError, match="F04"):
        PixelReader(reader).stored(replace(header, frame=3))


@pytest.mark.parametrize("length", [0, 238, 2 * 240])
def test_short_and_excess_native_pixels_are_refused(tmp_path, length):
    dataset = series(3)[0]
    dataset.PixelData = (dataset.PixelData * 2)[:length]
    header, reader = reading(dataset, tmp_path)
    with pytest.raises(DicomError, match="F04"):
        PixelReader(reader).stored(header)
    with pytest.raises(DicomError, match="F04"):
        decode_slice(dataset)


def test_a_cut_file_is_refused(tmp_path):
    for syntax in (None, RLELossless):
        dataset = series(3)[0]
        if syntax:
            dataset.compress(syntax)
        header, reader = reading(dataset, tmp_path)
        path = Path(header.source.path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DicomError, match="F04"):
            PixelReader(reader).stored(header)


def test_another_file_at_the_same_place_is_refused(tmp_path):
    for syntax in (None, RLELossless):
        first, second = series(3)[:2]
        if syntax:
            first.compress(syntax)
            second.compress(syntax)
        header, reader = reading(first, tmp_path)
        reading(second, tmp_path)
        with pytest.raises(DicomError, match="F03: a file that changed"):
            PixelReader(reader).stored(header)


def test_giant_size_and_unknown_syntax_say_nothing_of_the_header(tmp_path):
    dataset = series(3)[0]
    dataset.Rows = dataset.Columns = 65535
    header, reader = reading(dataset, tmp_path)
    with pytest.raises(DicomError, match="F06"):
        PixelReader(reader).stored(header)
    dataset = series(3)[0]
    dataset.file_meta.TransferSyntaxUID = "1.2.3.4.5.19700102"
    with pytest.raises(DicomError, match="F05: an unknown transfer syntax") as caught:
        check_pixel_length(dataset)
    assert "19700102" not in str(caught.value)


def test_colour_is_rgb(tmp_path):
    dataset = series(3)[1]
    colours = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = colours.tobytes()
    header, reader = reading(dataset, tmp_path)
    assert np.array_equal(PixelReader(reader).stored(header).values, colours)
    with pytest.raises(DicomError, match="F04"):
        decode_slice(dataset)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, ">i2"])
def test_whole_values_of_every_type_are_exact(kind):
    low = -100 if np.dtype(kind).kind == "i" else 0
    slices = [np.arange(low, low + 30).reshape(5, 6).astype(kind) for _ in range(2)]
    volume = rescale_stack(iter(slices), [1.0, 1.0], [-1024.0, 32638.0])
    assert volume.dtype == np.int16
    assert volume.flags.f_contiguous
    for k, offset in enumerate((-1024, 32638)):
        assert np.array_equal(volume[:, :, k].T, slices[k].astype(int) + offset)


def test_the_first_slices_stay_exact_when_a_later_one_needs_floats():
    slices = [np.full((2, 3), value, np.int32) for value in (-32768, 40000, 7)]
    volume = rescale_stack(slices, [1, 1, 1], [0, 0, 0.25])
    assert volume.dtype == np.float32
    assert volume[0, 0].tolist() == [-32768, 40000, 7.25]


def test_slices_of_several_sizes_are_refused():
    with pytest.raises(DicomError, match="F04"):
        rescale_stack([np.zeros((2, 3), np.int16), np.zeros((3, 2), np.int16)], [1, 1], [0, 0])
