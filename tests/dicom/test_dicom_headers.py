"""Headers and the files they come from."""

from __future__ import annotations

import io
import logging
import zlib

import pytest
from pydicom.dataset import Dataset
from synthetic_dicom import CT, series

from lvmmed_monai.dicom import headers
from lvmmed_monai.dicom.archive import Source
from lvmmed_monai.dicom.headers import read_dataset, read_header
from lvmmed_monai.dicom.problems import DicomError

SOURCE = Source("/somewhere/file")


def encoded(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def code_of(data: bytes) -> str:
    with pytest.raises(DicomError) as caught:
        read_header(data, SOURCE)
    return caught.value.code


def test_values_of_a_slice():
    header = read_header(encoded(series(3)[1]), SOURCE)
    assert (header.sop_class, header.modality, header.rows, header.columns) == (CT, "CT", 12, 10)
    assert header.position == (-3.0, 4.0, 9.0)
    assert header.orientation == (1, 0, 0, 0, 1, 0)
    assert header.pixel_spacing == (0.8, 0.5)
    assert (header.slope, header.intercept, header.instance_number) == (1.0, -1024.0, 2)
    assert header.names == {"patient", "planted", "name"}


def test_malformed_and_absent_values_are_absent():
    dataset = series(3)[0]
    del dataset.PixelSpacing
    dataset.ImagePositionPatient = [1, 2]
    dataset.RescaleSlope = None
    dataset.ImageType = "LOCALIZER"
    header = read_header(encoded(dataset), SOURCE)
    assert (header.pixel_spacing, header.position, header.slope) == (None, None, None)
    assert header.image_type == ("LOCALIZER",)


def test_empty_foreign_and_cut_files():
    whole = encoded(series(3)[0])
    assert code_of(b"") == "F01"
    assert code_of(b"just a text file, long enough to hold a preamble" * 10) == "F02"
    assert code_of(whole[:140]) == "F03"
    assert read_header(whole[:400], SOURCE).rows == 0


def test_file_without_preamble_needs_a_sop_class():
    dataset = series(3)[0]
    whole = encoded(dataset)
    start = whole.index(b"\x08\x00\x05\x00") if b"\x08\x00\x05\x00" in whole else whole.index(b"\x08\x00\x08\x00")
    assert read_header(whole[start:], SOURCE).sop_class == CT
    assert code_of(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100") == "F02"


def test_media_storage_uids_stand_in_for_emptied_ones():
    dataset = series(3)[0]
    wanted = dataset.SOPInstanceUID
    data = encoded(dataset).replace(b"\x08\x00\x18\x00UI", b"\x08\x00\x17\x00UI")
    assert read_header(data, SOURCE).sop_uid == wanted


def test_deflated_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(headers, "DEFLATED_LIMIT_BYTES", 1_000_000)
    meta = b"\x02\x00\x10\x00UI\x16\x00" + b"1.2.840.10008.1.2.1.99"
    body = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = body.compress(b"\0" * 5_000_000) + body.flush()
    data = b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little") + meta + packed
    assert code_of(data) == "F06"


def test_deep_nesting_is_refused():
    depth = b"\x08\x00\x15\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000
    whole = encoded(series(3)[0])
    start = whole.index(b"\x08\x00\x16\x00UI")
    assert code_of(whole[:start] + depth) in ("F03", "F06")


def test_nothing_of_the_header_reaches_log_or_error(caplog, capsys):
    caplog.set_level(logging.DEBUG)
    dataset = series(3)[0]
    data = encoded(dataset).replace(b"19700102", b"SECRET-1").replace(b"Planted^", b"Pl\xff\xfe^\\\\")
    said = []
    for cut in range(150, len(data), 97):
        try:
            read_dataset(data[:cut], pixels=True)
        except DicomError as error:
            said.append(str(error))
    assert said
    assert not [text for text in said if "SECRET" in text]
    assert "SECRET" not in caplog.text
    assert "SECRET" not in "".join(capsys.readouterr())
