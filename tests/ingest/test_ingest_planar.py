"""The 2D way: files, entries, copies, checks; and that the rest of the package reads what was written."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from synthetic_dicom import uid

from lvmmed_monai.data.check import check_datalist
from lvmmed_monai.data.datalist import MODALITIES
from lvmmed_monai.data.images import read_content, spatial_shape
from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.headers import Header, read_header
from lvmmed_monai.dicom.planar import CUT, TURNED, PlanarImage
from lvmmed_monai.dicom.privacy import pseudonym
from lvmmed_monai.ingest.checks import planar as checks
from lvmmed_monai.ingest.findings import run_checks
from lvmmed_monai.ingest.pipeline import ingest
from lvmmed_monai.ingest.planar import PlanarPaths, PlanarResult, make_planar, planar_modality, write_planar

RNG = np.random.default_rng(3)
KEY = b"k" * 32


def x_ray(name: str, pixels: np.ndarray, photometric: str = "MONOCHROME2") -> Dataset:
    """A DX of 12 bits, single or a clip."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", uid(name)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series")
    dataset.PatientID, dataset.PatientName, dataset.Modality = "PATIENT-9", "Planted^Name", "DX"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, photometric, 0
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.ImagerPixelSpacing = [0.3, 0.2]
    dataset.BurnedInAnnotation = "NO"
    dataset.PixelData = pixels.astype("<u2").tobytes()
    return dataset


def stored(folder: Path, datasets: list[Dataset]) -> list[Header]:
    """Headers of data sets written into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = []
    for number, dataset in enumerate(datasets):
        path = folder / f"{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        headers.append(read_header(path.read_bytes(), Source(str(path))))
    return headers


def id_of(header: Header) -> str:
    return pseudonym(KEY, "instance", header.sop_uid)


def made(tmp_path: Path, datasets: list[Dataset]):
    headers = stored(tmp_path / "src", datasets)
    with SourceReader() as reader:
        return make_planar(headers, reader, tmp_path / "out", id_of), headers


def ingested(tmp_path: Path, datasets: list[Dataset]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Entries of qc.json and items of the datalist, by a whole ingest under our key."""
    stored(tmp_path / "src", datasets)
    key = tmp_path / "site.key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    out = tmp_path / "out"
    ingest(tmp_path / "src", out, site_key=key, split=(1, 0, 0), workers=0)
    return json.loads((out / "qc.json").read_text())["series"], json.loads((out / "datalist.json").read_text())[
        "training"
    ]


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 4095, shape or (12, 10)).astype(np.uint16)


def codes(findings) -> list[tuple[str, str]]:
    return [(finding.code, finding.severity) for finding in findings]


def chunks(path: Path) -> list[bytes]:
    """Types of a PNG's chunks, in order."""
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append(data[at + 4 : at + 8])
        at += 12 + length
    return found


class TestFiles:
    @pytest.mark.parametrize(
        ("frames", "mode"),
        [
            (RNG.integers(0, 256, (1, 7, 5)).astype(np.uint8), "L"),
            (RNG.integers(0, 65536, (1, 7, 5)).astype(np.uint16), "I;16"),
            (RNG.integers(0, 256, (1, 7, 5, 3)).astype(np.uint8), "RGB"),
        ],
    )
    def test_a_picture_is_kept_to_the_last_bit(self, tmp_path, frames, mode):
        (path,) = write_planar(tmp_path, "0" * 16, PlanarImage(frames, None, "native", ()))
        assert path == tmp_path / "images" / ("0" * 16 + ".png")
        with Image.open(path) as picture:
            assert picture.mode == mode
            assert np.array_equal(np.asarray(picture), frames[0])
        assert set(chunks(path)) == {b"IHDR", b"IDAT", b"IEND"}
        assert set(chunks(tmp_path / "previews" / ("0" * 16 + ".png"))) == {b"IHDR", b"IDAT", b"IEND"}
        assert np.array_equal(read_content(path).array, frames[0])
        assert spatial_shape(path) == (5, 7)

    def test_a_clip_is_a_file_for_each_frame(self, tmp_path):
        frames = RNG.integers(0, 256, (12, 4, 6)).astype(np.uint8)
        paths = write_planar(tmp_path, "a" * 16, PlanarImage(frames, None, "native", ()))
        assert [path.name for path in paths] == [f"{'a' * 16}_{number:03d}.png" for number in range(12)]
        assert all(np.array_equal(np.asarray(Image.open(p)), f) for p, f in zip(paths, frames, strict=True))
        assert PlanarPaths(tmp_path, "a" * 16, 12).complete()
        paths[4].unlink()
        assert not PlanarPaths(tmp_path, "a" * 16, 12).complete()

    def test_names_of_a_long_clip_sort_in_order(self, tmp_path):
        names = [path.name for path in PlanarPaths(tmp_path, "a", 1200).images]
        assert names == sorted(names)
        assert len(set(names)) == 1200


class TestMaking:
    def test_picture_and_clip(self, tmp_path):
        picture, clip = noise(), noise(3, 12, 10)
        results, headers = made(tmp_path, [x_ray("a", picture), x_ray("b", clip, "MONOCHROME1")])
        assert pickle.loads(pickle.dumps(results)) == results
        assert [PlanarResult.from_dict(json.loads(json.dumps(result.as_dict()))) for result in results] == results
        assert [(result.index, result.id) for result in results] == [(0, id_of(headers[0])), (1, id_of(headers[1]))]
        assert [len(result.paths) for result in results] == [1, 3]
        assert results[0].facts == {
            "shape": [10, 12],
            "frames": 1,
            "spacing_mm": [0.2, 0.3],
            "value_range": [float(picture.min()), float(picture.max())],
            "decoders": ["native"],
        }
        turned = [np.asarray(Image.open(tmp_path / "out" / path)) for path in results[1].paths]
        assert np.array_equal(np.stack(turned), 4095 - clip)

    def test_entries_and_items(self, tmp_path):
        picture, clip = noise(), noise(3, 12, 10)
        entries, items = ingested(tmp_path, [x_ray("a", picture), x_ray("b", clip, "MONOCHROME1")])
        first, second = (pseudonym(KEY, "instance", uid(name)) for name in "ab")
        assert entries[0] == {
            "id": first,
            "kind": "image",
            "modality": "DX",
            "accepted": True,
            "labels": None,
            "shape": [10, 12],
            "frames": 1,
            "spacing_mm": [0.2, 0.3],
            "value_range": [float(picture.min()), float(picture.max())],
            "preview": f"previews/{first}.png",
            "decoders": ["native"],
            "findings": [],
        }
        assert entries[1]["frames"] == 3
        assert [(f["code"], f["severity"]) for f in entries[1]["findings"]] == [("W05", "note")]
        ids = {
            "subject": pseudonym(KEY, "patient", "PATIENT-9"),
            "study": pseudonym(KEY, "study", f"PATIENT-9\0{uid('study')}"),
            "series": pseudonym(KEY, "series", f"PATIENT-9\0{uid('study')}\0{uid('series')}"),
        }
        names = [first, *(f"{second}_{number:03d}" for number in range(3))]
        assert items == [{"image": f"images/{name}.png", **ids} for name in names]
        assert json.loads((tmp_path / "out" / "datalist.json").read_text())["modality"] == "XR"
        assert all((tmp_path / "out" / entry["preview"]).is_file() for entry in entries)

    def test_copies_count_once(self, tmp_path):
        pixels = noise()
        packed = x_ray("a", pixels)
        packed.compress(RLELossless, generate_instance_uid=False)
        results, _ = made(tmp_path, [x_ray("a", pixels), x_ray("b", noise()), packed])
        assert [(result.index, result.accepted, codes(result.findings)) for result in results] == [
            (0, True, [("D01", "note")]),
            (1, True, []),
        ]

    def test_other_pixels_under_one_uid_are_refused(self, tmp_path):
        entries, items = ingested(tmp_path, [x_ray("a", noise()), x_ray("a", noise()), x_ray("b", noise())])
        assert [(entry["accepted"], [finding["code"] for finding in entry["findings"]]) for entry in entries] == [
            (False, ["D02"]),
            (True, []),
        ]
        assert (entries[0]["kind"], entries[0]["shape"], entries[0]["preview"]) == ("image", None, None)
        assert [item["image"] for item in items] == [f"images/{entries[1]['id']}.png"]
        assert [path.stem for path in (tmp_path / "out" / "images").iterdir()] == [entries[1]["id"]]

    def test_a_broken_image_costs_itself_only(self, tmp_path):
        short = x_ray("a", noise())
        short.PixelData = short.PixelData[:-2]
        results, _ = made(tmp_path, [short, x_ray("b", noise())])
        assert [(result.accepted, codes(result.findings)) for result in results] == [
            (False, [("F04", "error")]),
            (True, []),
        ]
        assert results[0].facts == {}

    def test_a_broken_copy_gives_way_to_a_whole_one(self, tmp_path):
        pixels = noise()
        short = x_ray("a", pixels)
        short.PixelData = short.PixelData[:-2]
        ((result,), _) = made(tmp_path, [short, x_ray("a", pixels)])
        assert result.accepted
        assert codes(result.findings) == [("F04", "warning")]
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / result.paths[0])), pixels)

    def test_a_file_that_is_gone(self, tmp_path):
        headers = stored(tmp_path / "src", [x_ray("a", noise())])
        Path(headers[0].source.path).unlink()
        with SourceReader() as reader:
            (result,) = make_planar(headers, reader, tmp_path / "out", id_of)
        assert codes(result.findings) == [("F03", "error")]

    def test_headers_of_the_frames_of_one_file_count_once(self, tmp_path):
        headers = stored(tmp_path / "src", [x_ray("a", noise(3, 12, 10))])
        with SourceReader() as reader:
            frames = [replace(headers[0], frame=number) for number in range(3)]
            (result,) = make_planar(frames, reader, tmp_path / "out", id_of)
        assert (result.facts["frames"], result.findings) == (3, ())

    def test_images_without_uid_are_not_copies(self, tmp_path):
        headers = [replace(header, sop_uid="") for header in stored(tmp_path / "src", [x_ray("a", noise())] * 2)]
        with SourceReader() as reader:
            results = make_planar(headers, reader, tmp_path / "out", lambda h: Path(h.source.path).stem * 16)
        assert [result.accepted for result in results] == [True, True]

    def test_no_header_value_is_written(self, tmp_path):
        entries, _ = ingested(tmp_path, [x_ray(name, noise()) for name in "abb"])
        assert [entry["accepted"] for entry in entries] == [True, False]
        kinds = (".png", ".json", ".html")
        files = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.suffix in kinds)
        assert b"D02" in files
        for value in ("PATIENT-9", "Planted", *map(uid, ("a", "b", "series", "study")), str(tmp_path)):
            assert value.encode() not in files


@pytest.mark.parametrize(
    ("modality", "samples", "photometric", "expected"),
    [
        *[(name, 1, "MONOCHROME2", "XR") for name in ("CR", "DX", "MG", "RF", "XA")],
        ("US", 3, "RGB", "US"),
        ("US", 1, "MONOCHROME2", "US"),
        ("XC", 3, "YBR_FULL_422", "COLOR"),
        ("OP", 1, "PALETTE COLOR", "COLOR"),
        ("OP", 1, "MONOCHROME2", "OTHER"),
        ("", 1, "MONOCHROME2", "OTHER"),
    ],
)
def test_modality_of_the_datalist(tmp_path, modality, samples, photometric, expected):
    (header,) = stored(tmp_path, [x_ray("a", noise())])
    found = planar_modality(replace(header, modality=modality, samples=samples, photometric=photometric))
    assert found == expected
    assert found in MODALITIES


class TestChecks:
    def image(self, frames: np.ndarray, *notes: str) -> PlanarImage:
        return PlanarImage(frames, None, "native", notes)

    def test_a_usual_picture(self):
        assert run_checks(checks.CHECKS, self.image(noise(1, 40, 40))) == []

    def test_constant_frames(self):
        frames = np.arange(3 * 8 * 8, dtype=np.uint16).reshape(3, 8, 8)
        frames[1] = 7
        (finding,) = run_checks(checks.CHECKS, self.image(frames))
        assert (finding.code, finding.severity, finding.measured) == ("W05", "warning", "1 frame of 3 of one value")

    def test_one_colour(self):
        frames = np.zeros((1, 4, 4, 3), np.uint8)
        frames[..., 0] = 255
        assert codes(checks.constant(self.image(frames))) == [("W05", "warning")]
        frames[0, 0, 0, 1] = 1
        assert checks.constant(self.image(frames)) == []

    @pytest.mark.parametrize(("pixels", "found"), [(16, 0), (17, 1)])
    def test_more_than_one_per_cent_at_the_largest_value(self, pixels, found):
        frames = noise(1, 40, 40)
        frames.reshape(-1)[:pixels] = 4095
        assert len(checks.saturated(self.image(frames))) == found

    def test_white_is_usual_in_pictures_of_eight_bits(self):
        frames = RNG.integers(0, 255, (1, 40, 40)).astype(np.uint8)
        frames[0, :20] = 255
        assert run_checks(checks.CHECKS, self.image(frames)) == []

    def test_notes(self):
        findings = run_checks(checks.CHECKS, self.image(noise(1, 40, 40), TURNED, CUT))
        assert codes(findings) == [("W05", "note"), ("W05", "note")]
        assert "MONOCHROME1" in findings[0].measured


def test_the_package_reads_what_was_written(tmp_path):
    smooth = (np.add.outer(np.arange(40) * 60, np.arange(30) * 40) + noise(40, 30) // 8).astype(np.uint16)
    clip = np.stack([smooth[::-1], smooth[:, ::-1]])
    _, items = ingested(tmp_path, [x_ray("a", smooth), x_ray("b", clip)])
    report = check_datalist(tmp_path / "out" / "datalist.json")
    assert (report["counts"]["training"], report["errors"], report["warnings"]) == (3, 0, 0)
    read = [read_content(tmp_path / "out" / item["image"]).array for item in items]
    assert np.array_equal(np.stack(read), [smooth, *clip])
