"""Series damaged one way at a time: each gets its reason code; good ones are accepted."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pydicom.dataset import Dataset
from synthetic_dicom import noise, save, series, slice_dataset, uid

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.headers import header_from_dataset, read_header
from lvmmed_monai.ingest.checks import SERIES_CHECKS, STACK_CHECKS
from lvmmed_monai.ingest.checks import values as value_checks
from lvmmed_monai.ingest.findings import ERROR, NOTE, WARNING, Finding, codes, counted, refuses, run_checks
from lvmmed_monai.ingest.routes import route
from lvmmed_monai.ingest.series import Series, group_headers
from lvmmed_monai.ingest.stack import Stack
from lvmmed_monai.ingest.volumes import DecodedVolume, decode_volume, pixel_digest

Damage = Callable[[list[Dataset]], list[Dataset]]


def findings_of(datasets: list[Dataset], strict: bool = False) -> list[Finding]:
    """Findings of the one series that the data sets make; digests come from their pixels in memory."""
    headers = [header_from_dataset(dataset, Source(str(index))) for index, dataset in enumerate(datasets)]
    pixels = {str(index): dataset.PixelData for index, dataset in enumerate(datasets)}
    (group,) = group_headers(headers)
    whole = Series(group, lambda header: str(hash(pixels[header.source.path])), strict)
    return run_checks(SERIES_CHECKS, whole) + [f for stack in whole.stacks for f in run_checks(STACK_CHECKS, stack)]


def moved(datasets: list[Dataset], indices: range | list[int], axis: int, by: float) -> list[Dataset]:
    for index in indices:
        position = [float(value) for value in datasets[index].ImagePositionPatient]
        position[axis] += by
        datasets[index].ImagePositionPatient = position
    return datasets


def with_value(datasets: list[Dataset], indices: range | list[int], name: str, value: object) -> list[Dataset]:
    for index in indices:
        setattr(datasets[index], name, value)
    return datasets


def without(datasets: list[Dataset], name: str) -> list[Dataset]:
    for dataset in datasets:
        delattr(dataset, name)
    return datasets


def copied(dataset: Dataset, *, new_uid: bool = False, new_pixels: bool = False) -> Dataset:
    other = copy.deepcopy(dataset)
    if new_uid:
        other.SOPInstanceUID = uid("copy")
    if new_pixels:
        other.PixelData = noise(1, 99)[0].astype("<i2").tobytes()
    return other


def turned(datasets: list[Dataset], indices: range, degrees: float) -> list[Dataset]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return with_value(datasets, indices, "ImageOrientationPatient", [cosine, sine, 0, -sine, cosine, 0])


def tilted(datasets: list[Dataset], degrees: float) -> list[Dataset]:
    for index, _ in enumerate(datasets):
        moved(datasets, [index], 1, 2.0 * index * math.tan(math.radians(degrees)))
    return datasets


def jittered(datasets: list[Dataset], by: float) -> list[Dataset]:
    for index in range(len(datasets)):
        moved(datasets, [index], 2, by if index % 2 else -by)
    return datasets


def second_volume(datasets: list[Dataset]) -> list[Dataset]:
    return datasets + [
        slice_dataset(pixels, dataset.ImagePositionPatient, 100 + index)
        for index, (pixels, dataset) in enumerate(zip(noise(len(datasets), 5), datasets, strict=True))
    ]


GOOD: dict[str, Damage] = {
    "clean": lambda s: s,
    "backwards": lambda s: s[::-1],
    "jitter of 0.02 mm": lambda s: jittered(s, 0.02),
    "thickness lies": lambda s: with_value(s, range(12), "SliceThickness", 5.0),
    "distance lies": lambda s: with_value(s, range(12), "SpacingBetweenSlices", 5.0),
    "slopes differ": lambda s: with_value(s, [3, 4], "RescaleSlope", 2),
    "numbers scrambled": lambda s: [
        with_value([d], [0], "InstanceNumber", n)[0] for d, n in zip(s, [3, 1, 2, *range(4, 13)], strict=True)
    ],
    "exact copy": lambda s: [*s, copied(s[4])],
    "copy with a new UID": lambda s: [*s, copied(s[4], new_uid=True)],
    "no frame of reference": lambda s: without(s, "FrameOfReferenceUID"),
    "a localizer among them": lambda s: [
        *s,
        with_value([copied(s[0], new_uid=True)], [0], "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])[0],
    ],
    "tilt of 0.2 degrees": lambda s: tilted(s, 0.2),
    "tilted": lambda s: tilted(s, 18.5),
    "tilted the other way": lambda s: tilted(s, -16.5),
    "two time points": second_volume,
    "no rescaling": lambda s: without(without(s, "RescaleSlope"), "RescaleIntercept"),
    "radiographs": lambda s: with_value(s, range(12), "SOPClassUID", "1.2.840.10008.5.1.4.1.1.1.1"),
    "photographs": lambda s: with_value(s, range(12), "SOPClassUID", "1.2.840.10008.5.1.4.1.1.77.1.4"),
}

WARNED = {
    "jitter of 0.02 mm": "W04",
    "thickness lies": "W01",
    "distance lies": "W01",
    "numbers scrambled": "W02",
    "exact copy": "D01",
    "copy with a new UID": "D03",
    "no frame of reference": "G08",
    "a localizer among them": "R01",
    "tilted": "G03",
    "tilted the other way": "G03",
    "two time points": "T01",
    "no rescaling": "W03",
}

BAD: dict[str, tuple[str, Damage]] = {
    "one slice missing": ("G01", lambda s: s[:5] + s[6:]),
    "scattered slices missing": ("G01", lambda s: s[:3] + s[4:6] + s[8:]),
    "every second missing above": ("G01", lambda s: s[:6] + s[6::2]),
    "last slice far off": ("G02", lambda s: moved(s, [11], 2, 1.1)),
    "spacing changes midway": ("G02", lambda s: [moved(s, [i], 2, 0.3 * max(0, i - 5))[i] for i in range(12)]),
    "slices shifted in the plane": ("G02", lambda s: moved(s, range(6, 12), 0, 5.0)),
    "tilted further than any gantry": ("G03", lambda s: tilted(s, 50)),
    "no position": ("G04", lambda s: without(s, "ImagePositionPatient")),
    "one without orientation": ("G04", lambda s: [*s[1:], *without(s[:1], "ImageOrientationPatient")]),
    "impossible orientation": ("G04", lambda s: with_value(s, [2], "ImageOrientationPatient", [1, 0, 0, 1, 0, 0])),
    "no pixel spacing": ("G05", lambda s: without(s, "PixelSpacing")),
    "zero pixel spacing": ("G05", lambda s: with_value(s, [1], "PixelSpacing", [0, 0.5])),
    "orientation changes midway": ("G06", lambda s: turned(s, range(6, 12), 5)),
    "pixel spacing changes midway": ("G06", lambda s: with_value(s, range(6, 12), "PixelSpacing", [0.9, 0.5])),
    "two slices": ("G07", lambda s: s[:2]),
    "image size changes": ("S01", lambda s: with_value(s, [3], "Rows", 6)),
    "two frames of reference": ("S01", lambda s: with_value(s, [3], "FrameOfReferenceUID", uid("other"))),
    "one UID, other pixels": ("D02", lambda s: [*s, copied(s[4], new_pixels=True)]),
    "one position, other pixels": ("D04", lambda s: [*s, copied(s[4], new_uid=True, new_pixels=True)]),
    "all at one position": (
        "D04",
        lambda s: [with_value([d], [0], "ImagePositionPatient", [0, 0, 0])[0] for d in s[:4]],
    ),
    "two echoes at different places": ("S01", lambda s: with_value(s, range(6), "EchoTime", 2.3)),
    "magnitude among phase": ("S01", lambda s: with_value(s, [2], "ImageType", ["ORIGINAL", "PRIMARY", "M"])),
    "an intercept that is no number": ("S01", lambda s: with_value(s, [3], "RescaleIntercept", None)),
    "a slope in some slices only": ("S01", lambda s: [*s[:5], *without(s[5:], "RescaleSlope")]),
    "a slope of 0": ("S01", lambda s: with_value(s, [3], "RescaleSlope", 0)),
    "localizer": ("R01", lambda s: with_value(s, range(12), "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "secondary capture": ("R02", lambda s: with_value(s, range(12), "SOPClassUID", "1.2.840.10008.5.1.4.1.1.7")),
    "dose report": ("R02", lambda s: with_value(s, range(12), "SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.67")),
    "mosaic": ("R04", lambda s: with_value(s, range(12), "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"])),
    "enhanced": ("R05", lambda s: with_value(s, range(12), "SOPClassUID", "1.2.840.10008.5.1.4.1.1.4.1")),
    "dose grid": ("R05", lambda s: with_value(s, range(12), "SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.2")),
    "text in the pixels": ("P01", lambda s: with_value(s, [0], "BurnedInAnnotation", "YES")),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_series_are_accepted(name):
    findings = findings_of(GOOD[name](series(12)))
    assert not refuses(findings), findings
    found = codes(findings, WARNING) + codes(findings, NOTE)
    assert found == ([WARNED[name]] if name in WARNED else [])


@pytest.mark.parametrize("name", BAD)
def test_damaged_series_are_refused_with_their_code(name):
    code, damage = BAD[name]
    findings = findings_of(damage(series(12)))
    assert codes(findings) == [code], findings


def test_strict_has_smaller_tolerances_and_repairs_nothing():
    assert codes(findings_of(series(12), strict=True)) == []
    assert codes(findings_of(tilted(series(12), 18.5), strict=True)) == ["G03"]
    assert codes(findings_of(jittered(series(12), 0.02))) == []
    assert codes(findings_of(jittered(series(12), 0.02), strict=True)) == ["G02"]


def test_cut_end_is_warned_of_only_where_numbers_show_it():
    assert codes(findings_of(series(12)[:9]), WARNING) == []
    holed = series(12)
    holed = with_value(holed, [11], "InstanceNumber", 40)
    assert codes(findings_of(holed), WARNING) == ["S03"]


def test_every_finding_has_words_and_no_identifier():
    for name, (_, damage) in BAD.items():
        for finding in findings_of(damage(series(12))):
            text = " ".join(finding.as_dict().values())
            assert all(finding.as_dict().values()), name
            assert not any(secret in text for secret in ("Planted", "PATIENT", uid("x")[:8], "1970")), text


def test_slices_are_in_spatial_order_whatever_their_files_are_called():
    datasets = series(12)
    random.Random(2).shuffle(datasets)
    headers = [header_from_dataset(dataset, Source(str(index))) for index, dataset in enumerate(datasets)]
    ordered = Stack(tuple(headers)).slices
    assert [header.position[2] for header in ordered] == [7.0 + 2 * k for k in range(12)]


def test_series_without_uid_are_told_apart_by_folder():
    headers = [
        header_from_dataset(dataset, Source(f"/{folder}/{index}"))
        for folder in "ab"
        for index, dataset in enumerate(with_value(series(4), range(4), "SeriesInstanceUID", ""))
    ]
    assert [len(group) for group in group_headers(headers)] == [4, 4]


def test_segmentations_have_their_own_route():
    dataset = with_value(series(1), [0], "SOPClassUID", "1.2.840.10008.5.1.4.1.1.66.4")[0]
    assert route(header_from_dataset(dataset, Source("x"))) == "segmentation"


def decoded(values: np.ndarray, modality: str = "CT", **kinds: object) -> DecodedVolume:
    settings = {"slopes": (1.0, 1.0, 1.0), "inverted": False, **kinds}
    return DecodedVolume(modality, values, None, **settings)  # type: ignore[arg-type]


def test_value_checks():
    usual = np.random.default_rng(0).normal(0, 300, (20, 20, 3)).astype(np.float32)
    assert run_checks(value_checks.CHECKS, decoded(usual)) == []
    assert codes(run_checks(value_checks.CHECKS, decoded(usual, slopes=(1.0, 2.0, 1.0))), NOTE) == ["W03"]
    assert codes(run_checks(value_checks.CHECKS, decoded(np.clip(usual, -100, None))), WARNING) == ["W05"]
    assert run_checks(value_checks.CHECKS, decoded(np.clip(usual, -100, None), "MR")) == []
    assert "largest value" in run_checks(value_checks.CHECKS, decoded(np.clip(usual, None, 200)))[0].measured
    flat = usual.copy()
    flat[:, :, 1] = -5
    assert "1 slice of one value" in run_checks(value_checks.CHECKS, decoded(flat))[0].measured
    assert codes(run_checks(value_checks.CHECKS, decoded(usual, inverted=True)), NOTE) == ["W05"]


def test_monochrome1_is_turned_for_mr_and_not_for_ct(tmp_path):
    for modality, turned_round in (("MR", True), ("CT", False)):
        datasets = series(3, modality=modality)
        for dataset in datasets:
            dataset.PhotometricInterpretation, dataset.PixelRepresentation, dataset.RescaleIntercept = (
                "MONOCHROME1",
                0,
                0,
            )
        paths = save(datasets, tmp_path / modality)
        headers = [header_from_dataset(d, Source(str(p))) for d, p in zip(datasets, paths, strict=True)]
        with SourceReader() as reader:
            volume = decode_volume(Stack(tuple(headers)), reader)
        stored = datasets[0].pixel_array.T
        assert volume.inverted is turned_round
        assert np.array_equal(volume.values[:, :, 0], 65535 - stored if turned_round else stored)


def test_digest_of_copies_in_two_encodings(tmp_path):
    first, second = series(1)[0], copy.deepcopy(series(1)[0])
    second.compress("1.2.840.10008.1.2.5")
    broken = copy.deepcopy(first)
    broken.PixelData = broken.PixelData[:10]
    paths = save([first, second, broken], tmp_path)
    with SourceReader() as reader:
        digest = pixel_digest(reader)
        headers = [read_header(path.read_bytes(), Source(str(path))) for path in paths]
        digests = [digest(header) for header in [*headers, replace(headers[0], source=Source(str(tmp_path / "gone")))]]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_counted_words():
    assert (counted(1, "slice"), counted(2, "slice")) == ("1 slice", "2 slices")
    assert refuses([Finding("X", ERROR, "", "", "")])
