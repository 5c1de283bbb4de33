"""Experiment trackers: TensorBoard, Weights & Biases and MLflow behind one interface.

A tracker receives every value of every event at its step, and the accuracies at the end. To add one: a class with
`add` and `close`, and one line in TRACKERS.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fsmerge_cli.common.errors import ConfigError, reason
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.shown import shown

PROJECT = "fsmerge"
"""Project or experiment where the environment names no other (WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME)."""

LOG = logging.getLogger("fsmerge_cli.run")

ODD = re.compile(r"[^\w\-./ ]")
"""Characters that MLflow does not take in the name of a metric."""


class Tracker(Protocol):
    """Where values go."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Store the values of one step, by name."""

    def close(self, failed: bool = False) -> None:
        """Send and close, as a run that failed or not; it may be called twice."""


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer: Any = SummaryWriter(log_dir=str(folder))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """As scalars."""
        for tag, value in values.items():
            self._writer.add_scalar(shown(tag).replace(" ", "_"), value, step)

    def close(self, failed: bool = False) -> None:
        """Flush the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb, set up by its own environment variables (WANDB_PROJECT, WANDB_MODE, WANDB_DIR)."""

    def __init__(self, name: str, folder: Path) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run: Any = wandb.init(project=project, name=name, settings=wandb.Settings(silent=True))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """At the step of their phase: wandb's own step cannot go back, and every phase starts at 1."""
        for phase in {tag.split("/")[0] for tag in values}:
            own = {tag: value for tag, value in values.items() if tag.split("/")[0] == phase}
            self._run.log({**own, f"{phase}/step": step})

    def close(self, failed: bool = False) -> None:
        """Finish the run."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, set up by its own environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME)."""

    def __init__(self, name: str, folder: Path) -> None:
        import mlflow
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(wanted)
        experiment = found.experiment_id if found else self._client.create_experiment(wanted)
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        self._metric: Any = mlflow.entities.Metric
        self._open = True

    def add(self, values: Mapping[str, float], step: int) -> None:
        """As metrics."""
        import time

        now = int(1000 * time.time())
        metrics = [self._metric(ODD.sub("_", tag), float(value), now, step) for tag, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, failed: bool = False) -> None:
        """End the run."""
        if self._open:
            self._client.set_terminated(self._id, "FAILED" if failed else None)
            self._open = False


TRACKERS: dict[str, tuple[str, Callable[[str, Path], Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "mlflow": ("mlflow", MLflow),
}
"""By the key in `output`: the package that is imported and installed, and the tracker."""


def require(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in names:
        package = TRACKERS[name][0]
        if find_spec(package) is None:
            raise ConfigError(
                f"output.{name}=true needs the package {package}, which is not installed. Install it: "
                f"pip install {package}"
            )


class Tracking:
    """Passes events to trackers, which are created at the first value. name: of the run. folder: of event files.

    Raises ConfigError where a tracker cannot be created. One that fails later (its server is gone) gets no further
    values, which the log says: it does not end a training.
    """

    def __init__(self, names: Sequence[str], name: str, folder: Path) -> None:
        self._names, self._name, self._folder = tuple(names), name, folder
        self._trackers: list[Tracker] | None = None
        self._last: dict[str, tuple[int, int]] = {}
        self._before: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Write the values of one event at its step. If a phase restarts, its steps continue after the last one.

        Events without values count as well: they may stand for steps of an earlier process.
        """
        last, total = self._last.get(event.phase, (0, 0))
        if event.done <= last or last == total:
            self._before[event.phase] = self._before.get(event.phase, 0) + last
        self._last[event.phase] = event.done, event.total
        step = self._before.get(event.phase, 0) + event.done
        if event.values:
            self._add({f"{event.phase}/{name}": value for name, value in event.values.items()}, step)

    def final(self, evaluation: Mapping[str, Any]) -> None:
        """Write the accuracies of the merged model and of all other rows."""
        for name, row in evaluation["rows"].items():
            found = {f"top1 {task}/{name}": values["top1"] for task, values in row["tasks"].items()}
            found |= {f"pearson {task}/{name}": own["pearson"] for task, own in row.get("numbers", {}).items()}
            found |= {
                f"top1 mean/{name}": row["mean_top1"],
                f"top1 joint/{name}": row["joint_top1"].get("softmax"),
            }
            self._add({tag: value for tag, value in found.items() if value is not None}, 0)

    def _add(self, values: Mapping[str, float], step: int) -> None:
        if self._trackers is None:
            self._trackers = []
            for name in self._names:
                self._trackers.append(self._created(name))
        for tracker in [*self._trackers]:
            try:
                tracker.add(values, step)
            except Exception as error:  # of another package
                self._trackers.remove(tracker)
                LOG.warning("%s gets no further values: %s", type(tracker).__name__, reason(error))

    def _created(self, name: str) -> Tracker:
        try:
            return TRACKERS[name][1](self._name, self._folder / name)
        except Exception as error:  # of another package: no login, no server
            raise ConfigError(
                f"output.{name}=true: {TRACKERS[name][0]} cannot start a run ({reason(error)}). Set it up by its "
                f"own environment variables, or remove output.{name}=true."
            ) from None

    def close(self, failed: bool = False) -> None:
        """Close all trackers."""
        for tracker in self._trackers or ():
            try:
                tracker.close(failed)
            except Exception as error:  # of another package
                LOG.warning("%s cannot be closed: %s", type(tracker).__name__, reason(error))
        self._trackers = []
