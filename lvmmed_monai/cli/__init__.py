"""The command ``lvmmed``: one module a verb, each thin (parse, call, print), with imports inside the functions."""

from __future__ import annotations

import os

__all__ = ["debug_requested"]


def debug_requested() -> bool:
    """Whether ``--debug`` (or ``LVMMED_DEBUG=1``) asked for tracebacks and every log line."""
    return os.environ.get("LVMMED_DEBUG", "0") not in ("", "0")
