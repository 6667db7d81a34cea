"""Measures that MONAI lacks: Dice with a stated policy for empty targets, bootstrap intervals, probes of features."""

from __future__ import annotations

from lvmmed_monai.metrics.bootstrap import bootstrap_area_under_curve, bootstrap_interval, summarise
from lvmmed_monai.metrics.dice import dice_per_class
from lvmmed_monai.metrics.probes import (
    LinearProbe,
    area_under_curve,
    balanced_accuracy,
    knn_probe,
    linear_probe,
    logistic_regression,
    retrieval_at_k,
    standardised,
)

__all__ = [
    "LinearProbe",
    "area_under_curve",
    "balanced_accuracy",
    "bootstrap_area_under_curve",
    "bootstrap_interval",
    "dice_per_class",
    "knn_probe",
    "linear_probe",
    "logistic_regression",
    "retrieval_at_k",
    "standardised",
    "summarise",
]
