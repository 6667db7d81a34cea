"""Series from a DICOMweb archive that fails: whole, or known to be incomplete."""

from __future__ import annotations

import json
import logging
import stat

import pytest
from synthetic_dicom import series, uid
from synthetic_dicomweb import basic, serving, to_bytes

from lvmmed_monai.dicom.privacy import pseudonym
from lvmmed_monai.dicom.web import DicomWeb, RemoteSeries
from lvmmed_monai.dicom.web_access import Credentials
from lvmmed_monai.errors import UserError
from lvmmed_monai.ingest.download import STATE_FILE, download

pytest.importorskip("dicomweb_client")
KEY = bytes(range(32))
QUERY = "PatientID=PATIENT-7&Modality=CT"
ONE, TWO = uid("PATIENT-7/study/one"), uid("PATIENT-7/study/two")


@pytest.fixture(scope="module")
def datasets():
    return series(28, series="one") + series(3, series="two")


@pytest.fixture
def archive(datasets):
    with serving(datasets) as running:
        yield running


def fetch(archive, folder, credentials=None, **options):
    web = DicomWeb(archive.url, credentials, timeouts=(1.0, 1.0), wait_s=0.01, **options)
    try:
        return download(web, QUERY, folder, KEY)
    finally:
        web.close()


def files_of(folder):
    return sorted(path for path in folder.rglob("*.dcm"))


def assert_all_there(result, folder, datasets):
    assert (result.instances, result.incomplete, result.findings) == (len(datasets), {}, [])
    assert {path.read_bytes() for path in files_of(folder)} == {to_bytes(dataset) for dataset in datasets}


def test_all_instances_arrive_as_they_are_stored(archive, tmp_path, datasets):
    folder = tmp_path / "in"
    result = fetch(archive, folder)
    assert_all_there(result, folder, datasets)
    assert result.fetched == 31
    first = folder / pseudonym(KEY, "series", ONE) / f"{pseudonym(KEY, 'instance', datasets[0].SOPInstanceUID)}.dcm"
    assert first.read_bytes() == to_bytes(datasets[0])
    # One request for each series, and as many searches as there are pages.
    assert archive.requests[f"/studies/{datasets[0].StudyInstanceUID}/series/{ONE}"] == 1
    assert all("transfer-syntax=*" in head["Accept"] for head in archive.received if "multipart" in head["Accept"])


def test_private_and_without_identifiers(archive, tmp_path, datasets, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    archive.fail = {f"series/{ONE}": [503, "reset"], "instances": [501, 501]}
    folder = tmp_path / "in"
    result = fetch(archive, folder)
    assert_all_there(result, folder, datasets)
    texts = [caplog.text, repr(result), *capfd.readouterr(), (folder / STATE_FILE).read_text()]
    texts += [str(path) for path in folder.rglob("*")]
    planted = {value for dataset in datasets for value in (dataset.SOPInstanceUID, dataset.SeriesInstanceUID)}
    planted |= {datasets[0].StudyInstanceUID, "PATIENT-7", "Planted"}
    assert not [text for text in texts for value in planted if value in text]
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path.name
    state = json.loads((folder / STATE_FILE).read_text())
    assert state["series"][pseudonym(KEY, "series", ONE)] == {"have": 28, "expected": 28}
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == [STATE_FILE]


def test_second_run_fetches_only_what_is_missing(archive, tmp_path, datasets):
    fetch(archive, tmp_path)
    gone = tmp_path / pseudonym(KEY, "series", ONE) / f"{pseudonym(KEY, 'instance', datasets[5].SOPInstanceUID)}.dcm"
    gone.unlink()
    archive.requests.clear()
    result = fetch(archive, tmp_path)
    assert_all_there(result, tmp_path, datasets)
    assert result.fetched == 1
    retrieved = [path for path in archive.requests if path.split("/")[-1] not in ("studies", "series", "instances")]
    assert [path.split("/")[-1] for path in retrieved] == [datasets[5].SOPInstanceUID]


@pytest.mark.parametrize(
    "faults",
    [[503], [500, 500], [502, 500, "reset"], ["reset"], ["short"], ["cut"], ["cut", "short"], ["slow"], ["other type"],
     ["open end"], [404, 404]],
    ids=lambda faults: "-".join(map(str, faults)),
)  # fmt: skip
def test_faults_of_a_retrieval_are_made_good(archive, tmp_path, datasets, faults):
    archive.fail = {f"series/{ONE}": list(faults)}
    assert_all_there(fetch(archive, tmp_path), tmp_path, datasets)


@pytest.mark.parametrize("faults", [[503, 503, 503], ["reset"], ["slow"], [500]])
def test_faults_of_a_search_are_made_good(archive, tmp_path, datasets, faults):
    archive.fail = {"/studies": list(faults), "/instances": list(faults), "/series": list(faults)}
    assert_all_there(fetch(archive, tmp_path), tmp_path, datasets)


def test_half_of_a_series_without_an_error_costs_single_requests_only(archive, tmp_path, datasets):
    archive.fail = {f"series/{ONE}": ["short"]}
    assert_all_there(fetch(archive, tmp_path), tmp_path, datasets)
    assert sum("/instances/" in path for path in archive.requests) == 14


def test_metadata_where_instances_are_not_listed(archive, tmp_path, datasets):
    archive.search_of_instances = False
    assert_all_there(fetch(archive, tmp_path), tmp_path, datasets)


def test_server_that_ignores_the_offset_does_not_keep_us_forever(archive, tmp_path):
    archive.ignore_offset = True
    archive.datasets = archive.datasets[:8]
    assert fetch(archive, tmp_path).instances == 8


def test_series_that_stays_incomplete_is_named(archive, tmp_path, datasets):
    archive.hidden = {datasets[3].SOPInstanceUID, datasets[4].SOPInstanceUID}
    result = fetch(archive, tmp_path)
    assert result.incomplete == {ONE: (26, 28)}
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert state["series"][pseudonym(KEY, "series", ONE)] == {"have": 26, "expected": 28}
    archive.hidden = set()
    assert_all_there(fetch(archive, tmp_path), tmp_path, datasets)


def test_always_half_is_incomplete(archive, tmp_path, datasets):
    archive.fail = {f"series/{ONE}": ["short"] * 9}
    archive.hidden = {dataset.SOPInstanceUID for dataset in datasets[14:28]}
    assert fetch(archive, tmp_path).incomplete == {ONE: (14, 28)}


def test_instances_that_the_archive_does_not_list_make_a_series_doubtful(archive, tmp_path, datasets):
    archive.unlisted = {datasets[0].SOPInstanceUID}
    result = fetch(archive, tmp_path)
    assert result.incomplete == {ONE: (27, 27)}


def test_archive_that_says_more_than_it_lists(archive, tmp_path, monkeypatch):
    found = [RemoteSeries(uid("PATIENT-7/study"), TWO, 5)]
    monkeypatch.setattr(DicomWeb, "search_series", lambda self, query: found)
    assert fetch(archive, tmp_path).incomplete == {TWO: (3, 5)}


def test_instances_of_another_series_are_not_kept(archive, tmp_path, datasets):
    strangers = series(3, series="one", patient="OTHER")
    for dataset, stranger in zip(datasets[28:], strangers, strict=True):
        stranger.SOPInstanceUID = stranger.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    archive.fail = {}
    web = DicomWeb(archive.url, wait_s=0.0)
    original = web.retrieve

    def swapped(remote, folder, instance=""):
        for path in original(remote, folder, instance):
            if remote.series == TWO:
                path.write_bytes(to_bytes(strangers[0]))
            yield path

    web.retrieve = swapped
    result = download(web, QUERY, tmp_path, KEY)
    web.close()
    assert result.incomplete == {TWO: (0, 3)}
    assert {finding.code for finding in result.findings} == {"F02"}
    assert len(files_of(tmp_path)) == 28


def test_lone_instances_against_the_standard(archive, tmp_path, datasets):
    archive.datasets = datasets[28:29]
    archive.fail = {f"series/{TWO}": ["lone"]}
    assert_all_there(fetch(archive, tmp_path), tmp_path, datasets[28:29])


def test_wildcards_are_sent_as_they_are(archive, tmp_path, datasets):
    """An archive of wide use does not decode them, and finds nothing."""
    web = DicomWeb(archive.url, wait_s=0.0)
    assert download(web, "PatientID=PAT*-?", tmp_path, KEY).instances == 31
    web.close()
    assert archive.queries[0].startswith("PatientID=PAT*-?&")


def test_credentials(archive, tmp_path, datasets):
    archive.secret = basic("reader", "pässword")
    with pytest.raises(UserError, match=r"refuses the credentials \(401\)"):
        fetch(archive, tmp_path)
    assert archive.requests["/studies"] == 1  # not tried again: accounts get locked
    assert_all_there(fetch(archive, tmp_path, Credentials("reader", "pässword")), tmp_path, datasets)
    archive.secret = "Bearer planted-token"
    assert fetch(archive, tmp_path, Credentials(token="planted-token")).fetched == 0


def test_archive_that_is_down_or_has_nothing(archive, tmp_path):
    archive.fail = {"/studies": [503] * 9}
    with pytest.raises(UserError, match="cannot be searched \\(status 503\\)"):
        fetch(archive, tmp_path)
    archive.fail, archive.datasets = {}, []
    with pytest.raises(UserError, match="no series"):
        fetch(archive, tmp_path)


def test_redirections_are_not_followed(archive, tmp_path):
    archive.fail = {"/studies": [302]}
    with pytest.raises(UserError, match="redirects"):
        fetch(archive, tmp_path)


def test_full_disk_is_said(archive, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lvmmed_monai.dicom._multipart.os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        fetch(archive, tmp_path)
    assert files_of(tmp_path) == []
