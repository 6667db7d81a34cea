"""Logging for commands: plain lines on stderr, without identifiers and without other packages' chatter."""

from __future__ import annotations

import logging
import warnings

__all__ = ["configure_logging"]

# Each of these repeats one harmless notice at every file or every configuration that is read.
_CHATTER = (
    "monai.data.nvimgcodec_pydicom_plugin",
    "monai.bundle.config_parser",
    "nibabel.global",
    "highdicom",
    "pydicom",
)


def configure_logging(*, quiet: bool = False, debug: bool = False) -> None:
    """Set up the root logger of a command; libraries and modules only call ``logging.getLogger(__name__)``."""
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", force=True)
    if debug:
        return
    for name in _CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(monai|pydicom|highdicom)(\.|$)")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(monai|torch|ignite)(\.|$)")
