"""``lvmmed run``: prints the ``python -m monai.bundle run`` line of a bundle and runs it."""

from __future__ import annotations

import ast
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lvmmed_monai.errors import UserError

__all__ = ["bundle_command", "config_files", "find_bundle", "parse_overrides", "run"]

# Wrappers that announce themselves on stdout at every run; the command line above them says more.
_ANNOUNCERS = ("monai.bundle.scripts", "monai.bundle.workflows")
# What engines say at every start and end of every epoch and validation; the progress lines say more.
_ENGINE_CHATTER = ("Engine run ", "Epoch[")
# Marks of MONAI's configuration language; such values are passed on as they stand.
_EXPRESSION_MARKS = ("$", "@", "%")


def run(
    bundle: Annotated[str, typer.Argument(help="Name or folder of a bundle.")],
    config: Annotated[
        str, typer.Argument(help="train, evaluate, inference, multi_gpu_train, or several joined by '+'.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings, as key=value.", metavar="KEY=VALUE")] = None,
    processes: Annotated[int, typer.Option(help="Training processes, one per GPU (starts torchrun if above 1).")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
) -> None:
    """Run a configuration of a MONAI bundle; the equivalent MONAI command is printed first.

    Example: lvmmed run lvmmed_pretrain train datalist=data/datalist.json output_dir=runs/pretrain
    """
    folder = find_bundle(bundle)
    files = config_files(folder, config)
    settings = parse_overrides(overrides or [])
    if "bundle_root" in settings:
        raise UserError("bundle_root is the folder of the bundle; lvmmed run; name that folder instead of the bundle")
    command = bundle_command(folder, files, settings, processes)
    if not quiet:
        print(shlex.join(command), flush=True)
    # MONAI shows with tqdm how far a data set is loaded.
    os.environ.setdefault(*(("TQDM_DISABLE", "1") if quiet else ("TQDM_MININTERVAL", "2")))
    if processes > 1:
        raise typer.Exit(subprocess.run([sys.executable, *command[1:]]).returncode)
    _run_here(folder, files, settings, quiet)


def _run_here(folder: Path, files: list[Path], settings: dict[str, Any], quiet: bool) -> None:
    from lvmmed_monai.cli import debug_requested
    from lvmmed_monai.cli._memory import limit_memory
    from lvmmed_monai.log import configure_logging

    configure_logging(quiet=quiet, debug=debug_requested())
    limit_memory()
    from monai.bundle import run as run_bundle

    if not debug_requested():
        for name in _ANNOUNCERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: not record.getMessage().startswith(_ENGINE_CHATTER))
    # The bundle's logging.conf is for MONAI's own command; here --quiet and --debug decide.
    run_bundle(config_file=_one_or_list(files), bundle_root=str(folder), **{"logging_file": False, **settings})


def find_bundle(name: str) -> Path:
    """The absolute folder of a bundle.

    Args:
        name: a folder with ``configs/``, or the name of a bundle of this checkout or installation.

    Raises:
        UserError: there is none.
    """
    from lvmmed_monai.cli.bundles import bundle_folders

    folder = Path(name)
    if (folder / "configs").is_dir():
        return folder.resolve()
    shipped = {path.name: path for path in bundle_folders()}
    if name in shipped:
        return shipped[name]
    raise UserError(
        f"no bundle {name!r}; neither a folder with configs/ nor one of {', '.join(sorted(shipped))}; check the name"
    )


def config_files(folder: Path, names: str) -> list[Path]:
    """The files of a configuration, in the order in which MONAI merges them.

    A configuration without ``bundle_root`` is not complete on its own: it is laid over ``train``.

    Args:
        folder: the bundle.
        names: names of files in ``configs/`` without suffix, joined by ``+``.

    Raises:
        UserError: a file is missing.
    """
    from lvmmed_monai.files import read_json

    files = [folder / "configs" / f"{name}.json" for name in names.split("+")]
    for file in files:
        if not file.is_file():
            known = sorted(path.stem for path in file.parent.glob("*.json") if path.stem != "metadata")
            raise UserError(f"no configuration {file.stem!r}; {file.parent}; choose from {', '.join(known)}")
    if "bundle_root" not in read_json(files[0], "configuration"):
        files.insert(0, folder / "configs" / "train.json")
    return files


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """``key=value`` words as MONAI's command line reads them; JSON's ``true``, ``false`` and ``null`` work too.

    MONAI drops a ``None`` that comes from the command line, so ``null`` becomes the expression ``$None``.

    Raises:
        UserError: a word has no key or no ``=``.
    """
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"expected key=value, got {word!r}; in the settings of the run; for example max_epochs=10")
        value = _parse_value(text)
        settings[key] = "$None" if value is None else value
    return settings


def _parse_value(text: str) -> Any:
    if text.startswith(_EXPRESSION_MARKS):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return text


def bundle_command(folder: Path, files: list[Path], settings: dict[str, Any], processes: int = 1) -> list[str]:
    """The words of the MONAI command that does the same from any working directory."""
    starter = ["python", "-m"]
    if processes > 1:
        starter += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    config = str(_one_or_list(files))
    words = [*starter, "monai.bundle", "run", "--config_file", config, "--bundle_root", str(folder)]
    for key, value in settings.items():
        words += [f"--{key}", _as_argument(value)]
    return words


def _one_or_list(files: list[Path]) -> str | list[str]:
    return str(files[0]) if len(files) == 1 else [str(file) for file in files]


def _as_argument(value: Any) -> str:
    """A word that MONAI's command line (fire) reads back as ``value``."""
    from fire.parser import DefaultParseValue

    text = str(value)
    return text if DefaultParseValue(text) == value else repr(value)
