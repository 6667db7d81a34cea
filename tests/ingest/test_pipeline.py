"""The whole ingest on tiny studies: what it writes, what it refuses, and that it leaks nothing."""

from __future__ import annotations

import json
import logging
import sqlite3
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic_dicom import COLUMNS, ROWS, save, segmentation, series

from lvmmed_monai.data.datalist import SECTIONS, read_datalist
from lvmmed_monai.dicom.sources import read_sources
from lvmmed_monai.errors import DataError, UserError
from lvmmed_monai.ingest import jobs
from lvmmed_monai.ingest.pipeline import ingest

COUNT = 6


def masks() -> dict[int, np.ndarray]:
    liver, kidney = np.zeros((2, COUNT, ROWS, COLUMNS), dtype=bool)
    liver[1:4, 2:7, 1:5] = True
    kidney[2:5, 8:11, 4:9] = True
    return {1: liver, 2: kidney}


NAMES = {1: "Liver", 2: "Kidney left"}


def write_subject(folder: Path, patient: str, *, labelled: bool = True, modality: str = "CT") -> None:
    source = series(COUNT, patient=patient, modality=modality)
    save(source, folder / "images")
    if labelled:
        save([segmentation(source, masks(), NAMES)], folder / "labels")


@pytest.fixture
def run(tmp_path):
    def ingest_here(src: Path, out: str = "out", **options):
        return ingest(src, tmp_path / out, site_key=tmp_path / "site.key", **{"workers": 0, **options})

    return ingest_here


def items_of(path: Path) -> list[dict]:
    datalist = read_datalist(path)
    return [item for section in SECTIONS for item in datalist[section]]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_volume_label_and_datalist(tmp_path, run):
    for number in range(4):
        write_subject(tmp_path / "src" / f"p{number}", f"PATIENT-{number}")
    summary = run(tmp_path / "src")
    assert (summary.accepted, summary.labelled, summary.written, summary.subjects) == (4, 4, 4, 4)
    assert summary.datalists == ("datalist.json",)
    datalist = read_datalist(tmp_path / "out" / "datalist.json")
    assert (datalist["task"], datalist["modality"], datalist["flip_safe"]) == ("segmentation", "CT", False)
    assert datalist["labels"] == {"0": "background", "1": "liver", "2": "kidney_left"}
    assert all(datalist[section] for section in SECTIONS)
    items = items_of(tmp_path / "out" / "datalist.json")
    assert len({item["subject"] for item in items}) == 4
    image = nib.load(tmp_path / "out" / items[0]["image"])
    label = nib.load(tmp_path / "out" / items[0]["label"])
    assert image.shape == label.shape == (COLUMNS, ROWS, COUNT)
    assert image.get_data_dtype() == np.int16
    assert label.get_data_dtype() == np.uint8
    for found in (image, label):
        assert np.allclose(found.affine, [[-0.5, 0, 0, 3], [0, -0.8, 0, -4], [0, 0, 2, 7], [0, 0, 0, 1]], atol=1e-6)
        assert np.allclose(found.get_qform(), found.affine, atol=1e-5)
        assert found.header.get_xyzt_units()[0] == "mm"
    expected = sum(number * mask.transpose(2, 1, 0) for number, mask in masks().items())
    assert np.array_equal(np.asarray(label.dataobj), expected)


def test_values_are_those_of_the_slices(tmp_path, run):
    write_subject(tmp_path / "src", "PATIENT-0", labelled=False)
    run(tmp_path / "src")
    (item,) = items_of(tmp_path / "out" / "datalist.json")
    values = np.asarray(nib.load(tmp_path / "out" / item["image"]).dataobj)
    for k, dataset in enumerate(series(COUNT, patient="PATIENT-0")):
        assert np.array_equal(values[:, :, k], dataset.pixel_array.T.astype(int) - 1024)


def test_quality_record_and_journal(tmp_path, run):
    write_subject(tmp_path / "src" / "good", "PATIENT-0")
    save(series(2, patient="PATIENT-1"), tmp_path / "src" / "short")
    (tmp_path / "src" / "notes.txt").write_text("Smith was here")
    (tmp_path / "src" / "empty").touch()
    summary = run(tmp_path / "src")
    record = json.loads((tmp_path / "out" / "qc.json").read_text())
    assert record["format"] == "lvmmed-qc/1"
    assert record["source"] == {"files": COUNT + 1 + 2 + 2, "archives": 0, "instances": COUNT + 3}
    assert record["datalists"] == ["datalist.json"]
    assert [(row["code"], row["count"]) for row in record["files"]] == [("F01", 1), ("F02", 1)]
    accepted, refused = sorted(record["series"], key=lambda entry: not entry["accepted"])
    assert accepted["shape"] == [COLUMNS, ROWS, COUNT]
    assert accepted["spacing_mm"] == [0.5, 0.8, 2.0]
    assert accepted["labels"] == ["liver", "kidney_left"]
    assert (tmp_path / "out" / accepted["preview"]).is_file()
    assert accepted["value_range"][0] == -1024.0
    assert [finding["code"] for finding in refused["findings"]] == ["G07"]
    assert set(refused["findings"][0]) == {"code", "severity", "measured", "expected", "remedy"}
    assert [row["code"] for row in summary.refused] == ["G07"]
    journal = tmp_path / "out" / "journal.sqlite"
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    positions = [float(d.ImagePositionPatient[2]) for d in read_sources(journal, accepted["id"])]
    assert positions == [7.0 + 2 * k for k in range(COUNT)]


def test_second_run_changes_nothing(tmp_path, run):
    for number in range(3):
        write_subject(tmp_path / "src" / f"p{number}", f"PATIENT-{number}")
    save(series(2, patient="PATIENT-9"), tmp_path / "src" / "short")
    assert run(tmp_path / "src").written == 3
    before = snapshot(tmp_path / "out")
    assert run(tmp_path / "src").written == 0
    after = snapshot(tmp_path / "out")
    assert {name: value[1] for name, value in before.items()} == {name: value[1] for name, value in after.items()}
    del before["journal.sqlite"], after["journal.sqlite"]
    assert before == after


def test_missing_output_is_made_again(tmp_path, run):
    write_subject(tmp_path / "src", "PATIENT-0")
    run(tmp_path / "src")
    (label,) = (tmp_path / "out" / "labels").iterdir()
    before = label.read_bytes()
    label.unlink()
    assert run(tmp_path / "src").written == 1
    assert label.read_bytes() == before


def test_subjects_keep_their_section_when_others_come(tmp_path, run):
    for number in range(4):
        write_subject(tmp_path / "src" / f"p{number}", f"PATIENT-{number}")
    run(tmp_path / "src")
    first = read_datalist(tmp_path / "out" / "datalist.json")
    for number in range(4, 9):
        write_subject(tmp_path / "src" / f"p{number}", f"PATIENT-{number}", labelled=number % 2 == 0)
    summary = run(tmp_path / "src")
    assert summary.written == 5
    assert summary.datalists == ("datalist.json", "datalist_segmentation.json")
    second = read_datalist(tmp_path / "out" / "datalist.json")
    assert second["task"] == "unlabelled"
    assert all("label" not in item for section in SECTIONS for item in second[section])
    for section in SECTIONS:
        assert {item["subject"] for item in first[section]} <= {item["subject"] for item in second[section]}
    assert len(items_of(tmp_path / "out" / "datalist_segmentation.json")) == 7


def test_two_modalities_give_two_datalists(tmp_path, run):
    write_subject(tmp_path / "src" / "ct", "PATIENT-0")
    run(tmp_path / "src")
    write_subject(tmp_path / "src" / "mr", "PATIENT-1", labelled=False, modality="MR")
    assert run(tmp_path / "src").datalists == ("datalist_ct.json", "datalist_mr.json")
    assert sorted(path.name for path in (tmp_path / "out").glob("datalist*")) == [
        "datalist_ct.json",
        "datalist_mr.json",
    ]
    assert read_datalist(tmp_path / "out" / "datalist_mr.json")["task"] == "unlabelled"
    assert run(tmp_path / "src", out="only", modality="mr").datalists == ("datalist.json",)
    record = json.loads((tmp_path / "only" / "qc.json").read_text())
    assert [f["code"] for entry in record["series"] if entry["modality"] == "CT" for f in entry["findings"]] == ["R06"]


def test_archives_are_read_like_folders(tmp_path, run):
    write_subject(tmp_path / "plain", "PATIENT-0")
    (tmp_path / "packed").mkdir()
    with zipfile.ZipFile(tmp_path / "packed" / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (tmp_path / "plain").rglob("*.dcm"):
            archive.write(path, path.relative_to(tmp_path / "plain"))
    run(tmp_path / "plain", out="one")
    run(tmp_path / "packed", out="two")
    one, two = (items_of(tmp_path / out / "datalist.json")[0] for out in ("one", "two"))
    assert one == two
    for key in ("image", "label"):
        assert (tmp_path / "one" / one[key]).read_bytes() == (tmp_path / "two" / two[key]).read_bytes()
    assert len(read_sources(tmp_path / "two" / "journal.sqlite", one["series"])) == COUNT


def test_planted_identifiers_reach_no_output_and_no_log(tmp_path, run, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    planted = ["XSMITHX", "ID98765", "19700102", "XHOSPITALX", "XCOMMENTX", "ACC4711", "XFOLDERX", "XFILEX"]
    source = series(COUNT, patient="ID98765")
    for dataset in source:
        dataset.PatientName, dataset.InstitutionName, dataset.ImageComments = "XSMITHX^J", "XHOSPITALX", "XCOMMENTX"
        dataset.AccessionNumber, dataset.SeriesDescription = "ACC4711", "of XSMITHX"
    planted += [str(source[0].SeriesInstanceUID), str(source[0].StudyInstanceUID), str(source[0].SOPInstanceUID)]
    label = segmentation(source, masks(), {1: "Liver of XSMITHX", 2: "Kidney left"})
    folder = tmp_path / "src" / "XFOLDERX"
    save(source, folder, "XFILEX{:03d}".format)
    save([label], folder / "seg")
    short = series(2, patient="ID98765", series="second")
    for dataset in short:
        dataset.PatientName = "XSMITHX^J"
        dataset.PatientWeight = 70
    save(short, folder / "second")
    (folder / "more").mkdir()
    (folder / "more" / "broken XSMITHX").write_bytes((folder / "XFILEX000").read_bytes()[:420])
    run(tmp_path / "src")
    outputs = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "journal.sqlite"]
    assert {path.suffix for path in outputs} == {".gz", ".json", ".png", ".html"}
    for path in outputs:
        content = (
            nib.load(path).get_fdata().tobytes() + bytes(nib.load(path).header.binaryblock)
            if path.suffix == ".gz"
            else b""
        )
        for secret in planted:
            assert secret.lower() not in str(path.relative_to(tmp_path / "out")).lower()
            assert secret.encode().lower() not in (path.read_bytes() + content).lower(), (path.name, secret)
    said = caplog.text + "".join(capfd.readouterr())
    assert not [secret for secret in planted if secret.lower() in said.lower()]
    assert read_datalist(tmp_path / "out" / "datalist.json")["labels"]["1"] == "segment_1"
    with sqlite3.connect(tmp_path / "out" / "journal.sqlite") as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in set(tables) - {"volume_sources"}:
            text = str(connection.execute(f"SELECT * FROM {table}").fetchall())
            assert not [secret for secret in planted if secret in text]


def test_truncated_slice_refuses_its_series_only(tmp_path, run):
    write_subject(tmp_path / "src" / "good", "PATIENT-0", labelled=False)
    paths = save(series(COUNT, patient="PATIENT-1"), tmp_path / "src" / "cut")
    paths[3].write_bytes(paths[3].read_bytes()[:-50])
    summary = run(tmp_path / "src")
    assert (summary.accepted, [row["code"] for row in summary.refused]) == (1, ["F04"])
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1


def test_broken_file_beside_the_only_series_of_a_folder_refuses_it(tmp_path, run):
    write_subject(tmp_path / "src" / "good", "PATIENT-0", labelled=False)
    paths = save(series(COUNT, patient="PATIENT-1"), tmp_path / "src" / "cut")
    paths[-1].write_bytes(b"")
    for patient in ("PATIENT-2", "PATIENT-3"):
        save(series(COUNT, patient=patient), tmp_path / "src" / "two", f"{patient}-{{}}.dcm".format)
    (tmp_path / "src" / "two" / "empty").touch()
    summary = run(tmp_path / "src")
    assert (summary.accepted, [row["code"] for row in summary.refused]) == (3, ["S03"])
    entries = json.loads((tmp_path / "out" / "qc.json").read_text())["series"]
    warned = [entry for entry in entries if entry["accepted"] and "S03" in [f["code"] for f in entry["findings"]]]
    assert len(warned) == 2


@pytest.mark.parametrize("when", ["checking series", "writing volumes"])
def test_file_that_vanishes_meanwhile_costs_its_series_only(tmp_path, run, when):
    write_subject(tmp_path / "src" / "good", "PATIENT-0", labelled=False)
    paths = save(series(COUNT, patient="PATIENT-1"), tmp_path / "src" / "going")

    def progress(iterable, description, total=None):
        if description == when:
            paths[2].unlink()
        return iter(iterable)

    summary = run(tmp_path / "src", progress=progress)
    assert (summary.accepted, [row["code"] for row in summary.refused]) == (1, ["F03"])


def test_locked_journal_is_one_sentence(tmp_path, run):
    save(series(COUNT), tmp_path / "src")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="journal is damaged"):
        run(tmp_path / "src")
    assert not list((tmp_path / "out").glob("datalist*"))


@pytest.mark.parametrize("content", ["nothing", "text", "truncated", "refused"])
def test_nothing_usable_is_one_sentence_and_leaves_no_output(tmp_path, run, content):
    src = tmp_path / "src"
    src.mkdir()
    if content == "text":
        (src / "a.txt").write_text("no image " * 100)
    elif content == "truncated":
        (path,) = save(series(1), src)
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "refused":
        save(series(2), src)
    with pytest.raises(DataError) as caught:
        run(src)
    assert caught.value.exit_code == 3
    assert str(caught.value).count(";") >= 2
    left = sorted(path.name for path in (tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else []
    pictures = ["previews"] if content == "refused" else []
    assert left == ([] if content in ("nothing", "text") else ["journal.sqlite", *pictures, "qc.html", "qc.json"])


def test_wrong_use(tmp_path, run):
    save(series(COUNT), tmp_path / "src")
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="same folder"):
        run(tmp_path / "src", out="src")
    with pytest.raises(UserError, match="CT, MR, PET"):
        run(tmp_path / "src", modality="XX")
    with pytest.raises(UserError, match="site key would lie"):
        ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "out" / "site.key")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        run(tmp_path / "src", out="file/out")
    with pytest.raises(UserError, match="fractions"):
        run(tmp_path / "src", out="other", split=(0.5, 0.1, 0.1))
    assert not (tmp_path / "out").exists()


def test_output_inside_the_source_is_not_read(tmp_path, run):
    save(series(COUNT), tmp_path / "images")
    assert run(tmp_path, out="out").files == ()
    assert run(tmp_path, out="out").files == ()


def test_interrupted_run_leaves_whole_files_and_is_continued(tmp_path, run, monkeypatch):
    for number in range(3):
        write_subject(tmp_path / "src" / f"p{number}", f"PATIENT-{number}")
    write, done = jobs.write_volume, []

    def stop_at_the_second(paths, *what):
        if done:
            raise KeyboardInterrupt
        done.append(paths)
        write(paths, *what)

    monkeypatch.setattr(jobs, "write_volume", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "src")
    assert not list((tmp_path / "out").rglob(".partial*"))
    assert not list((tmp_path / "out").glob("datalist*"))
    monkeypatch.setattr(jobs, "write_volume", write)
    assert run(tmp_path / "src").written == 2
    assert len(items_of(tmp_path / "out" / "datalist.json")) == 3


def test_split_does_not_depend_on_file_names(tmp_path, run):
    for number in range(5):
        write_subject(tmp_path / "a" / f"p{number}", f"PATIENT-{number}", labelled=False)
        write_subject(tmp_path / "b" / f"p{9 - number}", f"PATIENT-{number}", labelled=False)
    run(tmp_path / "a", out="one")
    run(tmp_path / "b", out="two")
    assert (tmp_path / "one" / "datalist.json").read_bytes() == (tmp_path / "two" / "datalist.json").read_bytes()


def test_no_torch_is_loaded():
    code = (
        "import sys, lvmmed_monai.dicom, lvmmed_monai.ingest, lvmmed_monai.ingest.pipeline\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'monai', 'highdicom', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
