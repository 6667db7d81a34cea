"""``python -m lvmmed_monai VERB`` does the same as ``lvmmed VERB``."""

from __future__ import annotations

import sys

from lvmmed_monai.cli.app import main

if __name__ == "__main__":
    # Results files and usage messages quote the command as the user would type it.
    sys.argv[0] = "lvmmed"
    main()
