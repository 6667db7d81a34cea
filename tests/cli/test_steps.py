"""Steps run once, go on after an interruption, and say what failed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lvmmed_monai.cli import _steps
from lvmmed_monai.cli._steps import Step, run_steps
from lvmmed_monai.errors import DataError, UserError


class Commands:
    """Stands for the processes: remembers their words, makes what they name, answers with the codes given."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.codes: dict[str, int] = {}

    def __call__(self, words: list[str], **_: object) -> SimpleNamespace:
        name = words[-1]
        self.ran.append(name)
        code = self.codes.get(Path(name).name, 0)
        if code == 0:
            Path(name).mkdir(exist_ok=True)
        return SimpleNamespace(returncode=code)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    fake = Commands()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[Step]]:
    def steps(*names: str, option: str = "", continues: bool = False) -> list[Step]:
        def step(name: str) -> Step:
            words = [["make", option, str(tmp_path / name)]]
            return Step(name, f"Make {name}", lambda: words, [tmp_path / name], continues)

        return [step(name) for name in names]

    return steps


def test_shows_title_number_and_command(
    commands: Commands, make: Callable[..., list[Step]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_steps(make("a", "b"), tmp_path / "state")
    text = capsys.readouterr().out
    assert "[step 1 of 2] Make a  (so far 0 min 00 s)" in text
    assert f"$ lvmmed make '' {tmp_path / 'b'}" in text


def test_what_is_done_is_kept(commands: Commands, make: Callable[..., list[Step]], tmp_path: Path) -> None:
    first = run_steps(make("a", "b"), tmp_path / "state")
    commands.ran.clear()
    assert run_steps(make("a", "b"), tmp_path / "state") == first
    assert commands.ran == []


def test_a_changed_command_runs_again_and_all_after_it(
    commands: Commands, make: Callable[..., list[Step]], tmp_path: Path
) -> None:
    run_steps(make("a") + make("b") + make("c"), tmp_path / "state")
    commands.ran.clear()
    (tmp_path / "b" / "stale").touch()
    run_steps(make("a") + make("b", option="x") + make("c"), tmp_path / "state")
    assert [Path(name).name for name in commands.ran] == ["b", "c"]
    assert not (tmp_path / "b" / "stale").exists()


def test_a_removed_output_is_made_again(commands: Commands, make: Callable[..., list[Step]], tmp_path: Path) -> None:
    run_steps(make("a"), tmp_path / "state")
    (tmp_path / "a").rmdir()
    run_steps(make("a"), tmp_path / "state")
    assert len(commands.ran) == 2


@pytest.mark.parametrize("continues", [True, False])
def test_an_interrupted_step_goes_on_from_its_own_outputs(
    commands: Commands, make: Callable[..., list[Step]], tmp_path: Path, continues: bool
) -> None:
    commands.codes["a"] = 130
    with pytest.raises(KeyboardInterrupt):
        run_steps(make("a", continues=continues), tmp_path / "state")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "half").touch()
    commands.codes.clear()
    run_steps(make("a", continues=continues), tmp_path / "state")
    assert (tmp_path / "a" / "half").exists() == continues


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (1, UserError, "reason above"),
        (2, UserError, "reason above"),
        (3, DataError, "reason above"),
        (-9, UserError, "memory is full"),
    ],
)
def test_a_failed_command_stops_with_a_sentence(
    commands: Commands, make: Callable[..., list[Step]], tmp_path: Path, code: int, kind: type[UserError], words: str
) -> None:
    commands.codes["a"] = code
    with pytest.raises(kind, match=words) as caught:
        run_steps(make("a", "b"), tmp_path / "state")
    assert type(caught.value) is kind
    assert "step 1 of 2, Make a" in str(caught.value)
    assert len(commands.ran) == 1


def test_minutes() -> None:
    assert _steps.minutes(185.7) == "3 min 05 s"
