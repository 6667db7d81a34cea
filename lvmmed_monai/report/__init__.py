"""One self-contained HTML file from the result files of ingest, training and evaluation."""

from __future__ import annotations

from lvmmed_monai.report.build import build_report

__all__ = ["build_report"]
