"""Optional packages: imported at first use, with a message that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from lvmmed_monai.errors import UserError

__all__ = ["optional_import"]


def optional_import(module: str, *, extra: str) -> ModuleType:
    """Import ``module``.

    Args:
        module: dotted module name.
        extra: the extra of this package that installs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{module} is not installed; it is an optional part; run: pip install 'lvmmed-monai[{extra}]'"
        ) from None
