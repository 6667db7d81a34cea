"""The demo's commands are ones that the verbs take, with settings that the bundles have."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from lvmmed_monai.cli.app import build_app, execute
from lvmmed_monai.cli.demo import _datalists, _fitting, _training_amounts, demo_steps
from lvmmed_monai.cli.run import config_files, find_bundle, parse_overrides
from lvmmed_monai.errors import DataError
from lvmmed_monai.files import write_json


def _ingested(data: Path, *lists: tuple[str, str]) -> None:
    """What ingest leaves, as far as the demo looks at it: (file name, modality) of each datalist."""
    series = [{"id": str(index), "accepted": True, "shape": [64, 64, 40]} for index in range(3)]
    write_json(data / "qc.json", {"format": "lvmmed-qc/1", "series": series, "datalists": [name for name, _ in lists]})
    for name, modality in lists:
        items = [{"image": f"images/{index}.nii.gz", "subject": str(index)} for index in range(3)]
        sections = dict(zip(("training", "validation", "test"), ([item] for item in items), strict=True))
        content = {
            "format": "lvmmed-datalist/1",
            "name": "x",
            "task": "unlabelled",
            "modality": modality,
            "flip_safe": True,
        }
        write_json(data / name, {**content, "labels": {}, **sections})


@pytest.fixture(params=["generated", "own"])
def commands(request: pytest.FixtureRequest, tmp_path: Path) -> list[list[str]]:
    _ingested(tmp_path / "data", ("datalist.json", "CT"))
    steps = demo_steps(tmp_path, tmp_path if request.param == "own" else None)
    return [words for step in steps for words in step.commands()]


def test_every_command_is_one_that_the_verbs_take(commands: list[list[str]]) -> None:
    group: Any = typer.main.get_command(build_app())
    for verb, *words in commands:
        # Building the context parses and checks the words without running anything.
        group.commands[verb].make_context(verb, list(words))


def test_every_setting_is_one_that_the_bundle_has(commands: list[list[str]]) -> None:
    for words in commands:
        if words[0] == "run":
            bundle = find_bundle(Path(words[1]).name)
            known: set[str] = set()
            for file in config_files(bundle, words[2]):
                known |= json.loads(file.read_text()).keys()
            assert set(parse_overrides(words[3:])) <= known, words


def test_own_studies_are_ingested_pretrained_on_and_reported(tmp_path: Path) -> None:
    names = [step.name for step in demo_steps(tmp_path, tmp_path)]
    assert names == ["ingest", "bundles", "pretrain_2d", "pretrain_3d", "report"]


def test_only_volumes_train_in_3d(tmp_path: Path) -> None:
    _ingested(tmp_path, ("datalist_ct.json", "CT"), ("datalist_ct_segmentation.json", "CT"), ("datalist_xr.json", "XR"))
    assert [path.name for path in _datalists(tmp_path)] == ["datalist_ct.json", "datalist_xr.json"]
    assert [path.name for path in _datalists(tmp_path, ("CT", "MR"))] == ["datalist_ct.json"]
    with pytest.raises(DataError, match="no volumes of PET"):
        _datalists(tmp_path, ("PET",))


def test_without_validation_subjects_nothing_is_held_out(tmp_path: Path) -> None:
    _ingested(tmp_path / "data", ("datalist.json", "CT"))
    path = tmp_path / "data" / "datalist.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "validation": [], "test": []}))
    (words,) = demo_steps(tmp_path, tmp_path)[2].commands()
    assert "held_out=null" in words


@pytest.mark.parametrize(("batch", "available", "expected"), [(64, 500, 64), (64, 50, 50), (4, 2, 2), (4, 0, 1)])
def test_a_batch_fits_few_studies(batch: int, available: int, expected: int) -> None:
    assert _fitting({"batch_size": batch}, available) == {"batch_size": expected}


def test_counts_what_there_is_to_train_on(tmp_path: Path) -> None:
    _ingested(tmp_path, ("datalist.json", "CT"))
    assert _training_amounts(tmp_path, [tmp_path / "datalist.json"]) == (20, 1)


def test_too_little_disk_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9, total=10**10, used=0))
    assert execute(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "2,000.0 MB needed, 1,000.0 MB free" in capsys.readouterr().err


def test_a_missing_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["demo", "--dicom", str(tmp_path / "none"), "--out", str(tmp_path / "demo")]) == 2
    assert capsys.readouterr().err.startswith("lvmmed: not a folder")
    assert not (tmp_path / "demo").exists()


def test_the_first_failure_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def fail(words: list[str], **_: object) -> SimpleNamespace:
        calls.append(words)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(subprocess, "run", fail)
    assert execute(["demo", "--out", str(tmp_path / "demo")]) == 3
    assert len(calls) == 1
    assert "step 1 of 12" in capsys.readouterr().err


def test_fresh_removes_only_what_the_demo_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    for name in ("studies", "runs", "mine"):
        (tmp_path / name).mkdir()
    execute(["demo", "--out", str(tmp_path), "--fresh"])
    assert (tmp_path / "runs").exists(), "a folder that the demo has not made"
    execute(["demo", "--out", str(tmp_path), "--fresh"])
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "mine").exists()
