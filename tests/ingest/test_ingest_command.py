"""``lvmmed ingest``: each option does what its help says, and wrong use is one sentence and exit code 2."""

from __future__ import annotations

import json
import re
import socket
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from ingest_studies import difference, labels_of, large_series, lvmmed, outputs, tilted, ultrasound
from leak_scan import Secrets, header_secrets, plant_marks, scan_folder, scan_text
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian
from synthetic_dicom import save, uid
from synthetic_dicomweb import basic, serving

from lvmmed_monai.cli.app import execute
from lvmmed_monai.data.datalist import SECTIONS, read_datalist
from lvmmed_monai.ingest.pipeline import ingest

COUNT, SIZE = 6, 24


@dataclass
class Said:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """Of ``--json``."""
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run ``lvmmed ingest SRC --out out`` with more words, in this process unless they say otherwise."""

    def run(src: Path | None, *words: object, out: str = "out") -> Said:
        line = ["ingest", *([src] if src else []), "--out", tmp_path / out, "--site-key", tmp_path / "site.key"]
        workers = [] if {"--workers", "--scheduler"}.intersection(map(str, words)) else ["--workers", 0]
        capfd.readouterr()
        code = execute([str(word) for word in [*line, *workers, *words]])
        return Said(code, *capfd.readouterr())

    return run


def write(folder: Path, patient: str = "PATIENT-0", **kinds: Any) -> list[Path]:
    return save(large_series(COUNT, SIZE, patient=patient, **kinds), folder)


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "qc.json").read_text())
    return found


def codes(out: Path) -> list[str]:
    """Codes of all findings that refuse a series."""
    entries = record(out)["series"]
    return [found["code"] for entry in entries for found in entry["findings"] if found["severity"] == "error"]


def one_sentence(said: Said, words: str, code: int = 2) -> None:
    lines = said.err.strip().splitlines()
    assert said.code == code, said.err
    assert lines[-1].startswith("lvmmed: ")
    assert re.search(words, lines[-1]), lines
    assert lines[-1].count(";") >= 2
    assert "Traceback" not in said.err


def test_every_option_is_tried_here_and_explained() -> None:
    done = lvmmed("ingest", "--help")
    options = set(re.findall(r"--[a-z][a-z-]+", done.stdout)) - {"--help"}
    assert len(options) >= 19
    tried = Path(__file__).read_text()
    assert [name for name in sorted(options) if f'"{name}"' not in tried] == []


def test_strict_refuses_what_is_else_straightened(tmp_path: Path, command: Callable[..., Said]) -> None:
    save(tilted(large_series(COUNT, SIZE, patient="PATIENT-1"), 12.0), tmp_path / "src" / "tilted")
    write(tmp_path / "src" / "plain")
    assert command(tmp_path / "src", "--json").summary["accepted"] == 2
    assert command(tmp_path / "src", "--json", "--strict", out="strict").summary["accepted"] == 1
    assert codes(tmp_path / "out") == []
    assert codes(tmp_path / "strict") == ["G03"]


def test_max_failures_is_an_exit_code_and_all_is_written(tmp_path: Path, command: Callable[..., Said]) -> None:
    write(tmp_path / "src" / "good")
    write(tmp_path / "src" / "gap", "PATIENT-1")[3].unlink()
    (tmp_path / "src" / "gap" / "notes.txt").write_text("no image")
    assert command(tmp_path / "src", "--max-failures", 1, out="enough").code == 0
    said = command(tmp_path / "src", "--max-failures", 0)
    one_sentence(said, r"1 series and files were refused, more than --max-failures 0", code=3)
    assert "accepted: 1 images of 1 subjects" in said.out
    assert difference(outputs(tmp_path / "out"), outputs(tmp_path / "enough")) == []
    assert {"datalist.json", "qc.json", "qc.html"} <= outputs(tmp_path / "out").keys()
    assert command(tmp_path / "src", "--max-failures", -1).code == 2


def test_burned_in_text_is_accepted_on_demand_only(tmp_path: Path, command: Callable[..., Said]) -> None:
    save(ultrasound("PATIENT-1", burned_in=True), tmp_path / "src" / "text")
    save(ultrasound("PATIENT-2"), tmp_path / "src" / "clean")
    assert command(tmp_path / "src", "--json").summary["accepted"] == 1
    assert codes(tmp_path / "out") == ["P01"]
    assert command(tmp_path / "src", "--json", "--keep-burned-in", out="kept").summary["accepted"] == 2
    assert codes(tmp_path / "kept") == []


def test_one_modality(tmp_path: Path, command: Callable[..., Said]) -> None:
    save(ultrasound("PATIENT-1"), tmp_path / "src" / "us")
    write(tmp_path / "src" / "ct")
    assert command(tmp_path / "src", "--json", "--modality", "us").summary["accepted"] == 1
    assert codes(tmp_path / "out") == ["R06"]
    datalist = read_datalist(tmp_path / "out" / "datalist.json")
    assert datalist["modality"] == "US"
    one_sentence(command(tmp_path / "src", "--modality", "XX"), "modality must be one of CT, MR, PET")


def test_label_names_with_aliases(tmp_path: Path, command: Callable[..., Said]) -> None:
    for number, name in enumerate(("Liver", "Hepar")):
        source = large_series(COUNT * 2, SIZE, seed=number, patient=f"PATIENT-{number}")
        label = labels_of(source)
        label.SegmentSequence[0].SegmentLabel = name
        save([*source, label], tmp_path / "src" / name)
    table = tmp_path / "labels.json"
    table.write_text('{"1": "spleen", "2": ["liver", "hepar"]}')
    said = command(tmp_path / "src", "--json", "--labels", table)
    assert said.summary["labelled"] == 2
    datalist = read_datalist(tmp_path / "out" / "datalist.json")
    assert datalist["labels"] == {"0": "background", "1": "spleen", "2": "liver"}
    for item in (item for section in SECTIONS for item in datalist[section]):
        values = np.asarray(nib.load(tmp_path / "out" / item["label"]).dataobj)
        assert values[SIZE // 4, SIZE // 4, 2] == 2
        assert values[SIZE // 2, SIZE // 2, 2] == 1
    for wrong in ('{"1": ["liver", "liver"]}', '{"2": "liver"}'):
        table.write_text(wrong)
        one_sentence(command(tmp_path / "src", "--labels", table), "label names must be numbered from 1")
    one_sentence(command(tmp_path / "src", "--labels", tmp_path / "none.json"), "label table not found")


@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")  # what looks for marks tries them as UIDs
def test_deidentified_folder_holds_no_mark(tmp_path: Path, command: Callable[..., Said]) -> None:
    source = large_series(COUNT, SIZE, patient="QZPATIENT1")
    for dataset in source:
        plant_marks(dataset)
        dataset.PatientName, dataset.BurnedInAnnotation = "Qzsurname^Qzgiven", "NO"
    paths = save(source, tmp_path / "Qzfolder", "Qzfile{:03d}".format)
    secrets = Secrets((*sorted(header_secrets(paths)), "Qzfolder", "Qzfile"))
    assert len(secrets.values) > 500
    exported = tmp_path / "exported"
    said = command(tmp_path / "Qzfolder", "--deidentified", exported, "--quiet")
    assert said.code == 0, said.err
    assert f"exported: {COUNT} de-identified instances" in said.out
    assert {"remaining.json", "remaining.md"} <= {path.name for path in exported.iterdir()}
    assert json.loads((exported / "remaining.json").read_text())["complete"] is True
    files = sorted(exported.rglob("*.dcm"))
    found = sorted((pydicom.dcmread(path) for path in files), key=lambda dataset: dataset.ImagePositionPatient[2])
    assert [one.PixelData for one in found] == [one.PixelData for one in source]
    leaks = scan_folder(exported, secrets) + scan_folder(tmp_path / "out", secrets, skip=["journal.sqlite"])
    assert leaks + scan_text("stdout", said.out, secrets) + scan_text("stderr", said.err, secrets) == []
    again = command(tmp_path / "Qzfolder", "--deidentified", exported, "--json")
    assert (again.summary["exported"], again.summary["written"]) == (COUNT, 0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    wrong = command(tmp_path / "Qzfolder", "--deidentified", tmp_path / "other")
    one_sentence(wrong, "export folder holds other files")


def test_summary_and_output_do_not_depend_on_workers(tmp_path: Path, command: Callable[..., Said]) -> None:
    write(tmp_path / "src")
    summaries = [command(tmp_path / "src", "--json", "--workers", count, out=str(count)).summary for count in (0, 2)]
    for summary in summaries:
        assert summary.pop("seconds") > 0
        assert summary.pop("out")
    assert summaries[0] == summaries[1]
    assert difference(outputs(tmp_path / "0"), outputs(tmp_path / "2")) == []


def test_no_scheduler_there(tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    from lvmmed_monai.ingest import dask_workers

    monkeypatch.setattr(dask_workers, "_CONNECT_SECONDS", 1.0)
    write(tmp_path / "src")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        one_sentence(command(tmp_path / "src", "--scheduler", address), "no Dask scheduler answers")
    assert not (tmp_path / "out").exists()


def test_dicomweb_whole_series_and_an_incomplete_one(
    tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dicomweb_client")
    from lvmmed_monai.dicom import web, web_access

    monkeypatch.setattr(web_access, "_loopback", lambda host: False)  # as if it were another machine
    monkeypatch.setattr(web.DicomWeb, "pause", lambda self, attempt: None)
    whole, cut = (large_series(COUNT, SIZE, seed=n, series=f"series {n}", patient="PATIENT-7") for n in (1, 2))
    secret = tmp_path / "secret"
    secret.write_text("user=reader\npassword=open sesame\n")
    secret.chmod(0o600)
    with serving([*whole, *cut]) as archive:
        archive.secret = basic("reader", "open sesame")
        archive.hidden = {cut[-1].SOPInstanceUID}
        words = ["--dicomweb", archive.url, "--query", "PatientID=PATIENT-7&Modality=CT", "--credentials", secret]
        one_sentence(command(tmp_path / "fetched", *words), "use https, or --allow-http")
        words += ["--allow-http", "--json"]
        said = command(tmp_path / "fetched", *words)
        assert said.code == 0, said.err
        assert (said.summary["accepted"], codes(tmp_path / "out")) == (1, ["S03"])
        archive.hidden = set()
        again = command(tmp_path / "fetched", *words)
        assert (again.summary["accepted"], again.summary["written"], codes(tmp_path / "out")) == (2, 1, [])
    assert "PATIENT-7" not in said.err + said.out + again.err + again.out
    one_sentence(command(tmp_path / "fetched", "--dicomweb", archive.url), "--dicomweb and --query go together")
    one_sentence(command(tmp_path / "fetched", "--query", "Modality=CT"), "--dicomweb and --query go together")
    nowhere = ["--dicomweb", "https://127.0.0.1:9/dicom-web", "--query", "Modality=CT"]
    wrong = command(tmp_path / "fetched", *nowhere, "--ca-file", tmp_path / "none.pem")
    one_sentence(wrong, "none.pem")


def test_manifest_needs_its_root(tmp_path: Path, command: Callable[..., Said]) -> None:
    for words in (["--manifest", "busi"], ["--root", tmp_path], ["--manifest", "busi", "--root", tmp_path]):
        src = tmp_path if len(words) == 4 else None
        one_sentence(command(src, *words), "--manifest and --root go together")


def test_bad_paths_and_numbers(tmp_path: Path, command: Callable[..., Said]) -> None:
    write(tmp_path / "src")
    one_sentence(command(None), "source folder is missing")
    one_sentence(command(tmp_path / "none"), "source folder does not exist")
    one_sentence(command(tmp_path / "src", out="src"), "output and source are the same folder")
    inside = command(tmp_path / "src", "--site-key", tmp_path / "out" / "site.key")
    one_sentence(inside, "site key would lie in the output folder")
    assert command(tmp_path / "src", "--workers", -1).code == 2
    assert command(tmp_path / "src", "--no-such-option").code == 2
    assert not (tmp_path / "out").exists()


def _tar(files: list[Path], folder: Path) -> Path:
    with tarfile.open(folder / "export.tar.gz", "w:gz") as archive:
        for path in files:
            archive.add(path, f"study/{path.name}")
    return folder / "export.tar.gz"


def test_compressed_archives_are_unpacked_once_and_nothing_of_it_stays(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    _tar(write(tmp_path / "plain")[::-1], tmp_path / "packed")
    seen = []

    def progress(iterable: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
        if description == "checking series":
            for folder in (tmp_path / "out").glob(".unpacked-*"):
                seen.append((stat.S_IMODE(folder.stat().st_mode), len([p for p in folder.rglob("*") if p.is_file()])))
        return iter(iterable)

    for _ in range(2):
        ingest(tmp_path / "packed", tmp_path / "out", site_key=tmp_path / "site.key", workers=0, progress=progress)
        assert not list((tmp_path / "out").glob(".unpacked*"))
    assert seen == [(0o700, COUNT)] * 2


def _zip(files: list[Path], folder: Path) -> Path:
    with zipfile.ZipFile(folder / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, f"study/{path.name}")
    return folder / "export.zip"


def _disc(files: list[Path], folder: Path) -> Path:
    """A DICOMDIR that names the files; one more lies beside them that it does not name."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    dataset.file_meta.MediaStorageSOPInstanceUID = uid("directory")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    records = []
    for number, path in enumerate(files):
        item = Dataset()
        item.DirectoryRecordType, item.RecordInUseFlag = "IMAGE", 0xFFFF
        item.ReferencedFileID = ["IMAGES", f"I{number:04d}"]
        records.append(item)
        (folder / "IMAGES").mkdir(exist_ok=True)
        (folder / "IMAGES" / f"I{number:04d}").write_bytes(path.read_bytes())
    dataset.DirectoryRecordSequence = DicomSequence(records)
    dataset.save_as(folder / "DICOMDIR", enforce_file_format=True)
    write(folder / "OTHER", "PATIENT-9")
    return folder / "DICOMDIR"


@pytest.mark.parametrize("pack", [_tar, _zip, _disc])
@pytest.mark.parametrize("workers", [0, 2])
def test_packed_sources_give_what_the_folder_gives(
    tmp_path: Path, command: Callable[..., Said], pack: Callable[[list[Path], Path], Path], workers: int
) -> None:
    files = write(tmp_path / "plain")
    (tmp_path / "packed").mkdir()
    src = pack(files, tmp_path / "packed")
    assert command(tmp_path / "plain", out="one").code == 0
    said = command(src, "--json", "--workers", workers, out="two")
    assert said.summary["accepted"] == 1
    one, two = (outputs(tmp_path / name) for name in ("one", "two"))
    # How many files and archives there were stands in both.
    assert set(difference(one, two)) <= {"qc.json", "qc.html"}
    series = [record(tmp_path / name)["series"] for name in ("one", "two")]
    assert series[0] == series[1]
