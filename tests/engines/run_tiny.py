"""A training process to be killed: ``run_tiny.py FOLDER WORKERS STEP_SECONDS``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from tiny_method import TinyMethod, build

from lvmmed_monai.handlers import ResultsWriter, ResumableCheckpoint


def main() -> None:
    folder, workers, step_seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    handlers = [
        ResumableCheckpoint(folder / "checkpoint.pt", interval_steps=7),
        ResultsWriter(folder / "results.json", "pretraining", "tiny", seed=3),
    ]
    method = TinyMethod(step_seconds=step_seconds)
    outputs = {"encoder_path": folder / "encoder.pt", "output_dir": folder}
    build(method, epochs=4, workers=workers, handlers=handlers, **outputs).run()


if __name__ == "__main__":
    main()
