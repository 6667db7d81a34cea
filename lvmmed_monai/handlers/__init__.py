"""What happens beside the training and evaluation loops: saving, resuming, progress, results, pictures."""

from __future__ import annotations

from lvmmed_monai.handlers.checkpoint import BestModelSaver, ResumableCheckpoint
from lvmmed_monai.handlers.previews import PreviewWriter
from lvmmed_monai.handlers.progress import ProgressReporter
from lvmmed_monai.handlers.results import ResultsWriter
from lvmmed_monai.handlers.tracking import ExperimentTracker
from lvmmed_monai.handlers.training_state import TrainingState
from lvmmed_monai.handlers.weights import ModelLoader

__all__ = [
    "BestModelSaver",
    "ExperimentTracker",
    "ModelLoader",
    "PreviewWriter",
    "ProgressReporter",
    "ResultsWriter",
    "ResumableCheckpoint",
    "TrainingState",
]
