"""Several jobs of one command: what each leaves behind, what a sweeper is told, and how a sweep ends."""

from __future__ import annotations

import csv
import glob
import json
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

from fsmerge_cli.common.distributed import is_main
from fsmerge_cli.common.errors import ConfigError, FsmergeError
from fsmerge_cli.reporting import tables, terminal

if TYPE_CHECKING:
    from fsmerge_cli.runs.compare import RunEntry

codes: list[int] = []
"""Exit codes of the jobs of this process; Hydra's launchers give a sweep no other way to report them."""

WEIGHTS = "task_weights"
RATIO = 16.0
"""How much more, or less, than source 1's task another one may weigh in a search."""


def _each(sources: Any, value: str) -> list[str]:
    return [value] * len(sources)


OmegaConf.register_new_resolver("fsmerge.each", _each, replace=True)


def is_sweep() -> bool:
    """Whether this job is one of several."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def side_by_side(config: DictConfig | None = None) -> bool:
    """Whether jobs share this terminal with others that run at the same time."""
    hydra: Any = config.hydra if config is not None else HydraConfig.get()
    return "joblib" in str(OmegaConf.select(hydra, "launcher._target_"))


def ended(row: Mapping[str, Any]) -> Any:
    """Keep a job's outcome in the sweep's folder; what its sweeper is to be told.

    Written by the job itself, which may be in another process or on another machine.
    """
    codes.append(row["exit_code"])
    if not is_sweep():
        return row
    told: Any = row
    if _optuna():
        row, told = _objectives(row)
    if is_main():
        folder = Path(HydraConfig.get().sweep.dir) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{HydraConfig.get().job.num:05d}.json"
        path.write_text(json.dumps(row, indent=2) + "\n")
    return told


def _optuna(config: DictConfig | None = None) -> bool:
    hydra: Any = config.hydra if config is not None else HydraConfig.get()
    return "optuna" in str(OmegaConf.select(hydra, "sweeper._target_"))


def _objectives(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """The outcome, and what Optuna maximises: every task's accuracy, or their mean; None of a job that failed."""
    if row["exit_code"]:
        return row, None
    direction = HydraConfig.get().sweeper.direction
    several = isinstance(direction, Sequence) and not isinstance(direction, str)
    values = [*row["tasks"].values()] if several else [row["mean"]]
    wanted = len(direction) if several else 1
    if len(values) != wanted or None in values:
        error = (
            f"sweep=optuna looks for {wanted} accuracies, and this run measured {len(row['tasks'])}. Give every "
            "task labelled test images, or one `maximize` per one that has: hydra.sweeper.direction=[maximize,...]"
        )
        sys.stderr.write(f"fsmerge: error: {error}\n")
        codes[-1] = ConfigError.exit_code
        return {**row, "exit_code": ConfigError.exit_code, "error": error}, None
    return row, values if several else values[0]


def weigh(config: DictConfig, trial: Any) -> None:
    """Optuna's hook: weights of the tasks relative to source 1's, where the command searches over nothing else."""
    if trial.params:
        return
    if WEIGHTS not in config.method:
        raise ConfigError(
            f"sweep=optuna: method={config.method.name} has no task weights, so there is nothing to search over. "
            "Give a range: 'method.KEY=interval(0.1,1)' (or choice(...), range(...)), or take method=fs_merge."
        )
    for i in range(len(config.models.sources)):
        low, high = (1.0, 1.0) if i == 0 else (1 / RATIO, RATIO)
        trial.suggest_float(f"++method.{WEIGHTS}.{i}", low, high, log=i > 0)


class SweepSummary(Callback):
    """Hydra callback: one table, one CSV and one picture of all runs at the end of a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget the jobs of an earlier sweep into the same folder."""
        for path in (Path(config.hydra.sweep.dir) / "jobs").glob("*.json"):
            path.unlink()
        if _optuna(config):
            from optuna.logging import set_verbosity  # its default tells every trial

            set_verbosity(logging.WARNING)
            logging.getLogger("hydra_plugins").setLevel(logging.CRITICAL)  # a job tells its error itself
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="optuna")  # of equal accuracies

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table; write summary.csv and summary.svg, of a search pareto.csv and pareto.svg."""
        folder = Path(config.hydra.sweep.dir)
        jobs = [json.loads(path.read_text()) for path in sorted((folder / "jobs").glob("*.json"))]
        if not jobs:
            return
        if not codes:  # the jobs ran in other processes
            codes.extend(job["exit_code"] for job in jobs)
            for job in jobs if not side_by_side(config) else []:
                sys.stderr.write(f"{job['run']}\nfsmerge: error: {job['error']}\n" if job["exit_code"] else "")
        searched = _optuna(config) or any(WEIGHTS in job["run"] for job in jobs)
        console = terminal.console()
        console.print(tables.sweep_table(jobs))  # first: what follows may fail
        files, notes = _written(folder, jobs, searched)
        for note in notes:
            console.print(Line(f"note: {note}"), soft_wrap=True)
        if files:
            console.print(Line(f"all runs: {'   '.join(files)}"), soft_wrap=True)


def _written(folder: Path, jobs: Sequence[Mapping[str, Any]], searched: bool) -> tuple[list[str], list[str]]:
    """Write what can be written; the files that are there now, and why others are not."""
    files: list[str] = []
    notes: dict[str, None] = {}

    def write(name: str, how: Callable[[Path], None]) -> None:
        try:
            how(folder / name)
            files.append(f"{folder}/{name}")
        except OSError as error:
            notes[f"{folder}/{name} could not be written: {error.strerror or error}"] = None
        except FsmergeError as error:
            notes[f"no picture of the runs: {error}"] = None

    tasks = list(dict.fromkeys(name for job in jobs for name in job.get("tasks", {})))
    done = [job for job in jobs if not job["exit_code"]]
    write("summary.csv", partial(_summary, jobs, tasks))
    if searched and len(tasks) > 1 and done and all(len(job["tasks"]) == len(tasks) for job in done):
        write("pareto.csv", partial(_front, done, tasks))
        write("pareto.svg", partial(_front_picture, done, tasks))
    if any(job["mean"] is not None and job["seconds"] for job in done):
        write("summary.svg", partial(_picture, done))
    return files, list(notes)


def _summary(jobs: Sequence[Mapping[str, Any]], tasks: Sequence[str], path: Path) -> None:
    rows = [[job["run"], job["exit_code"], *(job.get("tasks", {}).get(task) for task in tasks)] for job in jobs]
    ends = [[job.get(key) for key in ("mean", "joint", "seconds", "folder")] for job in jobs]
    header = ["run", "exit_code", *tasks, "mean", "joint", "seconds", "folder"]
    _write_csv(path, [header, *([*row, *end] for row, end in zip(rows, ends))])


def _front(done: Sequence[Mapping[str, Any]], tasks: Sequence[str], path: Path) -> None:
    from fsmerge_cli.reporting import plots

    values = [[job["tasks"][task] for task in tasks] for job in done]
    rows = [[job["run"], *own, kept, job["folder"]] for job, own, kept in zip(done, values, plots.front(values))]
    _write_csv(path, [["run", *tasks, "front", "folder"], *rows])


def _front_picture(done: Sequence[Mapping[str, Any]], tasks: Sequence[str], path: Path) -> None:
    from fsmerge_cli.reporting import plots

    values = [[job["tasks"][task] for task in tasks] for job in done]
    methods = [str(run.evaluation["method"]) for run in _runs(done)]
    plots.plot_front(path, tasks, list(zip(_names(done), methods, values, plots.front(values))))


def _picture(done: Sequence[Mapping[str, Any]], path: Path) -> None:
    from fsmerge_cli.reporting import plots
    from fsmerge_cli.runs import compare

    runs = _runs(done)
    points = compare.points(runs, _names(done), "mean")
    plots.plot_cost(path, points, compare.title("mean"), compare.bound(runs, "mean"))


def _runs(done: Sequence[Mapping[str, Any]]) -> list[RunEntry]:
    from fsmerge_cli.runs import compare  # imports torch

    return [compare.read_runs([glob.escape(job["folder"])])[0] for job in done]


def _names(done: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_short(label) for label in tables.distinct([job["run"] for job in done])]


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _short(label: str) -> str:
    """A label for a picture, its numbers to four places.

    >>> _short("method.lr=0.001234567890123 method.task_weights.1=2.0")
    'lr=0.001235 task_weights.1=2.0'
    """
    rounded = re.sub(r"\d+\.\d{5,}(e-?\d+)?", lambda found: f"{float(found.group()):.4g}", label)
    return re.sub(r"\b(?:method|data)\.(?=\w+[.=])", "", rounded)
