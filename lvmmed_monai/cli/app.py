"""The entry point: registers the verbs, and turns every error into one sentence and an exit code.

0    done
1    a defect of this software
2    wrong use (`UserError`, unknown options, storage, memory)
3    work left undone because of the data (`DataError`)
130  interrupted
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn

import typer

from lvmmed_monai import __version__, log
from lvmmed_monai.cli import debug_requested
from lvmmed_monai.errors import DataError, UserError, user_error_in
from lvmmed_monai.files import storage_error

__all__ = ["VERBS", "build_app", "execute", "main"]

# Verb -> what the overview says about it.
VERBS = {
    "ingest": "DICOM studies become checked volumes and datalists",
    "check": "Read all that a datalist names; say what is wrong",
    "manifests": "Public data sets that ingest can read",
    "phantom": "Make DICOM studies of generated anatomy",
    "run": "Train, evaluate or infer with a MONAI bundle",
    "bundles": "List the MONAI bundles, or copy one",
    "report": "One HTML file from all results",
    "doctor": "What this machine can do, in ten lines",
    "demo": "All of it, from studies to report",
}

# A DataLoader worker hands its exception over as text: the sentence stands on the last line of the quoted traceback.
_WORKER_SENTENCE = re.compile(r"lvmmed_monai\.errors\.(UserError|DataError): (?P<sentence>[^\n]+)")
_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "could not create a memory")
_LONGEST_MESSAGE = 400


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"lvmmed {__version__}")
        raise typer.Exit


def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log line.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Self-supervised medical imaging with MONAI bundles: from a folder of DICOM to a trained, evaluated model."""


def build_app() -> typer.Typer:
    """The command with its verbs; each stands in the module of its name as a function of that name."""
    # Without rich: its help takes three times as long to appear.
    plain: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}
    app = typer.Typer(name="lvmmed", no_args_is_help=True, **plain)
    app.callback()(_global_options)
    for verb, summary in VERBS.items():
        app.command(verb, short_help=summary)(getattr(importlib.import_module(f"lvmmed_monai.cli.{verb}"), verb))
    return app


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _worker_error(error: BaseException) -> UserError | None:
    """The `UserError` that a DataLoader worker process raised, read from the traceback that it sent as text."""
    for link in _chain(error):
        found = _WORKER_SENTENCE.search(str(link))
        if found:
            return (DataError if found[1] == "DataError" else UserError)(found["sentence"].strip())
    return None


def _memory_error(error: BaseException) -> UserError | None:
    for link in _chain(error):
        text = str(link).lower()
        if isinstance(link, MemoryError) or (
            isinstance(link, RuntimeError) and any(sign in text for sign in _MEMORY_SIGNS)
        ):
            return UserError(
                "the memory of this machine or its GPU is full; while running this command; "
                "choose a smaller batch_size, fewer workers or a smaller image size"
            )
    return None


def _explain(error: BaseException) -> tuple[str, int]:
    """The sentence for the user and the exit code."""
    known = _worker_error(error) or user_error_in(error) or storage_error(error) or _memory_error(error)
    if known is not None:
        return str(known), known.exit_code
    text = " ".join(str(error).split())[:_LONGEST_MESSAGE]
    return f"unexpected error: {type(error).__name__}: {text}; run again with --debug and report it", 1


def _is_usage_error(error: BaseException) -> bool:
    """Whether the command line itself was wrong. Typer keeps these classes private; they are known by what they do."""
    return callable(getattr(error, "show", None)) and callable(getattr(error, "format_message", None))


def _fail(sentence: str, code: int) -> int:
    print(f"lvmmed: {sentence}", file=sys.stderr)
    return code


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code.

    Args:
        arguments: the words after ``lvmmed``; ``--debug`` may stand anywhere.
    """
    if "--debug" in arguments:
        os.environ["LVMMED_DEBUG"] = "1"  # processes started by a verb are to show theirs too
        arguments = [word for word in arguments if word != "--debug"]
    log.configure_logging(debug=debug_requested())
    try:
        answer: Any = build_app()(args=list(arguments), prog_name="lvmmed", standalone_mode=False)
    except KeyboardInterrupt:
        answer = 130
    except typer.Abort:
        return _fail("stopped at your request", 130)
    except Exception as error:
        if _is_usage_error(error):
            error.show()  # type: ignore[attr-defined]
            return int(getattr(error, "exit_code", 2))
        if debug_requested():
            raise
        return _fail(*_explain(error))
    if answer == 130:
        return _fail("interrupted; finished files are whole; the same command continues or starts again", 130)
    return answer if isinstance(answer, int) else 0


def main() -> NoReturn:
    """Entry point of ``lvmmed``."""
    code = execute(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(code)
