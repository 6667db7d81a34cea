"""The command that is printed is the command that is run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from lvmmed_monai.cli import run as run_module
from lvmmed_monai.cli.app import execute
from lvmmed_monai.cli.run import bundle_command, config_files, find_bundle, parse_overrides
from lvmmed_monai.errors import UserError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that writes what it was given, in a folder with a space in its name."""
    folder = tmp_path / "my bundles" / "tiny"
    (folder / "configs").mkdir(parents=True)
    train = {
        "imports": ["$from pathlib import Path", "$import json"],
        "bundle_root": ".",
        "out": "out.json",
        "value": None,
        "nested": {"a": 1, "b": 2},
        "run": ["$Path(@out).write_text(json.dumps([@value, @nested, @bundle_root]))"],
    }
    (folder / "configs" / "train.json").write_text(json.dumps(train))
    (folder / "configs" / "evaluate.json").write_text(json.dumps({"value": "evaluated"}))
    metadata = {"version": "0.1.0", "monai_version": "1.6.1", "pytorch_version": "2.13.0", "numpy_version": "2.4.6"}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return folder


VALUES = [
    ("3", 3),
    ("1e-3", 0.001),
    ("true", True),
    ("False", False),
    ("null", "$None"),
    ("None", "$None"),
    ("[1, 2]", [1, 2]),
    ('["a.json", "b c.json"]', ["a.json", "b c.json"]),
    ('{"a": 1}', {"a": 1}),
    ("data/datalist.json", "data/datalist.json"),
    ("a b", "a b"),
    ("a,b", "a,b"),
    ("a#b", "a#b"),
    ('"12"', "12"),
    ("-1", -1),
    ("", ""),
    ("$@value + 1", "$@value + 1"),
    ("@nested#a", "@nested#a"),
    ("it's", "it's"),
    ("x=y", "x=y"),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values_are_read_as_meant(text: str, value: Any) -> None:
    assert parse_overrides([f"key={text}"]) == {"key": value}


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_printed_command_reads_back_as_the_same_value(text: str, value: Any, tmp_path: Path) -> None:
    from fire.parser import DefaultParseValue

    line = shlex.join(bundle_command(tmp_path, [tmp_path / "train.json"], parse_overrides([f"train#key={text}"])))
    *_, key, word = shlex.split(line)
    assert key == "--train#key"
    assert DefaultParseValue(word) == value


def test_several_files_are_one_list(tmp_path: Path) -> None:
    from fire.parser import DefaultParseValue

    files = [tmp_path / "a b" / "train.json", tmp_path / "a b" / "evaluate.json"]
    words = bundle_command(tmp_path, files, {})
    assert DefaultParseValue(words[words.index("--config_file") + 1]) == [str(file) for file in files]


def test_several_processes_start_by_torchrun(tmp_path: Path) -> None:
    words = bundle_command(tmp_path, [tmp_path / "train.json"], {}, processes=2)
    assert words[:5] == ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.parametrize("word", ["novalue", "=3"])
def test_a_setting_without_key_or_value_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="expected key=value"):
        parse_overrides([word])


def test_another_bundle_root_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", str(bundle), "train", "bundle_root=elsewhere"]) == 2
    assert "name that folder instead" in capsys.readouterr().err


def test_an_overlay_is_laid_over_train(bundle: Path) -> None:
    assert [file.stem for file in config_files(bundle, "evaluate")] == ["train", "evaluate"]
    assert [file.stem for file in config_files(bundle, "train+evaluate")] == ["train", "evaluate"]
    assert [file.stem for file in config_files(bundle, "train")] == ["train"]


def test_unknown_names_list_what_there_is(bundle: Path) -> None:
    with pytest.raises(UserError, match="evaluate, train"):
        config_files(bundle, "trian")
    with pytest.raises(UserError, match="lvmmed_pretrain"):
        find_bundle("nothing_of_that_name")


def test_finds_shipped_bundles_by_name() -> None:
    assert (find_bundle("lvmmed_pretrain") / "configs" / "train.json").is_file()


def test_prints_and_runs(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "it's out.json"
    assert execute(["run", str(bundle), "evaluate", f"out={out}", "nested#a=[3]"]) == 0
    assert json.loads(out.read_text()) == ["evaluated", {"a": [3], "b": 2}, str(bundle)]
    words = shlex.split(capsys.readouterr().out.splitlines()[0])
    assert words[:4] == ["python", "-m", "monai.bundle", "run"]
    assert words[-4:] == ["--out", str(out), "--nested#a", "[3]"]


@pytest.mark.slow
def test_the_printed_line_does_the_same(bundle: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    out = tmp_path / "out.json"
    settings = parse_overrides([f"out={out}", "value=a,b"])
    command = bundle_command(bundle, config_files(bundle, "train"), settings)
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True, cwd=tmp_path)
    assert json.loads(out.read_text()) == ["a,b", {"a": 1, "b": 2}, str(bundle)]


def test_quiet_prints_no_command(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", str(bundle), "train", f"out={tmp_path / 'o.json'}", "--quiet"]) == 0
    assert "monai.bundle" not in capsys.readouterr().out


def test_null_overrides_a_value(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    run_module.run(str(bundle), "evaluate", [f"out={out}", "value=null"], quiet=True)
    assert json.loads(out.read_text())[0] is None


def test_an_error_inside_the_bundle_is_one_sentence(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = "value=$__import__('lvmmed_monai.files').files.read_json('missing.json', 'datalist')"
    assert execute(["run", str(bundle), "train", call]) == 2
    assert capsys.readouterr().err.strip().endswith("lvmmed: datalist not found; missing.json; check the path")


@pytest.mark.parametrize(("word", "value"), [("false", False), ("False", False), ("true", True), ("True", True)])
def test_point_26_booleans(word: str, value: bool, tmp_path: Path) -> None:
    """By ``lvmmed run`` and by MONAI's own command line, which hands "false" on as a word."""
    import fire
    from monai.bundle import run as run_bundle

    from lvmmed_monai.options import true_or_false

    assert parse_overrides([f"amp={word}"]) == {"amp": value}
    method = {"_target_": "lvmmed_monai.methods.build_method", "name": "voco", "base_gradient": "@base_gradient"}
    config = {
        "imports": ["$from pathlib import Path"],
        "base_gradient": not value,
        "method": {**method, "encoder_options": {"init_filters": 8}, "projector": [8, 4]},
        "run": [f"$Path({str(tmp_path / 'out')!r}).write_text(str(@method.base_gradient))"],
    }
    (tmp_path / "train.json").write_text(json.dumps(config))
    fire.Fire(run_bundle, command=["--config_file", str(tmp_path / "train.json"), "--base_gradient", word])
    assert (tmp_path / "out").read_text() == str(value)
    assert true_or_false(word, "amp") is value


@pytest.mark.parametrize("word", ["no", "", 0, None])
def test_point_26_other_words_are_refused(word: Any) -> None:
    from lvmmed_monai.options import true_or_false

    with pytest.raises(UserError, match="amp must be true or false"):
        true_or_false(word, "amp")
