"""Nothing that identifies anybody leaves the ingest: whole commands on planted headers, checks, and the export."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from contextlib import closing
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from leak_scan import Secrets, header_secrets, plant_marks, scan_bytes, scan_folder, scan_sqlite, scan_text
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from synthetic_dicom import save, segmentation, series

from lvmmed_monai.dicom.archive import Source, SourceReader
from lvmmed_monai.dicom.deidentify import Options
from lvmmed_monai.dicom.headers import header_from_dataset
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest import export as export_module
from lvmmed_monai.ingest.checks import privacy as privacy_checks
from lvmmed_monai.ingest.export import export_deidentified
from lvmmed_monai.ingest.findings import ERROR, WARNING, run_checks
from lvmmed_monai.ingest.inventory import take_inventory
from lvmmed_monai.ingest.pipeline import ingest
from lvmmed_monai.ingest.series import Series

KEY = b"k" * 32
PATH_MARKS = ("Qzfolder", "Qzfile", "Qzmember", "Qzarchive")
SCREENSHOT = "1.2.840.10008.5.1.4.1.1.7"


def mark(datasets: list[Dataset]) -> list[Dataset]:
    """Plant marks: in the first instance everywhere, in the others where most headers have something."""
    for dataset in datasets:
        dataset.PatientName, dataset.AccessionNumber = "Qzsurname^Qzgiven", "Qzmark accession"
        dataset.InstitutionName, dataset.SeriesDescription = "Qzmark hospital", "Qzmark of Qzsurname"
        dataset.PatientBirthDate, dataset.AcquisitionTime = "19480229", "235948.123456"
        dataset.add_new((0x0009, 0x0010), "LO", "Qzmark maker")
        dataset.add_new((0x0009, 0x1001), "LO", "Qzmark private")
        dataset.add_new((0x0009, 0x1002), "UN", b"Qzmark unknown")
        dataset.file_meta.SourceApplicationEntityTitle = "QZMARKMETA"
        dataset.preamble = b"Qzmark preamble".ljust(128, b"\0")
    inner = Dataset()
    plant_marks(inner)
    plant_marks(datasets[0])
    for keyword in ("RequestAttributesSequence", "ReferencedImageSequence"):
        setattr(datasets[0], keyword, DicomSequence([copy.deepcopy(inner)]))
    return datasets


def with_text(path: Path, before: bytes, after: bytes) -> None:
    data = path.read_bytes()
    assert before in data
    assert len(before) == len(after)
    path.write_bytes(data.replace(before, after))


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """Good, refused and broken series, loose and in archives, with a mark in every place that can hold one."""
    src = tmp_path_factory.mktemp("studies") / "Qzfolder source"
    good = mark(series(6, patient="QZID0001"))
    save(good, src / "Qzfolder good", "Qzfile{:03d}".format)
    mask = np.zeros((6, *good[0].pixel_array.shape), dtype=bool)
    mask[1:4, 2:7, 1:5] = True
    label = segmentation(good, {1: mask}, {1: "Liver"})
    save([label], src / "Qzfolder label", "Qzfile{}.dcm".format)
    gap = mark(series(6, patient="QZID0002"))
    del gap[3]
    save(gap, src / "Qzfolder gap")
    for number, cut in enumerate((200, 420, 3000, -40)):
        (path,) = save(mark(series(1, patient=f"QZID001{number}")), src / f"Qzfolder cut {number}")
        path.write_bytes(path.read_bytes()[:cut])
    odd = save(mark(series(6, patient="QZID0003", series="odd")), src / "Qzfolder odd")
    for path in odd:  # malformed values make pydicom warn, with the value in its text
        with_text(path, b"DA\x08\x0019700102", b"DA\x08\x00Qz Feb31")
        with_text(path, b"TM\x06\x00030405", b"TM\x06\x00Qzhalf")
    unknown = save(mark(series(6, patient="QZID0004", series="syntax")), src / "Qzfolder syntax")
    for path in unknown:
        with_text(path, b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.7.55\0\0")
    shots = mark(series(2, patient="QZID0005", series="shots"))
    for dataset in shots:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SCREENSHOT
    save(shots, src / "Qzfolder shots")
    with zipfile.ZipFile(src / "Qzarchive.zip", "w") as archive:
        for number, dataset in enumerate(mark(series(6, patient="QZID0006", series="packed", modality="MR"))):
            buffer = io.BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            archive.writestr(f"Qzmember/Qzmember {number}", buffer.getvalue())
    (src / "Qzarchive broken.zip").write_bytes((src / "Qzarchive.zip").read_bytes()[:5000])
    (src / "Qzfile notes.txt").write_text("Qzmark notes")
    return src


@pytest.fixture(scope="module")
def secrets(studies) -> Secrets:
    found = header_secrets(path for path in studies.rglob("*") if path.is_file())
    # What a label is called is a result, not a secret: users name their labels.
    found -= {"Liver"}
    assert len(found) > 1000
    return Secrets((*sorted(found), "Qzmark", *PATH_MARKS, "Qz Feb31", "1.2.840.99999.7.55"))


def command(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(cwd), "LVMMED_DEBUG": ""}
    return subprocess.run(
        [sys.executable, "-m", "lvmmed_monai", *map(str, words)],
        capture_output=True, text=True, check=False, cwd=cwd, env=environment,
    )  # fmt: skip


def journal_leaks(out: Path, secrets: Secrets) -> list[tuple[str, str]]:
    """Header values anywhere in the journal, and paths anywhere but in the column that is there to hold them."""
    headers = Secrets(tuple(value for value in secrets.values if value not in PATH_MARKS))
    leaks = []
    for path in out.glob("journal.sqlite*"):
        leaks += scan_bytes(path.name, path.read_bytes(), headers)
        assert path.stat().st_mode & 0o077 == 0, path.name
    with closing(sqlite3.connect(f"file:{out / 'journal.sqlite'}?mode=ro", uri=True)) as journal:
        kept = {t: journal.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("outcomes", "volume_sources")}
    assert all(kept.values()), kept
    paths = ("volume_sources", "instances")
    return leaks + scan_sqlite(out / "journal.sqlite", lambda *place: headers if place == paths else secrets)


@pytest.mark.parametrize("options", [[], ["--debug"], ["--json"]], ids=["plain", "debug", "json"])
def test_whole_command_leaks_nothing(studies, secrets, tmp_path, options):
    out, work = tmp_path / "out", tmp_path / "work"
    work.mkdir()
    done = command("ingest", studies, "--out", out, "--site-key", tmp_path / "key" / "site.key", *options, cwd=work)
    assert done.returncode == 0, done.stderr[-300:]
    record = json.loads((out / "qc.json").read_text())
    accepted = [entry for entry in record["series"] if entry["accepted"]]
    refused = {f["code"] for entry in record["series"] if not entry["accepted"] for f in entry["findings"]}
    assert len(accepted) == 3
    assert {"G01", "R02", "F05"} <= refused
    leaks = scan_text("stdout", done.stdout, secrets) + scan_text("stderr", done.stderr, secrets)
    leaks += scan_folder(out, secrets, skip=[path.name for path in out.glob("journal.sqlite*")])
    leaks += scan_folder(work, secrets) + journal_leaks(out, secrets)
    assert leaks == []
    key = (tmp_path / "key" / "site.key").read_text().strip()
    assert scan_folder(out, Secrets((key,))) + scan_text("said", done.stdout + done.stderr, Secrets((key,))) == []


@pytest.mark.parametrize("options", [[], ["--debug"]], ids=["plain", "debug"])
def test_refused_command_leaks_nothing(studies, secrets, tmp_path, options):
    """Only broken things: the command ends with an error, and with a traceback under --debug."""
    src, work = tmp_path / "src", tmp_path / "work"
    work.mkdir()
    for name in ("Qzfolder gap", "Qzfolder cut 1", "Qzfolder cut 3"):
        shutil.copytree(studies / name, src / name)
    done = command("ingest", src, "--out", tmp_path / "out", "--site-key", tmp_path / "site.key", *options, cwd=work)
    assert done.returncode == (1 if options else 3)
    assert ("Traceback" in done.stderr) == bool(options)
    assert scan_text("said", done.stdout + done.stderr, secrets) == []
    assert scan_folder(tmp_path / "out", secrets) + scan_folder(work, secrets) == []


def test_scan_finds_what_is_hidden(tmp_path):
    """The scanner itself: each place and form that it promises to look at."""
    from PIL import Image, PngImagePlugin

    hidden = Secrets(("Qzmark 17",))
    nib.save(nib.Nifti1Image(np.frombuffer(b"xQzmark 17x", np.uint8)[:, None, None], None), tmp_path / "a.nii.gz")
    for number, name in enumerate(("add_text", "add_itxt")):
        info = PngImagePlugin.PngInfo()
        getattr(info, name)("comment", "about Qzmark 17 " * 9, zip=True)
        Image.new("L", (4, 4)).save(tmp_path / f"b{number}.png", pnginfo=info)
    digest = hashlib.sha256(b"Qzmark 17").hexdigest()
    encoded = base64.b64encode
    (tmp_path / "c.html").write_bytes(b"<img src='data:text/plain;base64," + encoded(b"I am Qzmark 17.") + b"'>")
    for number, text in enumerate((b"QZMARK 17", b"Qzmark 17".hex().encode(), encoded(b"-Qzmark 17-"), digest.encode(),
                                   b"Qzmark%2017", "Qzmark 17".encode("utf-16"))):  # fmt: skip
        (tmp_path / f"d{number}.txt").write_bytes(b"before " + text + b" after")
    (tmp_path / "e Qzmark 17").mkdir()
    with zipfile.ZipFile(tmp_path / "f.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", "Qzmark 17")
    (tmp_path / "g clean.txt").write_text("Qzmark 1")
    found = {where.removeprefix("name ")[0] for where, _ in scan_folder(tmp_path, hidden)}
    assert found == set("abcdef")
    with closing(sqlite3.connect(tmp_path / "h.sqlite")) as database, database:
        database.execute("CREATE TABLE t (packed BLOB, plain TEXT, clean BLOB)")
        database.execute("INSERT INTO t VALUES (?, ?, ?)", (zlib.compress(b"Qzmark 17"), "Qzmark 17", b"x\x9cQzmark 1"))
    assert scan_sqlite(tmp_path / "h.sqlite", lambda *_: hidden) == [
        ("t.packed", "Qzmark 17"),
        ("t.plain", "Qzmark 17"),
    ]
    assert len([where for where, _ in scan_folder(tmp_path, hidden) if where[0] == "d"]) == 6


class TestChecks:
    @staticmethod
    def findings(change: dict[str, object], count: int = 3) -> list[tuple[str, str]]:
        datasets = series(count)
        for dataset in datasets:
            for name, value in change.items():
                setattr(dataset, name, value)
        headers = tuple(header_from_dataset(dataset, Source(str(index))) for index, dataset in enumerate(datasets))
        found = run_checks(privacy_checks.CHECKS, Series(headers, lambda header: ""))
        assert all(f"{count} instances" in finding.measured for finding in found)
        return [(finding.code, finding.severity) for finding in found]

    def test_nothing_to_say_of_a_ct_of_the_chest(self):
        assert self.findings({"BodyPartExamined": "CHEST"}) == []

    @pytest.mark.parametrize(
        ("change", "severity"),
        [
            ({"Modality": "US"}, ERROR),
            ({"Modality": "ES"}, ERROR),
            ({"Modality": "OT"}, ERROR),
            ({"Modality": "XA"}, WARNING),
            ({"Modality": "CR"}, WARNING),
        ],
    )
    def test_text_is_possible_where_it_is_usual_and_not_denied(self, change, severity):
        assert self.findings(change) == [("P01", severity)]
        assert self.findings({**change, "BurnedInAnnotation": "NO"}) == []
        assert self.findings({**change, "BurnedInAnnotation": "YES"}) == [("P01", ERROR)]

    @pytest.mark.parametrize(
        "change",
        [
            {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
            {"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]},
            {"SOPClassUID": SCREENSHOT},
            {"SOPClassUID": SCREENSHOT + ".4"},
        ],
    )
    def test_a_capture_is_refused_as_what_it_is(self, change):
        assert self.findings(change) == self.findings({**change, "BurnedInAnnotation": "YES"}) == []

    @pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
    def test_text_that_is_stated_excludes_any_modality(self):
        assert self.findings({"BurnedInAnnotation": "yes"}) == [("P01", ERROR)]

    def test_faces(self):
        assert self.findings({"BodyPartExamined": "HEAD"}) == [("P03", WARNING)]
        assert self.findings({"SeriesDescription": "T1 brain"}) == [("P03", WARNING)]


class TestExport:
    @pytest.fixture
    def export(self, tmp_path):
        def run(src: Path, out: str = "export", **options):
            with SourceReader() as reader:
                return export_deidentified(take_inventory(src, []).sources, reader, KEY, tmp_path / out, **options)

        return run

    @staticmethod
    def volumes(src: Path, out: Path) -> list[tuple[np.ndarray, np.ndarray]]:
        ingest(src, out, site_key=out.parent / "site.key")
        entries = json.loads((out / "qc.json").read_text())["series"]
        images = [nib.load(out / "images" / f"{e['id']}.nii.gz") for e in entries if e["accepted"]]
        return sorted(((i.affine, np.asarray(i.dataobj)) for i in images), key=lambda pair: pair[1].tobytes())

    def test_no_byte_of_it_leaks_and_the_reasons_are_counted(self, studies, secrets, export):
        summary = export(studies)
        assert scan_folder(summary.folder, secrets) == []
        assert (summary.written, summary.patients) == (6 + 1 + 5 + 6 + 6, 4)
        counts = {row["code"]: row["instances"] for row in summary.excluded}
        assert counts["P01"] == 2
        assert counts["F05"] == 6
        record = json.loads((summary.folder / "remaining.json").read_text())
        assert record["complete"]
        assert record["excluded"] == list(summary.excluded)
        assert {"keyword": "Rows", "value": "number", "instances": 24} in record["attributes"]
        assert not record["pixels"]["looked_at_for_text"]
        text = (summary.folder / "remaining.md").read_text()
        assert "Text in the pixels: not looked for" in text
        assert "Faces: not removed" in text

    def test_same_volumes_and_labels_come_out_of_it(self, studies, export, tmp_path):
        summary = export(studies)
        before, after = (self.volumes(src, tmp_path / out) for src, out in ((studies, "a"), (summary.folder, "b")))
        assert len(before) == len(after) == 3
        for (affine, values), (own_affine, own_values) in zip(before, after, strict=True):
            assert np.array_equal(affine, own_affine)
            assert np.array_equal(values, own_values)
        (one,), (two,) = (list((tmp_path / out / "labels").iterdir()) for out in ("a", "b"))
        assert np.array_equal(nib.load(one).dataobj, nib.load(two).dataobj)

    def test_names_are_the_ids_of_the_ingest(self, tmp_path, export):
        save(series(6), tmp_path / "src")
        key = tmp_path / "site.key"
        key.write_text(KEY.hex())
        key.chmod(0o600)
        ingest(tmp_path / "src", tmp_path / "out", site_key=key)
        (item,) = [i for s in ("training", "validation", "test")
                   for i in json.loads((tmp_path / "out" / "datalist.json").read_text())[s]]  # fmt: skip
        folder = export(tmp_path / "src").folder / item["subject"] / item["study"] / item["series"]
        assert len(list(folder.glob("*.dcm"))) == 6
        assert pydicom.dcmread(next(folder.iterdir())).PatientID == item["subject"]

    def test_interrupted_export_is_continued(self, tmp_path, export, monkeypatch):
        save(series(6), tmp_path / "src")
        whole = {p.name: p.read_bytes() for p in export(tmp_path / "src", "whole").folder.rglob("*") if p.is_file()}
        write, left = export_module._save, [3]

        def stop(dataset, path):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            write(dataset, path)

        monkeypatch.setattr(export_module, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / "src")
        assert not json.loads((tmp_path / "export" / "remaining.json").read_text())["complete"]
        monkeypatch.setattr(export_module, "_save", write)
        summary = export(tmp_path / "src")
        assert (summary.written, summary.present) == (3, 3)
        assert {p.name: p.read_bytes() for p in summary.folder.rglob("*") if p.is_file()} == whole
        assert export(tmp_path / "src").written == 0

    def test_wrong_folders(self, tmp_path, export):
        save(series(2), tmp_path / "src")
        export(tmp_path / "src")
        with pytest.raises(UserError, match="other options"):
            export(tmp_path / "src", options=Options(keep_intervals=True))
        with pytest.raises(UserError, match="other files"):
            export(tmp_path / "src", "src")

    @pytest.mark.parametrize(("change", "code"), [
        ({"BurnedInAnnotation": "YES"}, "P01"), ({"Modality": "US"}, "P01"), ({"SOPClassUID": SCREENSHOT}, "P01"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREENSHOT"], "BurnedInAnnotation": "NO"}, "P01"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "R05"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "R05"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, "R05"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3"}, "R05"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "R03"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "R04")])  # fmt: skip
    def test_what_is_not_exported(self, tmp_path, export, change, code):
        datasets = series(2)
        for name, value in change.items():
            setattr(datasets[0], name, value)
        save(datasets, tmp_path / "src")
        summary = export(tmp_path / "src")
        assert (summary.written, [(row["code"], row["instances"]) for row in summary.excluded]) == (1, [(code, 1)])

    def test_second_file_of_one_instance_is_not_taken_for_the_first(self, tmp_path, export):
        datasets = series(2)
        datasets[1].SOPInstanceUID = datasets[0].SOPInstanceUID
        save(datasets, tmp_path / "src")
        assert [row["code"] for row in export(tmp_path / "src").excluded] == ["D01"]
        assert [row["code"] for row in export(tmp_path / "src").excluded] == ["D01"]

    def test_heads_are_listed_also_when_continued(self, tmp_path, export):
        datasets = series(3)
        for dataset in datasets:
            dataset.BodyPartExamined = "HEAD"
        save(datasets, tmp_path / "src")
        for _ in range(2):
            folder = export(tmp_path / "src").folder
            heads = json.loads((folder / "remaining.json").read_text())["faces"]["series_of_the_head"]
            assert [path.name for path in folder.glob("*/*/*")] == heads
