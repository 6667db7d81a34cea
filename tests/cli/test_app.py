"""Errors become one sentence and an exit code."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

from lvmmed_monai import __version__
from lvmmed_monai.cli import app
from lvmmed_monai.errors import DataError, UserError


@pytest.fixture(autouse=True)
def _no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LVMMED_DEBUG", "0")


@pytest.fixture
def run_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command line whose verb ``try`` raises the given error."""

    def run(error: BaseException | None, *arguments: str, answer: int | None = None) -> int:
        def attempt() -> int | None:
            if error is not None:
                raise error
            return answer

        cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        cli.callback()(app._global_options)
        cli.command("try")(attempt)
        monkeypatch.setattr(app, "build_app", lambda: cli)
        return app.execute(["try", *arguments])

    return run


def _behind(cause: BaseException, wrapper: BaseException) -> BaseException:
    wrapper.__cause__ = cause
    return wrapper


SENTENCE = "label has another shape; item 3; repair it"
WORKER = f"""Caught RuntimeError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x.py", line 1, in f
lvmmed_monai.errors.DataError: {SENTENCE}

The above exception was the direct cause of the following exception:

RuntimeError: applying transform <Load>
"""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError(SENTENCE), 2, SENTENCE),
        (DataError(SENTENCE), 3, SENTENCE),
        (_behind(UserError(SENTENCE), RuntimeError("Failed to instantiate '_target_'")), 2, SENTENCE),
        (RuntimeError(WORKER), 3, SENTENCE),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 2, "No space left on device"),
        (MemoryError(), 2, "smaller batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "smaller batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "smaller batch_size"),
        (KeyError("x"), 1, "unexpected error: KeyError: 'x'; run again with --debug"),
        (ValueError("a\nb" + "c" * 1000), 1, "unexpected error: ValueError: a bc"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 130, "stopped"),
    ],
)
def test_an_error_is_one_sentence(
    run_verb: Callable[..., int], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    assert run_verb(error) == code
    written = capsys.readouterr()
    assert words in written.err
    assert written.err.count("\n") == 1
    assert len(written.err) < 600
    assert "Traceback" not in written.err
    assert written.out == ""


def test_debug_lets_the_traceback_through(run_verb: Callable[..., int]) -> None:
    with pytest.raises(UserError):
        run_verb(UserError(SENTENCE), "--debug")


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (1, 1)])
def test_exit_code_of_a_verb(run_verb: Callable[..., int], answer: int | None, code: int) -> None:
    assert run_verb(None, answer=answer) == code


def test_exit_raised_by_a_verb(run_verb: Callable[..., int]) -> None:
    assert run_verb(typer.Exit(3)) == 3


@pytest.mark.parametrize("arguments", [["nothing"], ["report"], ["report", "--nothing", "x"]])
def test_a_wrong_command_line_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.execute(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.execute(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lvmmed {__version__}"


def test_every_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in app.VERBS:
        assert app.execute([verb, "--help"]) == 0, verb
        assert "Example" in capsys.readouterr().out, verb


def test_module_and_command_are_the_same_program() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "lvmmed_monai", "report", "/nowhere"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith("lvmmed: not a folder")
