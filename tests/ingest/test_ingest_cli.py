"""``lvmmed ingest`` from its arguments to its printed lines."""

from __future__ import annotations

import json

import pytest
from synthetic_dicom import save, series

from lvmmed_monai.cli.ingest import ingest
from lvmmed_monai.errors import DataError, UserError


def test_summary_in_words(tmp_path, capsys):
    save(series(6), tmp_path / "src")
    save(series(2, patient="PATIENT-2"), tmp_path / "src" / "short")
    ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "site.key", quiet=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("accepted: 1 images of 1 subjects, 0 with labels")
    assert lines[1] == "refused series: 1"
    assert lines[2].split()[:2] == ["G07", "1"]
    assert lines[-1] == f"next:     lvmmed check {tmp_path / 'out' / 'datalist.json'}"


def test_summary_as_json_and_label_table(tmp_path, capsys):
    save(series(6), tmp_path / "src")
    (tmp_path / "labels.json").write_text('{"1": "liver"}')
    ingest(
        tmp_path / "src",
        tmp_path / "out",
        site_key=tmp_path / "site.key",
        labels=tmp_path / "labels.json",
        as_json=True,
    )
    summary = json.loads(capsys.readouterr().out)
    assert (summary["accepted"], summary["datalists"]) == (1, ["datalist.json"])


def test_wrong_use(tmp_path):
    with pytest.raises(UserError, match="source folder is missing"):
        ingest(None, tmp_path / "out")
    with pytest.raises(UserError, match="go together"):
        ingest(None, tmp_path / "out", manifest="busi")
    with pytest.raises(UserError, match="go together"):
        ingest(tmp_path, tmp_path / "out", manifest="busi", root=tmp_path)
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(UserError, match="no JSON object"):
        ingest(tmp_path, tmp_path / "out", labels=tmp_path / "labels.json")
    (tmp_path / "src").mkdir()
    with pytest.raises(DataError, match="no DICOM image was found"):
        ingest(tmp_path / "src", tmp_path / "out", site_key=tmp_path / "site.key", quiet=True)


def test_manifest_goes_to_the_importer(tmp_path, capsys, monkeypatch):
    from lvmmed_monai.data import import_source as module

    result = {
        "datalists": [str(tmp_path / "datalist.json")],
        "counts": {"datalist.json": {"training": 3, "test": 1}},
        "dropped": [{"code": "I01", "count": 2, "remedy": "look"}],
    }
    monkeypatch.setattr(module, "import_source", lambda manifest, root, out: result)
    ingest(None, tmp_path / "out", manifest="busi", root=tmp_path)
    out = capsys.readouterr().out
    assert "datalist.json: 3 training, 1 test" in out
    assert "passed over: 2" in out
    assert f"next:     lvmmed check {tmp_path / 'datalist.json'}" in out
