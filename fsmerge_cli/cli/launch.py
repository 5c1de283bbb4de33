"""Runs Hydra: a composed configuration becomes one call of `merge`, a sweep one table."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.text import Text as Line

from fsmerge_cli.cli import front_sweeper
from fsmerge_cli.cli.gate import Gate, measured_in
from fsmerge_cli.cli.hydra_errors import explain, explain_cluster, explain_sweep
from fsmerge_cli.cli.hydra_version import HYDRA_MAIN
from fsmerge_cli.cli.json_output import write_json
from fsmerge_cli.cli.keys import Checkpoint, Evaluation, Output, folder_of, keys_of
from fsmerge_cli.cli.plugin_presets import store_plugins
from fsmerge_cli.cli.run_dirs import changed_sources, config_inputs, finished, report_stop
from fsmerge_cli.cli.showing import Checking, run_check, show
from fsmerge_cli.cli.sweep import codes, is_sweep, parallel_jobs, record_job
from fsmerge_cli.common.atomic import tidy
from fsmerge_cli.common.distributed import is_main, outcome, process_rank
from fsmerge_cli.common.errors import ConfigError, stop_behind
from fsmerge_cli.common.foreign_files import read_json_object
from fsmerge_cli.common.options import build
from fsmerge_cli.common.private_paths import PrivatePaths
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.common.shown import printable
from fsmerge_cli.common.streams import complain
from fsmerge_cli.reporting import terminal
from fsmerge_cli.reporting.logs import RunLog
from fsmerge_cli.training.interrupts import stop_on_signals, stop_with_parent

LAUNCH_OVERRIDES = ("hydra.", "launcher=", "sweep=")
"""Overrides that only set how the jobs of a sweep are started."""

CONFIGS = "pkg://fsmerge_cli.configs"


_checking: list[Checking] = []
"""The options where the jobs of this process are `fsmerge check`; empty for a merge."""

_launching: list[int] = []
"""The process that started the jobs; joblib gives a copy of this to its own processes."""

_as_json: list[bool] = []
"""Not empty: the result of a merge is printed as JSON."""

_gates: list[Gate] = []
"""What has to hold for the result of a merge; empty: nothing."""


_typed: list[str] = []
"""The command that the user typed; empty where it is not known."""


_repeated: list[Path] = []
"""The config.yaml of a run that is merged again."""


_notes: list[str] = []
"""What the user should know about the arguments."""


def check(arguments: Sequence[str], checking: Checking, quiet: bool = False) -> int:
    """Let Hydra compose `arguments` and inspect the merge; returns the exit code."""
    _checking[:] = [checking]
    try:
        return launch(arguments, quiet)
    finally:
        _checking.clear()


def merge_with(
    gate: Gate,
    arguments: Sequence[str],
    quiet: bool = False,
    typed: str = "",
    as_json: bool = False,
    repeated: Sequence[Path] = (),
    notes: Sequence[str] = (),
) -> int:
    """Let Hydra compose `arguments` and merge; exit code 1 where the result fails the gate.

    typed: the command as the user typed it, which a single run reports. as_json: standard output gets one JSON
    object and nothing else. repeated: the config.yaml of a run, if it is merged again. notes: for the report.
    """
    _repeated[:], _notes[:] = repeated, notes
    _gates[:], _typed[:] = [gate], [typed] if typed else []
    _as_json[:] = [True] if as_json else []
    try:
        return launch(arguments, quiet)
    finally:
        _gates.clear()
        _typed.clear()
        _as_json.clear()
        _repeated.clear()
        _notes.clear()


def launch(arguments: Sequence[str], quiet: bool = False) -> int:
    """Let Hydra compose `arguments` and run the jobs; returns the exit code. quiet: print only errors."""
    codes.clear()
    _launching[:] = [os.getpid()]
    here = process_rank()
    if here is not None and here.size > 1 and {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}:
        raise ConfigError(
            f"--multirun under torchrun: {here.size} processes would each start every job. Start one run per "
            "torchrun, or let a cluster start the processes: fsmerge merge --multirun ... hardware=slurm"
        )
    store_plugins(arguments)
    front_sweeper.register()
    with _process_of(arguments, quiet):
        try:
            _entry()
        except (HydraException, OmegaConfBaseException, RecursionError) as error:
            raise explain(error, arguments) from error
        except Exception as error:
            explained = explain_cluster(error) or explain_sweep(error, arguments)
            if explained is None:
                raise
            raise explained from error
    return max(codes, default=0)


@hydra.main(**HYDRA_MAIN, config_path=CONFIGS, config_name="merge")
def _entry(config: DictConfig) -> Any:
    """One job, in this process or, with launcher=joblib, in one that the first job starts."""
    if os.getpid() in _launching or not parallel_jobs():
        return _job(config)
    with stop_with_parent(), stop_on_signals():
        return _job(config)


def _job(config: DictConfig) -> Any:
    """One job. It never raises: Hydra would report a job's error only after all jobs of the sweep."""
    given = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # as typed, ${...} too
    texts = [str(override) for override in given] if isinstance(given, list) else []
    overrides = [text for text in texts if not text.startswith(LAUNCH_OVERRIDES)]
    label = " ".join(override.lstrip("+") for override in overrides)
    try:
        if is_sweep() and is_main():
            terminal.console(stderr=True).print(Line(label), style="bold", soft_wrap=True)
        if _checking:
            run_check(config, _checking[0])
            return record_job({"run": label, "exit_code": 0})
        evaluation = run_job(config, overrides)
        for gate in _gates:
            if is_main():
                measured = measured_in(evaluation["rows"].get("merged", {}))
                terminal.print_notes(terminal.console(stderr=True), gate.unchecked(*measured))
                gate.require("the merged model", evaluation["notes"], *measured)
        if is_sweep() and parallel_jobs() and is_main():
            terminal.console(stderr=True).print(Line(f"done: {label}"), soft_wrap=True)
    except Exception as error:
        if (stop := stop_behind(error)) is not None:
            raise stop from None
        text, code = outcome(error)
        notes = [note for note in getattr(error, "__notes__", []) if text and note not in text]
        complain(text + "".join(f"fsmerge: {printable(note)}\n" for note in notes))
        return record_job({"run": label, "exit_code": code, "error": str(error)})
    row = evaluation["rows"].get("merged", {"tasks": {}, "mean_top1": None, "joint_top1": {}})
    return record_job(
        {
            "run": label,
            "exit_code": 0,
            "tasks": {name: task["top1"] for name, task in row["tasks"].items()},
            "numbers": {name: own["pearson"] for name, own in row.get("numbers", {}).items()},
            "mean": row["mean_top1"],
            "joint": row["joint_top1"].get("softmax"),
            "seconds": sum(evaluation["cost"]["seconds"].values()),
            "folder": str(folder_of(keys_of(config))),
        }
    )


def run_job(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Call `merge` with one composed configuration; print and return the evaluation."""
    keys = keys_of(config)
    output = build(Output, keys["output"], "output")
    checkpoint = build(Checkpoint, keys["checkpoint"], "checkpoint")
    evaluation_of = build(Evaluation, keys["evaluation"], "evaluation")
    folder = folder_of(keys)
    from fsmerge_cli.runs.merge import merge  # imports torch

    tidy(folder)
    if keys["resume"] is True and (found := finished(keys, folder)) is not None:
        if is_main():
            _print(found, folder)
            terminal.console(stderr=bool(_as_json)).print(Line("already finished: nothing was run"))
        return found
    command = _command(overrides)
    private = PrivatePaths.of(keys, folder, command)
    with _progress(folder, command, keys["resume"] is True, output.trackers, private) as (progress, log):
        result = merge(
            keys["models"]["sources"],
            base=keys["models"].get("base"),
            data=keys.get("data"),
            method=keys["method"],
            hardware=keys["hardware"],
            seed=keys["seed"],
            output=folder,
            overwrite=output.overwrite,
            resume=keys["resume"],
            checkpoint_every=checkpoint.every,
            kd=evaluation_of.kd,
            dtype=output.dtype,
            license=output.license,
            progress=progress,
            command=command,
            more_inputs=config_inputs(),
            more_notes=[*_notes, *(note for path in _repeated for note in changed_sources(path.parent, keys))],
        )
        if log is None:
            return result.evaluation()
        evaluation = read_json_object(folder / "evaluation.json")
        log.finish(_final_text(evaluation, folder), evaluation)
    if not parallel_jobs():  # the tables of parallel jobs would be interleaved
        _print(evaluation, folder)
    return evaluation


def _command(overrides: Sequence[str]) -> str:
    """The command of this job: as typed, or of one job of a sweep, which then runs alone."""
    sources = HydraConfig.get().runtime.config_sources
    folders = [str(source.path) for source in sources if source.schema == "file" and source.path]
    job = ["fsmerge", "merge", *(part for folder in folders for part in ("--config-dir", folder)), *overrides]
    return _typed[0] if _typed and not is_sweep() else shlex.join(job)


def _print(evaluation: Mapping[str, Any], folder: Path) -> None:
    """The tables of a run, or its one JSON object."""
    if _as_json:
        write_json({"folder": str(folder), "evaluation": evaluation})
    else:
        show(evaluation, folder)


@contextmanager
def _progress(
    folder: Path, command: str, resume: bool, trackers: Sequence[str], private: PrivatePaths
) -> Iterator[tuple[Progress, RunLog | None]]:
    """The progress callback of a run (terminal and log), and the log; no output except on rank 0."""
    if not is_main():
        yield silent, None
        return
    run_log = RunLog(folder, command, resume=resume, trackers=trackers, private=private)
    with report_stop(folder, resume), run_log as log:
        if parallel_jobs():  # progress bars of several processes would overwrite each other
            yield log, log
            return
        with terminal.Reporter(terminal.console(stderr=True)) as reporter:

            def both(event: Event) -> None:
                log(event)
                reporter(event)

            yield both, log


def _final_text(evaluation: Mapping[str, Any], folder: Path) -> str:
    """The tables printed at the end of a run, as text for its log."""
    return terminal.text_of(lambda page: show(evaluation, folder, page))


@contextmanager
def _process_of(arguments: Sequence[str], quiet: bool) -> Iterator[None]:
    """Set sys.argv and the environment for Hydra (raise errors instead of exiting) and for --quiet."""
    argv, before = sys.argv, {**os.environ}
    sys.argv = ["fsmerge", *arguments]
    variables = {"HYDRA_FULL_ERROR": "1", **({terminal.QUIET: "1"} if quiet else {})}
    os.environ.update(variables)
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.update({name: before[name] for name in variables if name in before})
        for name in variables.keys() - before.keys():
            del os.environ[name]
