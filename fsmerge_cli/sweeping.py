"""Several jobs of one command: what each leaves behind, what a sweeper is told, and how a sweep ends."""

from __future__ import annotations

import csv
import glob
import json
import logging
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.text import Text as Line

from fsmerge_cli import report, terminal
from fsmerge_cli.distributed import is_main
from fsmerge_cli.errors import ConfigError, FsmergeError

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
        tasks = list(dict.fromkeys(name for job in jobs for name in job.get("tasks", {})))
        _write_summary(folder, jobs, tasks)
        files = [f"{folder}/summary.csv"]
        notes = []
        searched = _optuna(config) or any(WEIGHTS in job["run"] for job in jobs)
        try:
            files += _pictures(folder, jobs, tasks, searched)
        except FsmergeError as error:
            notes.append(f"note: no picture of the runs: {error}")
        console = terminal.console()
        console.print(report.sweep_table(jobs))
        for note in notes:
            console.print(Line(note), soft_wrap=True)
        console.print(Line(f"all runs: {'   '.join(files)}"), soft_wrap=True)


def _write_summary(folder: Path, jobs: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> None:
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "exit_code", *tasks, "mean", "joint", "seconds", "folder"])
        for job in jobs:
            scores = [job.get("tasks", {}).get(task) for task in tasks]
            last = [job.get(key) for key in ("mean", "joint", "seconds", "folder")]
            writer.writerow([job["run"], job["exit_code"], *scores, *last])


def _pictures(folder: Path, jobs: Sequence[Mapping[str, Any]], tasks: Sequence[str], searched: bool) -> list[str]:
    """Draw what can be drawn; the files that were written. Raises FsmergeError where that is not possible."""
    from fsmerge_cli import compare, plots  # imports torch

    done = [job for job in jobs if not job["exit_code"]]
    names = [_short(label) for label in report.distinct([job["run"] for job in done])]
    runs = [compare.read_runs([glob.escape(job["folder"])])[0] for job in done]
    points = compare.points(runs, names, "mean")
    files = []
    if searched and len(tasks) > 1 and all(len(job["tasks"]) == len(tasks) for job in done) and done:
        values = [[job["tasks"][task] for task in tasks] for job in done]
        best = plots.front(values)
        with (folder / "pareto.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["run", *tasks, "front", "folder"])
            for job, own, kept in zip(done, values, best):
                writer.writerow([job["run"], *own, kept, job["folder"]])
        files.append(f"{folder}/pareto.csv")
        methods = [str(run.evaluation["method"]) for run in runs]
        plots.plot_front(folder / "pareto.svg", tasks, list(zip(names, methods, values, best)))
        files.append(f"{folder}/pareto.svg")
    if points:
        plots.plot_cost(folder / "summary.svg", points, compare.title("mean"), compare.bound(runs, "mean"))
        files.append(f"{folder}/summary.svg")
    return files


def _short(label: str) -> str:
    """A label for a picture, its numbers to four places.

    >>> _short("method.lr=0.001234567890123 method.task_weights.1=2.0")
    'lr=0.001235 task_weights.1=2.0'
    """
    rounded = re.sub(r"\d+\.\d{5,}(e-?\d+)?", lambda found: f"{float(found.group()):.4g}", label)
    return re.sub(r"\b(?:method|data)\.(?=\w+[.=])", "", rounded)
