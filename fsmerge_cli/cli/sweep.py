"""Sweeps: the recorded result of each job, the objectives of a search, and the summary at the end."""

from __future__ import annotations

import glob
import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.text import Text as Line

from fsmerge_cli.cli import sweep_folder
from fsmerge_cli.cli.front_sweeper import is_front_search
from fsmerge_cli.cli.hydra_version import register_resolver
from fsmerge_cli.cli.search_space import RATIO, WEIGHTS
from fsmerge_cli.common.atomic import write_json
from fsmerge_cli.common.distributed import is_main
from fsmerge_cli.common.errors import ConfigError, FsmergeError, OutputError, reason
from fsmerge_cli.common.foreign_files import read_json_object
from fsmerge_cli.common.output_files import write_files
from fsmerge_cli.common.shown import printable, shown
from fsmerge_cli.reporting import tables, terminal

if TYPE_CHECKING:
    from fsmerge_cli.runs.compare import RunEntry

codes: list[int] = []
"""Exit codes of the jobs of this process, which Hydra's launchers do not report."""


def _each(sources: Any, value: str) -> list[str]:
    return [value] * len(sources)


register_resolver("fsmerge.each", _each, replace=True)


def is_sweep() -> bool:
    """Whether this job is one of several."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def parallel_jobs(config: DictConfig | None = None) -> bool:
    """Whether several jobs run at the same time in this terminal."""
    hydra: Any = config.hydra if config is not None else HydraConfig.get()
    return "joblib" in str(OmegaConf.select(hydra, "launcher._target_"))


def record_job(row: Mapping[str, Any]) -> Any:
    """Write the result of a job into the folder of its sweep; returns the objective for the sweeper.

    The job itself writes it, possibly in another process or on another machine.
    """
    codes.append(row["exit_code"])
    if not is_sweep():
        return row
    objective: Any = row
    if _optuna():
        row, objective = _objectives(row)
    if is_main():
        folder = Path(HydraConfig.get().sweep.dir) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{HydraConfig.get().job.num:05d}.json"
        write_files({"": (path, partial(write_json, value=row))}, overwrite=True)
    return objective


def _optuna(config: DictConfig | None = None) -> bool:
    hydra: Any = config.hydra if config is not None else HydraConfig.get()
    return "optuna" in str(OmegaConf.select(hydra, "sweeper._target_"))


def _objectives(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """The result, and what Optuna maximises: the accuracy of every task, or their mean; None for a failed job."""
    if row["exit_code"]:
        return row, None
    direction = HydraConfig.get().sweeper.direction
    several = isinstance(direction, Sequence) and not isinstance(direction, str)
    values = [*row["tasks"].values()] if several else [row["mean"]]
    expected = len(direction) if several else 1
    if len(values) != expected or None in values:
        error = (
            f"sweep=optuna maximises {expected} accuracies, but this run measured {len(row['tasks'])}. Give every "
            "task labelled test images, or set one `maximize` per task that has them: "
            "hydra.sweeper.direction=[maximize,...]"
        )
        sys.stderr.write(f"fsmerge: error: {printable(error)}\n")
        codes[-1] = ConfigError.exit_code
        return {**row, "exit_code": ConfigError.exit_code, "error": error}, None
    return row, values if several else values[0]


def weigh(config: DictConfig, trial: Any) -> None:
    """Optuna's custom search space: the task weights relative to source 1, where the command gives no other."""
    if trial.params:
        return
    if WEIGHTS not in config.method:
        raise ConfigError(
            f"sweep=optuna: method={config.method.name} has no task weights, so there is nothing to search over. "
            "Give a range: 'method.KEY=interval(0.1,1)' (or choice(...), range(...)), or use method=fs_merge."
        )
    for i in range(len(config.models.sources)):
        low, high = (1.0, 1.0) if i == 0 else (1 / RATIO, RATIO)
        trial.suggest_float(f"++method.{WEIGHTS}.{i}", low, high, log=i > 0)


class SweepSummary(Callback):
    """Hydra callback: one table, one CSV file and one plot of all runs at the end of a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of the sweep, and delete the recorded jobs of an earlier one in it."""
        try:
            sweep_folder.start(Path(config.hydra.sweep.dir), True in (config.resume, config.output.overwrite))
        except OutputError as error:  # Hydra turns the exceptions of a callback into warnings
            raise SystemExit(error.exit_code) from error
        if _optuna(config):
            from optuna.logging import set_verbosity  # by default it logs every trial

            set_verbosity(logging.WARNING)
            logging.getLogger("hydra_plugins").setLevel(logging.CRITICAL)  # a job reports its error itself
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="optuna")  # about equal accuracies

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; write summary.csv and summary.svg, and for a search pareto.csv and pareto.svg."""
        folder = Path(config.hydra.sweep.dir)
        jobs = [read_json_object(path) for path in sweep_folder.records(folder)]
        if not jobs:
            return
        if not codes:  # the jobs ran in other processes
            codes.extend(job["exit_code"] for job in jobs)
            for job in jobs if not parallel_jobs(config) else []:
                if job["exit_code"]:
                    sys.stderr.write(f"{shown(job['run'])}\nfsmerge: error: {printable(job['error'])}\n")
        searched = _optuna(config) or is_front_search(config) or any(WEIGHTS in job["run"] for job in jobs)
        console = terminal.console()
        console.print(tables.sweep_table(jobs))  # first, because writing files may fail
        files, notes = _written(folder, jobs, searched)
        for note in notes:
            console.print(Line(f"note: {note}"), soft_wrap=True)
        if files:
            console.print(Line(f"all runs: {'   '.join(files)}"), soft_wrap=True)


def _written(folder: Path, jobs: Sequence[Mapping[str, Any]], searched: bool) -> tuple[list[str], list[str]]:
    """Write the summary files; returns the written files, and notes on those that could not be written."""
    files: list[str] = []
    notes: dict[str, None] = {}

    def write(name: str, how: Callable[[Path], None]) -> None:
        try:
            sweep_folder.write(folder / name, how)
            files.append(f"{folder}/{name}")
        except (OSError, FsmergeError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            unwritten = (
                f"{folder}/{name} could not be written: {reason(cause)}" if isinstance(cause, OSError) else ""
            )
            notes[unwritten or f"no plot of the runs: {error}"] = None

    tasks = list(dict.fromkeys(name for job in jobs for name in job.get("tasks", {})))
    done = [job for job in jobs if not job["exit_code"]]
    write("summary.csv", partial(_summary, jobs, tasks))
    if searched and len(tasks) > 1 and done and all(len(job["tasks"]) == len(tasks) for job in done):
        write("pareto.csv", partial(_front, done, tasks))
        write("pareto.svg", partial(_front_plot, done, tasks))
    if any(job["mean"] is not None and job["seconds"] for job in done):
        write("summary.svg", partial(_plot, done))
    return files, list(notes)


def _summary(jobs: Sequence[Mapping[str, Any]], tasks: Sequence[str], path: Path) -> None:
    numbers = list(dict.fromkeys(name for job in jobs for name in job.get("numbers", {})))
    rows = [[job["run"], job["exit_code"], *(job.get("tasks", {}).get(task) for task in tasks)] for job in jobs]
    rows = [[*row, *(job.get("numbers", {}).get(name) for name in numbers)] for row, job in zip(rows, jobs)]
    ends = [[job.get(key) for key in ("mean", "joint", "seconds", "folder")] for job in jobs]
    titles = [*tasks, *(f"{name} (Pearson)" for name in numbers)]
    header = ["run", "exit_code", *titles, "mean", "joint", "seconds", "folder"]
    tables.write_cells(path, [header, *([*row, *end] for row, end in zip(rows, ends))])


def _front(done: Sequence[Mapping[str, Any]], tasks: Sequence[str], path: Path) -> None:
    from fsmerge_cli.reporting import plots

    values = [[job["tasks"][task] for task in tasks] for job in done]
    rows = [[job["run"], *own, kept, job["folder"]] for job, own, kept in zip(done, values, plots.front(values))]
    tables.write_cells(path, [["run", *tasks, "front", "folder"], *rows])


def _front_plot(done: Sequence[Mapping[str, Any]], tasks: Sequence[str], path: Path) -> None:
    from fsmerge_cli.reporting import plots

    values = [[job["tasks"][task] for task in tasks] for job in done]
    methods = [str(run.evaluation["method"]) for run in _runs(done)]
    plots.plot_front(path, tasks, list(zip(_names(done), methods, values, plots.front(values))), ".svg")


def _plot(done: Sequence[Mapping[str, Any]], path: Path) -> None:
    from fsmerge_cli.reporting import plots
    from fsmerge_cli.runs import compare

    runs = _runs(done)
    points = compare.points(runs, _names(done), "mean")
    plots.plot_cost(path, points, compare.title("mean"), compare.bound(runs, "mean"), ".svg")


def _runs(done: Sequence[Mapping[str, Any]]) -> list[RunEntry]:
    from fsmerge_cli.runs import compare  # imports torch

    return [compare.read_runs([glob.escape(job["folder"])])[0] for job in done]


def _names(done: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_short(label) for label in tables.distinct([job["run"] for job in done])]


def _short(label: str) -> str:
    """A short label for a plot, with numbers rounded to four digits.

    >>> _short("method.lr=0.001234567890123 method.task_weights.1=2.0")
    'lr=0.001235 task_weights.1=2.0'
    """
    rounded = re.sub(r"\d+\.\d{5,}(e-?\d+)?", lambda found: f"{float(found.group()):.4g}", label)
    return re.sub(r"\b(?:method|data)\.(?=\w+[.=])", "", rounded)
