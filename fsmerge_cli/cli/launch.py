"""Where Hydra stops: a composed configuration becomes one call of `merge`, a sweep one table."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.text import Text as Line

from fsmerge_cli.cli.hydra_errors import explain, explain_cluster
from fsmerge_cli.cli.run_dirs import default_folder, finished
from fsmerge_cli.cli.sweep import codes, ended, is_sweep, side_by_side
from fsmerge_cli.common.distributed import is_main, outcome, place
from fsmerge_cli.common.errors import ConfigError, MismatchError, unknown
from fsmerge_cli.common.options import FORBID, Flag, Positive, Text, build, refuse_code
from fsmerge_cli.common.progress import Event, Progress, silent
from fsmerge_cli.reporting import tables, terminal
from fsmerge_cli.reporting.logs import RunLog

TOP = ("models", "data", "method", "hardware", "seed", "resume", "checkpoint", "evaluation", "output")
UNTOLD = ("hydra.", "launcher=", "sweep=")
"""Overrides that say how the jobs of a sweep are started, and nothing about any of them."""

CONFIGS = "pkg://fsmerge_cli.configs"


@dataclass(frozen=True, config=FORBID)
class Checkpoint:
    """every: how often the state of a training is saved: 60s, 5m, or a number of steps."""

    every: Positive | Text = "60s"


@dataclass(frozen=True, config=FORBID)
class Output:
    """Where a run goes.

    dir: folder to write (null: named after models, method and a hash). overwrite: replace a finished run.
    dtype: of the written numbers: float32, float16 or bfloat16. tensorboard: event files for it as well.
    """

    dir: Text | None = None
    overwrite: Flag = False
    dtype: Text = "float32"
    tensorboard: Flag = False


@dataclass(frozen=True, config=FORBID)
class Evaluation:
    """kd: train a student with the method's budget as well, for a row of its own."""

    kd: Flag = False


_checking: list[bool] = []
"""Whether the jobs of this process are `fsmerge check` (and with --headers-only, --json) instead of a merge."""


def check(arguments: Sequence[str], headers_only: bool, as_json: bool, quiet: bool = False) -> int:
    """Let Hydra compose `arguments` and inspect what they would merge; returns the exit code."""
    _checking[:] = [headers_only, as_json]
    try:
        return launch(arguments, quiet)
    finally:
        _checking.clear()


def launch(arguments: Sequence[str], quiet: bool = False) -> int:
    """Let Hydra compose `arguments` and run the job or jobs; returns the exit code. quiet: show only errors."""
    codes.clear()
    here = place()
    if here is not None and here.size > 1 and {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments}:
        raise ConfigError(
            f"--multirun under torchrun: {here.size} processes would each start every job. Start one run per "
            "torchrun, or let a cluster start the processes: fsmerge merge --multirun ... hardware=slurm"
        )
    with _process_of(arguments, quiet):
        try:
            _entry()
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, arguments) from error
        except Exception as error:
            told = explain_cluster(error)
            if told is None:
                raise
            raise told from error
    return max(codes, default=0)


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="merge")
def _entry(config: DictConfig) -> Any:
    """One job. It never raises: Hydra would show the error of a sweep's job only after all others ended."""
    given = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # as typed, ${...} too
    texts = [str(override) for override in given] if isinstance(given, list) else []
    overrides = [text for text in texts if not text.startswith(UNTOLD)]
    label = " ".join(override.lstrip("+") for override in overrides)
    try:
        if is_sweep() and is_main():
            terminal.console(stderr=True).print(Line(label), style="bold", soft_wrap=True)
        if _checking:
            run_check(config, *_checking)
            return ended({"run": label, "exit_code": 0})
        evaluation = run_job(config, overrides)
        if is_sweep() and side_by_side() and is_main():
            terminal.console(stderr=True).print(Line(f"done: {label}"), soft_wrap=True)
    except Exception as error:
        text, code = outcome(error)
        notes = [note for note in getattr(error, "__notes__", []) if text and note not in text]
        sys.stderr.write(text + "".join(f"fsmerge: {note}\n" for note in notes))
        return ended({"run": label, "exit_code": code, "error": str(error)})
    row = evaluation["rows"].get("merged", {"tasks": {}, "mean_top1": None, "joint_top1": {}})
    return ended(
        {
            "run": label,
            "exit_code": 0,
            "tasks": {name: task["top1"] for name, task in row["tasks"].items()},
            "mean": row["mean_top1"],
            "joint": row["joint_top1"].get("softmax"),
            "seconds": sum(evaluation["cost"]["seconds"].values()),
            "folder": str(_folder(_keys(config))),
        }
    )


def run_job(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Turn one composed configuration into a call of `merge`; show and return the evaluation."""
    keys = _keys(config)
    output = build(Output, keys["output"], "output")
    checkpoint = build(Checkpoint, keys["checkpoint"], "checkpoint")
    evaluation_of = build(Evaluation, keys["evaluation"], "evaluation")
    folder = _folder(keys)
    from fsmerge_cli.runs.merge import merge  # imports torch

    if keys["resume"] is True and (found := finished(keys, folder)) is not None:
        if is_main():
            _show(found, folder)
            terminal.console().print(Line("finished before: nothing was done"))
        return found
    command = shlex.join(["fsmerge", "merge", *overrides])
    with _told(folder, command, keys["resume"] is True, output.tensorboard) as (progress, log):
        result = merge(
            keys["models"]["sources"],
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
            progress=progress,
            command=command,
        )
        if log is None:
            return result.evaluation()
        evaluation: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
        log.finish(_told_text(evaluation, folder), evaluation)
    if not side_by_side():  # their tables would stand among each other's
        _show(evaluation, folder)
    return evaluation


@contextmanager
def _told(folder: Path, command: str, resume: bool, tensorboard: bool) -> Iterator[tuple[Progress, RunLog | None]]:
    """Where the events of a run go: the terminal and its log; nowhere, on all processes but the first."""
    if not is_main():
        yield silent, None
        return
    with RunLog(folder, command, resume=resume, tensorboard=tensorboard) as log:
        if side_by_side():  # bars of several processes would tear each other
            yield log, log
            return
        with terminal.Reporter(terminal.console(stderr=True)) as shown:

            def both(event: Event) -> None:
                log(event)
                shown(event)

            yield both, log


def _told_text(evaluation: Mapping[str, Any], folder: Path) -> str:
    """What is shown at the end of a run, for its log."""
    page = Console(file=io.StringIO(), width=120, force_terminal=False, no_color=True)
    _show(evaluation, folder, page)
    text: str = page.file.getvalue()  # type: ignore[attr-defined]
    return text


def _folder(keys: Mapping[str, Any]) -> Path:
    """Where the run of a composed configuration goes."""
    return Path(keys["output"]["dir"] or default_folder(keys, HydraConfig.get().runtime.choices))


def _keys(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values; ConfigError for keys that are unknown or missing."""
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        said = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{error.full_key}: {said}. Name a key that is there in ${{...}}, or give a value."
        ) from None
    if not isinstance(values, dict):
        raise ConfigError("the configuration is not a mapping.")
    keys = {str(key): value for key, value in values.items()}
    if isinstance(keys.get("method"), dict):
        keys["method"] = {name: _listed(value) for name, value in keys["method"].items()}
    strangers = [unknown("key", key, TOP) for key in keys if key not in TOP]
    strangers += [f"{key} is missing." for key in TOP if key not in keys and key != "data"]
    if "sources" not in (keys.get("models", {"sources": 0})):
        strangers.append("models.sources is missing.")
    if strangers:
        raise ConfigError("\n".join(strangers))
    refuse_code(keys, "")
    return keys


def _listed(value: Any) -> Any:
    """A list whose entries were given one by one (method.task_weights.0=1) as a list."""
    places = {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else {}
    if not places or set(places) != {str(i) for i in range(len(places))}:
        return value
    return [places[str(i)] for i in range(len(places))]


def run_check(config: DictConfig, headers_only: bool, as_json: bool) -> None:
    """Show what a merge of one composed configuration would be; MismatchError after the table."""
    keys = _keys(config)
    from fsmerge_cli.runs.check import inspect  # imports torch
    from fsmerge_cli.runs.request import request

    asked = request(
        keys["models"]["sources"],
        keys["method"],
        keys.get("data"),
        keys["hardware"],
        keys["seed"],
        overwrite=False,
        kd=build(Evaluation, keys["evaluation"], "evaluation").kd,
    )
    found = inspect(asked, headers_only)
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
    else:
        console = terminal.console()
        console.print(tables.source_table(asdict(found)))
        for line in tables.check_lines(asdict(found)):
            console.print(Line(line), soft_wrap=True)
    if found.reasons:
        raise MismatchError(found.reasons)


def _show(evaluation: Mapping[str, Any], folder: Path, page: Console | None = None) -> None:
    console = page or terminal.console()
    if evaluation["rows"]:
        console.print(tables.score_table(evaluation))
    for note in evaluation["notes"]:
        console.print(Line(f"note: {note}"))
    console.print(Line(tables.summary_line(evaluation)))
    console.print(Line(f"merged model: {folder}/merged   scores: {folder}/evaluation.json"), soft_wrap=True)
    console.print(Line(f"report: {folder}/report.html"), soft_wrap=True)


@contextmanager
def _process_of(arguments: Sequence[str], quiet: bool) -> Iterator[None]:
    """Hydra reads sys.argv, and raises instead of exiting only where a variable is set; --quiet is one, too."""
    argv, before = sys.argv, dict(os.environ)
    sys.argv = ["fsmerge", *arguments]
    variables = {"HYDRA_FULL_ERROR": "1", **({terminal.QUIET: "1"} if quiet else {})}
    os.environ.update(variables)
    try:
        yield
    finally:
        sys.argv = argv
        for name in variables:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
