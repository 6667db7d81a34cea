"""No value of a real header in anything that the ingest or the export leaves behind, and the export is still usable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from leak_scan import Secrets, header_secrets, scan_bytes, scan_folder, scan_sqlite, scan_text, unpacked
from synthetic_dicom import save, segmentation, series

import lvmmed_monai
from lvmmed_monai.dicom.archive import SourceReader
from lvmmed_monai.dicom.deidentify import Options
from lvmmed_monai.ingest.export import export_deidentified
from lvmmed_monai.ingest.inventory import take_inventory
from lvmmed_monai.ingest.pipeline import ingest

pytestmark = pytest.mark.real_data

KEY = b"k" * 32
FROM_LISTS = {"CodeMeaning", "CodeValue", "CodingSchemeDesignator", "ConvolutionKernel", "Manufacturer", "RescaleType"}
"""What a fixed list lets through: a real kernel is meant to stay. Labels are results."""


def run(src: Path, out: Path, *options: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["ingest", str(src), "--out", str(out), "--site-key", str(out.parent / "key" / "site.key"), *options]
    done = subprocess.run(
        [sys.executable, "-m", "lvmmed_monai", *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-300:]
    # The folders of a test are called after it.
    return (done.stdout + done.stderr).replace(str(out.parent), "")


def own_words(folder: Path, said: str) -> bytes:
    """All that comes out of a run on other data, and our texts: a word in them is ours ("head"), not a patient's."""
    package = Path(lvmmed_monai.__file__).parent
    texts = [path for path in package.rglob("*") if path.suffix in (".py", ".html", ".css", ".js", ".json")]
    parts = [said.encode(), *(path.read_bytes() for path in texts)]
    for path in folder.rglob("*"):
        parts += [str(path.relative_to(folder)).encode(), *(unpacked(path.read_bytes()) if path.is_file() else ())]
    return b"\n".join(parts)


def label_names(src: Path) -> set[str]:
    """What segments and regions are called: results, not secrets."""
    return {
        str(item.get(keyword, ""))
        for path in src.rglob("*.dcm")
        for dataset in [pydicom.dcmread(path, stop_before_pixels=True, force=True)]
        for group, keyword in (("SegmentSequence", "SegmentLabel"), ("StructureSetROISequence", "ROIName"))
        for item in dataset.get(group, ())
    }


@pytest.fixture
def secrets_of(tmp_path):
    def find(src: Path) -> Secrets:
        control = tmp_path / "control"
        damaged = series(6, patient="OTHER")
        damaged[2].ImagePositionPatient = [0, 0, 500]
        mask = np.ones((6, *damaged[0].pixel_array.shape), dtype=bool)
        save([*series(6), *damaged, segmentation(series(6), {1: mask}, {1: "Liver"})], control / "src")
        said = run(control / "src", control / "out", "--debug")
        ours = Secrets(tuple(header_secrets(path for path in src.rglob("*") if path.is_file()) - label_names(src)))
        assert len(ours.values) > 50
        return Secrets(tuple(sorted(set(ours.values) - ours.find(own_words(control / "out", said)))))

    return find


@pytest.mark.parametrize("name", ["dicom_seg_small", "mr_multivendor_dicom"])
@pytest.mark.parametrize("options", [[], ["--debug"]], ids=["plain", "debug"])
def test_ingest_shows_no_header_value(tmp_path, real_data, secrets_of, name, options):
    src, out = real_data(name), tmp_path / "run" / "out"
    secrets = secrets_of(src)
    with_paths = Secrets((*secrets.values, str(src)))
    named = secrets.find("\n".join(map(str, src.rglob("*"))).encode())
    not_in_names = Secrets(tuple(value for value in secrets.values if value not in named))
    assert len(not_in_names.values) > 50
    said = run(src, out, *options)
    assert scan_text("said", said, secrets) == []
    assert scan_folder(out, secrets, skip=[path.name for path in out.glob("journal.sqlite*")]) == []
    paths = ("volume_sources", "instances")
    found = scan_sqlite(out / "journal.sqlite", lambda *place: not_in_names if place == paths else with_paths)
    assert found == []
    # The scan sees what is packed: the paths are there.
    assert scan_sqlite(out / "journal.sqlite", lambda *place: Secrets((str(src),))) == [
        ("volume_sources.instances", str(src))
    ]
    assert len(secrets.values) > 50


def volumes(src: Path, out: Path) -> Counter[tuple[bytes, bytes]]:
    """Affine and values of each volume that the ingest makes, and how often it is there."""
    ingest(src, out, site_key=out.parent / "site.key")
    images = [nib.load(path) for path in (out / "images").glob("*.nii.gz")]
    return Counter((np.round(i.affine, 4).tobytes(), np.ascontiguousarray(i.dataobj).tobytes()) for i in images)


@pytest.mark.parametrize(
    ("name", "options", "mosaics"),
    [
        ("dicom_seg_small", Options(), 0),
        ("mr_multivendor_dicom", Options(), 2),
        ("breast_mr_dicom_seg", Options(keep_intervals=True, keep_characteristics=True), 0),
        ("dicomdir_multi_patient", Options(keep_intervals=True), 0),
    ],
)
def test_export_gives_the_same_volumes_and_no_header_value(tmp_path, real_data, name, options, mosaics):
    src = real_data(name)
    with SourceReader() as reader:
        summary = export_deidentified(
            take_inventory(src, []).sources, reader, KEY, tmp_path / "export", options=options
        )
    before, after = volumes(src, tmp_path / "a"), volumes(summary.folder, tmp_path / "b")
    # A mosaic is not exported: without its private elements nobody knows where its slices lie.
    assert sum((before - after).values()) <= mosaics
    assert not after - before
    assert after
    secrets = Secrets(tuple(header_secrets(path for path in src.rglob("*") if path.is_file()) - label_names(src)))
    assert len(secrets.values) > 50
    # Code words (CS) are meant to stay and are listed as what remains; so are, where asked for, ages and times of day.
    left_out = {"SQ", "CS", "OW", "OB"} | ({"TM"} if options.keep_intervals else set())
    left_out |= {"AS"} if options.keep_characteristics else set()
    for path in summary.folder.rglob("*.dcm"):
        values = [
            str(element.value)
            for element in pydicom.dcmread(path).iterall()
            if element.VR not in left_out and element.keyword not in {*FROM_LISTS, "SegmentLabel"}
        ]
        assert scan_bytes(path.name, "\n".join(values).encode(), secrets) == []
