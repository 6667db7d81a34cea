"""Curves and settings of a pre-training in MLflow, on this machine unless the user names a server."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ignite.engine import Events

from lvmmed_monai._optional import optional_import
from lvmmed_monai.errors import UserError

__all__ = ["TRACKERS", "ExperimentTracker"]

PathLike = str | os.PathLike[str]
# Points of a curve that are sent at most: every step of a long run would take longer than the step.
_POINTS = 500


class ExperimentTracker:
    """Tracks a `Pretrainer`: numbers of its steps, monitors, and the settings that a resume compares.

    A run that is continued goes on in the tracker, too, which finds it by the output folder. No data, paths or weights
    are sent.

    Args:
        kind: a key of `TRACKERS`: "none" or "mlflow".
        folder: output folder of the run; without ``uri`` the database ``mlflow.db`` lies in it.
        name: of the experiment, e.g. the bundle's name.
        uri: of an MLflow server or a database, e.g. ``http://host:5000`` or ``sqlite:////data/mlflow.db``. As in
            MLflow, the environment variable ``MLFLOW_TRACKING_URI`` goes before it.

    Raises:
        UserError: no such tracker; when attached: it is not installed, or the URI is of a kind that it does not take.
    """

    def __init__(self, kind: str, folder: PathLike, name: str, uri: str | None = None) -> None:
        if kind not in TRACKERS:
            raise UserError(f"unknown tracking {kind!r}; train#handlers; choose one of {', '.join(TRACKERS)}")
        self.kind, self.folder, self.name, self.uri = kind, Path(folder), name, uri

    def attach(self, engine: Any) -> None:
        """Attach to a `Pretrainer`; only the process that writes tracks."""
        if engine.is_writer:
            TRACKERS[self.kind](self, engine)

    def _nothing(self, engine: Any) -> None:
        """Track nowhere."""

    def _mlflow(self, engine: Any) -> None:
        # MLflow reports its own use to its makers unless told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        optional_import("mlflow", extra="mlflow")
        from monai.handlers import MLFlowHandler

        interval = max(1, engine.total_steps // _POINTS)
        try:
            handler = MLFlowHandler(
                tracking_uri=self.uri or f"sqlite:///{(self.folder / 'mlflow.db').resolve()}",
                iteration_log=lambda engine, step: step % interval == 0,
                epoch_log=False,
                output_transform=lambda output: output,
                experiment_name=self.name,
                run_name=hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:12],
                experiment_param={key: _without_paths(value) for key, value in engine.settings.items()},
                global_epoch_transform=lambda epoch: engine.state.iteration,
            )
        except ValueError as error:
            raise UserError(
                f"MLflow does not take this tracking_uri ({' '.join(str(error).split())[:120]}); train#handlers; "
                "use http://, https:// or sqlite:///"
            ) from None

        def finish(engine: Any) -> None:
            handler.epoch_completed(engine)
            # A run that stopped before its end is continued by the next start.
            if engine.state.iteration >= engine.total_steps:
                handler.close()

        handler.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, handler.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, finish)


def _without_paths(value: Any) -> str:
    """A setting as text of a length that MLflow keeps, without places on this machine."""
    return re.sub(r"""[^\s'"]*[/\\][^\s'"]*""", "PATH", str(value))[:500]


#: Trackers by the name that ``tracking`` of a configuration gives.
TRACKERS: dict[str, Callable[[ExperimentTracker, Any], None]] = {
    "none": ExperimentTracker._nothing,
    "mlflow": ExperimentTracker._mlflow,
}
