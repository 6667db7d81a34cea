"""``lvmmed bundles``: list the bundles, copy one for use, and (for developers) generate their configurations."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from lvmmed_monai.cli._bundle_files import (
    build_bundle,
    bundle_folders,
    bundles_root,
    copy_bundle,
    describe_bundle,
)
from lvmmed_monai.errors import UserError

__all__ = ["Action", "bundle_folders", "bundles"]


class Action(str, Enum):  # noqa: UP042  (Typer shows the values of a str enumeration)
    """What to do with the bundles."""

    list = "list"
    copy = "copy"
    build = "build"


def bundles(
    action: Annotated[Action, typer.Argument(help="list, copy, or build (developers: from bundles/_shared).")],
    name: Annotated[str | None, typer.Argument(help="copy: which bundle.")] = None,
    destination: Annotated[Path | None, typer.Argument(help="copy: where to.", metavar="DEST")] = None,
    datalist: Annotated[
        Path | None, typer.Option(help="copy: take labels and modality from this segmentation datalist.")
    ] = None,
) -> None:
    """List the MONAI bundles, copy one, or generate their configurations.

    Example: lvmmed bundles copy lvmmed_segmentation_2d work/ --datalist data/datalist.json
    """
    if action is Action.list:
        for folder in bundle_folders():
            print(f"{folder.name:28s} {describe_bundle(folder)}")
    elif action is Action.copy:
        if name is None or destination is None:
            raise UserError("copy needs a bundle and a folder; lvmmed bundles copy NAME DEST; name both")
        print(copy_bundle(name, destination, datalist))
    else:
        _build_all()


def _build_all() -> None:
    for params in sorted(bundles_root().glob("*/params.json")):
        changed = build_bundle(params.parent)
        print(f"{params.parent.name}: {', '.join(path.name for path in changed) or 'unchanged'}")
