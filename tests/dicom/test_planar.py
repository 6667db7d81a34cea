"""Planar images: grey values, colours, clips and limits, against pydicom and values known beforehand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, convert_color_space, get_decoder
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless
from synthetic_dicom import uid

from lvmmed_monai.dicom import planar
from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.headers import read_header
from lvmmed_monai.dicom.planar import CUT, TURNED, UNSCALED, PlanarImage, decode_planar
from lvmmed_monai.dicom.problems import DicomError

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 6, 5


def picture(pixels: np.ndarray, photometric: str = "MONOCHROME2", *, frames: int = 1, **elements: Any) -> Dataset:
    """A data set of ``pixels`` ([n,] rows, columns[, 3]); further elements by keyword win."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", uid("planar")
    dataset.Modality, dataset.PhotometricInterpretation = "DX", photometric
    colour = pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW"
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def as_bytes(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def decoded(dataset: Dataset) -> PlanarImage:
    data = as_bytes(dataset)
    return decode_planar(data, read_header(data, Source("planar")))


def code_of(dataset: Dataset) -> str:
    with pytest.raises(DicomError) as caught:
        decoded(dataset)
    return caught.value.code


def greys(dtype: type = np.uint16, top: int = 4095, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> np.ndarray:
    return RNG.integers(0, top + 1, shape).astype(dtype)


def colours(shape: tuple[int, ...] = (ROWS, COLUMNS)) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)


class TestGrey:
    @pytest.mark.parametrize(
        ("stored_as", "bits", "expected"),
        [(np.uint8, 8, np.uint8), (np.uint16, 8, np.uint8), (np.uint16, 12, np.uint16), (np.uint16, 16, np.uint16)],
    )
    def test_values_are_exact_and_as_wide_as_declared(self, stored_as, bits, expected):
        pixels = greys(stored_as, (1 << bits) - 1)
        pixels[0, :2] = 0, (1 << bits) - 1
        image = decoded(picture(pixels, BitsStored=bits, HighBit=bits - 1))
        assert image.frames.dtype == expected
        assert np.array_equal(image.frames, pixels[None])
        assert (image.decoder, image.notes, image.spacing_mm, image.colour) == ("native", (), None, False)

    def test_monochrome1_is_turned_in_its_stored_range(self):
        pixels = greys()
        image = decoded(picture(pixels, "MONOCHROME1", BitsStored=12, HighBit=11))
        assert np.array_equal(image.frames[0], 4095 - pixels)
        assert image.notes == (TURNED,)

    def test_whole_rescaling_is_applied(self):
        pixels = greys(np.uint16, 1000)
        image = decoded(picture(pixels, RescaleSlope=2, RescaleIntercept=7))
        assert np.array_equal(image.frames[0], pixels * 2 + 7)

    def test_falling_rescaling_is_applied(self):
        pixels = greys()
        image = decoded(picture(pixels, BitsStored=12, HighBit=11, RescaleSlope=-1, RescaleIntercept=4095))
        assert np.array_equal(image.frames[0], 4095 - pixels)

    def test_turning_and_rescaling_go_together(self):
        pixels = greys(np.uint16, 255)
        elements = {"BitsStored": 8, "HighBit": 7, "RescaleSlope": 3, "RescaleIntercept": 10}
        image = decoded(picture(pixels, "MONOCHROME1", **elements))
        assert np.array_equal(image.frames[0], (255 - pixels) * 3 + 10)

    @pytest.mark.parametrize(("slope", "intercept"), [(0.684, 200), (1, 0.5), (1, -4096), (20, 0), (1e9, 0)])
    def test_rescaling_that_a_png_cannot_hold_is_left_out(self, slope, intercept):
        pixels = greys()
        pixels[0, 0] = 4095
        image = decoded(picture(pixels, RescaleSlope=slope, RescaleIntercept=intercept))
        assert np.array_equal(image.frames[0], pixels)
        assert image.notes == (UNSCALED,)

    def test_falling_rescaling_that_is_left_out_still_turns(self):
        pixels = greys(np.uint16, 4095)
        image = decoded(picture(pixels, BitsStored=12, HighBit=11, RescaleSlope=-0.5, RescaleIntercept=0.25))
        assert np.array_equal(image.frames[0], 4095 - pixels)

    def test_rescaling_by_zero_is_refused(self):
        assert code_of(picture(greys(), RescaleSlope=0, RescaleIntercept=5)) == "R07"

    def test_signed_values(self):
        pixels = greys(np.int16, 2000)
        assert np.array_equal(decoded(picture(pixels)).frames[0], pixels)
        pixels[0, 0] = -1
        image = decoded(picture(pixels, BitsStored=12, HighBit=11))
        assert np.array_equal(image.frames[0], pixels + 2048)
        assert image.notes == (UNSCALED,)

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_modality_table(self, photometric):
        pixels = greys(np.uint16, 40)
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [30, 4, 16], "US"
        table.LUTData = RNG.permutation(65536)[:30].astype("<u2").tobytes()
        dataset = picture(pixels, photometric, ModalityLUTSequence=DicomSequence([table]))
        expected = apply_modality_lut(pixels, pydicom.dcmread(io.BytesIO(as_bytes(dataset))))
        image = decoded(dataset)
        assert np.array_equal(image.frames[0], 65535 - expected if photometric == "MONOCHROME1" else expected)

    def test_a_modality_table_of_fewer_bits_is_turned_in_its_own_range(self):
        pixels = greys(np.uint16, 4)
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [3, 1, 10], "US", b"\xe8\x03\x14\x00\x03\x00"
        image = decoded(picture(pixels, "MONOCHROME1", ModalityLUTSequence=DicomSequence([table])))
        assert np.array_equal(image.frames[0], np.array([23, 23, 1003, 1020, 1020])[pixels])

    def test_no_window_is_applied(self):
        pixels = greys()
        assert np.array_equal(decoded(picture(pixels, WindowCenter=50, WindowWidth=10)).frames[0], pixels)

    @pytest.mark.parametrize("compressed", [False, True])
    def test_overlays_in_unused_bits_are_cleared(self, compressed):
        pixels = greys(np.uint16, 1023)
        dataset = picture(pixels | 0xC000, BitsStored=10, HighBit=9)
        if compressed:
            dataset.compress(RLELossless)
        assert np.array_equal(decoded(dataset).frames[0], pixels)

    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("dtype", [np.uint16, np.int16])
    def test_values_in_the_upper_bits(self, compressed, dtype):
        pixels = greys(dtype, 2047)
        dataset = picture((pixels << 3) | dtype(5), BitsStored=12, HighBit=14)
        if compressed:
            dataset.compress(RLELossless)
        assert np.array_equal(decoded(dataset).frames[0], pixels)

    def test_bits_that_do_not_fit_are_refused(self):
        assert code_of(picture(greys(), BitsStored=12, HighBit=16)) == "F03"
        assert code_of(picture(greys(), BitsStored=12, HighBit=10)) == "F03"

    def test_packed_bits_of_a_clip(self):
        bits = RNG.integers(0, 2, (3, 3, 5)).astype(np.uint8)
        dataset = picture(bits, frames=3, BitsAllocated=1, BitsStored=1, HighBit=0)
        dataset.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
        image = decoded(dataset)
        assert image.frames.dtype == np.uint8
        assert np.array_equal(image.frames, bits)


class TestColour:
    def test_rgb_by_plane(self):
        pixels = colours()
        dataset = picture(pixels, "RGB", PlanarConfiguration=1)
        dataset.PixelData = pixels.transpose(2, 0, 1).tobytes()
        image = decoded(dataset)
        assert np.array_equal(image.frames, pixels[None])
        assert image.colour

    def test_frames_by_plane(self):
        pixels = colours((4, ROWS, COLUMNS))
        dataset = picture(pixels, "RGB", frames=4, PlanarConfiguration=1)
        dataset.PixelData = pixels.transpose(0, 3, 1, 2).tobytes()
        assert np.array_equal(decoded(dataset).frames, pixels)

    def test_sixteen_bits_are_cut_and_noted(self):
        pixels = colours().astype(np.uint16) * 256 + 77
        image = decoded(picture(pixels, "RGB"))
        assert np.array_equal(image.frames[0], pixels >> 8)
        assert image.notes == (CUT,)

    @pytest.mark.parametrize("compressed", [False, True])
    def test_ybr_is_converted_once(self, compressed):
        pixels = colours()
        dataset = picture(pixels, "YBR_FULL")
        if compressed:
            dataset.compress(RLELossless)
        image = decoded(dataset)
        assert np.array_equal(image.frames[0], convert_color_space(pixels, "YBR_FULL", "RGB"))

    def test_ybr_with_shared_colours(self):
        luma, chroma = greys(np.uint8, 255, (4, 3, 2)), greys(np.uint8, 255, (4, 3, 2))
        dataset = picture(np.zeros((4, 6, 3), np.uint8), "YBR_FULL_422")
        dataset.PixelData = np.concatenate([luma, chroma], axis=-1).tobytes()
        full = np.empty((4, 6, 3), np.uint8)
        full[..., 0], full[..., 1:] = luma.reshape(4, 6), np.repeat(chroma, 2, axis=1)
        assert np.array_equal(decoded(dataset).frames[0], convert_color_space(full, "YBR_FULL", "RGB"))

    def test_jpeg_2000_with_its_own_transform_gives_the_colours_that_went_in(self):
        pixels = colours((32, 32))
        dataset = picture(pixels, "RGB")
        dataset.compress(JPEG2000Lossless, use_mct=False)
        assert np.array_equal(decoded(dataset).frames[0], pixels)
        dataset = picture(pixels, "YBR_RCT")
        dataset.compress(JPEG2000Lossless)
        image = decoded(dataset)
        assert np.array_equal(image.frames[0], pixels)
        assert image.decoder == "pylibjpeg"

    def test_jpeg_baseline(self):
        ramp = np.linspace(0, 255, 64).astype(np.uint8)
        pixels = np.stack(
            [np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 90, np.uint8)], -1
        )
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="JPEG", quality=95, subsampling=1)
        dataset = picture(pixels, "YBR_FULL_422")
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        image = decoded(dataset)
        assert int(np.abs(image.frames[0].astype(int) - np.asarray(Image.open(stream)).astype(int)).max()) <= 3
        assert int(np.abs(image.frames[0].astype(int) - pixels).max()) <= 12

    @pytest.mark.parametrize("photometric", ["YBR_PARTIAL_422", "YBR_ICT", "HSV"])
    def test_unknown_colours_are_refused(self, photometric):
        assert code_of(picture(colours(), photometric)) == "F05"

    def test_grey_of_unknown_meaning_is_refused(self):
        assert code_of(picture(greys(), "RGB")) == "F05"


class TestClips:
    def test_frames_keep_their_order_in_every_coding(self):
        pixels = greys(np.uint16, 4095, (7, 40, 36))
        plain = picture(pixels, frames=7, BitsStored=12, HighBit=11)
        assert np.array_equal(decoded(plain).frames, pixels)
        for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
            dataset = picture(pixels, frames=7, BitsStored=12, HighBit=11)
            dataset.compress(syntax)
            assert np.array_equal(decoded(dataset).frames, pixels)

    def test_frames_beyond_the_number_declared_are_refused(self):
        assert code_of(picture(greys(np.uint16, 4095, (4, ROWS, COLUMNS)), frames=3)) == "F04"

    def test_fewer_frames_than_declared_are_refused(self):
        assert code_of(picture(greys(np.uint16, 4095, (3, ROWS, COLUMNS)), frames=4)) == "F04"
        dataset = picture(greys(np.uint16, 4095, (3, ROWS, COLUMNS)), frames=3)
        dataset.compress(RLELossless)
        dataset.NumberOfFrames = 4
        assert code_of(dataset) == "F04"


class TestLimits:
    @pytest.mark.parametrize("count", [-1, planar.MAX_FRAMES + 1, 2**31 - 1])
    def test_number_of_frames(self, count):
        dataset = picture(greys(), frames=2)
        dataset = _encapsulated(dataset)
        dataset.NumberOfFrames = count
        assert code_of(dataset) == "F06"

    def test_size_when_decoded(self):
        dataset = _encapsulated(picture(greys(), frames=2))
        dataset.Rows = dataset.Columns = 10_000
        dataset.NumberOfFrames = 6
        assert code_of(dataset) == "F06"

    def test_short_pixels(self):
        dataset = picture(greys())
        dataset.PixelData = dataset.PixelData[:-2]
        assert code_of(dataset) == "F04"
        del dataset.PixelData
        assert code_of(dataset) == "F04"

    def test_broken_stream(self):
        dataset = picture(greys(np.uint16, 4095, (40, 40)))
        dataset.compress(JPEG2000Lossless)
        dataset.PixelData = dataset.PixelData[:60]
        assert code_of(dataset) == "F04"

    def test_no_decoder(self):
        dataset = _encapsulated(picture(greys()))
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
        assert code_of(dataset) == "F05"

    def test_no_decoder_of_a_known_name(self, monkeypatch):
        monkeypatch.setattr(planar, "DECODERS", ("other",))
        assert code_of(_encapsulated(picture(greys()))) == "F05"

    def test_lack_of_memory(self, monkeypatch):
        def greedy(*_: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(planar, "_decode", greedy)
        assert code_of(picture(greys())) == "F06"

    def test_no_header_value_in_messages_or_warnings(self, recwarn, caplog):
        data = as_bytes(picture(greys(), PatientName="Planted^Name", NumberOfFrames=99_999))
        with pytest.raises(DicomError) as caught:
            decode_planar(data.replace(b"99999", b"PLANT"), read_header(data, Source("planar")))
        assert "plant" not in f"{caught.value} {[str(one.message) for one in recwarn]} {caplog.text}".lower()


def _encapsulated(dataset: Dataset) -> Dataset:
    """As RLE, with a stream that nobody is to reach."""
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([b"\0" * 64])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def test_the_next_decoder_is_asked_and_named(monkeypatch):
    pixels = greys(np.uint16, 4095, (40, 40))
    dataset = picture(pixels)
    dataset.compress(JPEG2000Lossless)
    assert decoded(dataset).decoder == "pylibjpeg"

    def failing(*_: Any) -> bytes:
        raise RuntimeError("out of order")

    monkeypatch.setitem(get_decoder(JPEG2000Lossless)._available, "pylibjpeg", failing)
    image = decoded(dataset)
    assert image.decoder in ("gdcm", "pillow")
    assert np.array_equal(image.frames[0], pixels)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PixelSpacing": [0.3, 0.2]}, (0.3, 0.2)),
        ({"ImagerPixelSpacing": [0.15, 0.1]}, (0.15, 0.1)),
        ({}, None),
    ],
)
def test_spacing_between_rows_stands_first(elements, expected):
    assert decoded(picture(greys(), **elements)).spacing_mm == expected


def test_spacing_of_an_ultrasound_region():
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    image = decoded(picture(colours(), "RGB", SequenceOfUltrasoundRegions=DicomSequence([region])))
    assert image.spacing_mm == pytest.approx((0.3, 0.2))
