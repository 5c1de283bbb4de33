"""`fsmerge` in a process of its own that gets a signal at a given point of its run, and what it must leave.

A point is the phase of an event ("train", with a moment: after so many events) or a name of POINTS. The processes
are forked from one that has imported everything, so a run takes about a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

POINTS = {
    "composing": ("cli.launch.keys_of", "cli.finetune_command.build"),
    "loading": ("runs.merge.load_all", "runs.finetune.load_start"),
    "saving": ("training.state_file.save_file",),
    "saved": ("training.snapshots.random_values",),
    "folding": ("methods.fs_merge.fold",),
    "model": ("runs.result.write_model", "runs.finetuned.write_model"),
    "scores": ("runs.result.write_json", "runs.finetuned.write_json"),
    "rename": ("common.atomic._publish",),
    "state": ("runs.merge.Snapshots.discard", "runs.finetune.Snapshots.discard"),
    "state half": ("common.leftovers.remove",),
    "log": ("reporting.logs.keep_logs",),
    "log half": ("common.leftovers.Path.rmdir",),
    "placing": ("common.output_files._place",),
    "sweep list": ("cli.sweep_folder._write_list",),
    "table": ("reporting.tables.summary_line",),
}
"""Name -> functions of fsmerge_cli before whose call the signal comes."""

PRELOADED = (
    "fsmerge_cli.cli.merge_command",
    "fsmerge_cli.cli.launch",
    "fsmerge_cli.cli.finetune_command",
    "fsmerge_cli.runs.merge",
    "fsmerge_cli.runs.finetune",
    "scipy.optimize",
    "sklearn.datasets",
    # What a run imports on the way. torch imports its compiler for the first optimizer (1.5 s).
    "sklearn.model_selection",
    "torch._dynamo",
    "timm",
    "huggingface_hub",
    "jinja2",
)

TIMES = ("cost", "provenance")
"""Parts of evaluation.json with times, memory and the command."""


class Kill(NamedTuple):
    """point: an event's phase (its first words), a name of POINTS, or "milliseconds".

    moment: how many of them pass before.
    """

    point: str
    moment: int = 0
    signal: int = signal.SIGKILL


class Ran(NamedTuple):
    """Exit code (-9 after SIGKILL) and standard error."""

    code: int
    err: str


def fsmerge(
    arguments: Sequence[str], log: Path, kill: Kill | None = None, again: float | None = None, **variables: str
) -> Ran:
    """Run a command in a process of its own, with further environment variables.

    again: the signal comes once more after so many seconds.
    """
    umask = os.umask(0)
    os.umask(umask)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    process = context.Process(
        target=_run, args=([*arguments], str(log), kill, again, {**os.environ, **variables}, umask)
    )
    process.start()
    process.join()
    return Ran(process.exitcode or 0, log.read_text())


def _run(
    arguments: list[str],
    log: str,
    kill: Kill | None,
    again: float | None,
    environment: Mapping[str, str],
    umask: int,
) -> None:
    os.umask(umask)
    os.environ.update(environment)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if kill is not None:
        _prepare(kill, again)
    from fsmerge_cli.cli import main

    sys.argv = ["fsmerge", *arguments]
    sys.exit(main())


def _prepare(kill: Kill, again: float | None) -> None:
    left = kill.moment

    def count() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            os.kill(os.getpid(), kill.signal)
            if again is not None:
                time.sleep(again)
                os.kill(os.getpid(), kill.signal)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            count()
            return function(*args, **kwargs)

        return run

    if kill.point == "milliseconds":
        timer = threading.Timer(kill.moment / 1000, os.kill, [os.getpid(), kill.signal])
        timer.daemon = True
        timer.start()
        return
    if kill.point in POINTS:
        for name in POINTS[kill.point]:
            owner, attribute = _resolve(name)
            setattr(owner, attribute, counted(getattr(owner, attribute)))
        return
    from fsmerge_cli.reporting.terminal import Reporter

    show = Reporter.__call__

    def call(self: Reporter, event: Any) -> None:
        show(self, event)
        if event.phase.startswith(kill.point):
            count()

    Reporter.__call__ = call  # type: ignore[method-assign]


def _resolve(name: str) -> tuple[Any, str]:
    """The module or class that has a function, and the function's name there."""
    from importlib import import_module

    parts = name.split(".")
    owner: Any = import_module(".".join(["fsmerge_cli", *parts[:2]]))
    for part in parts[2:-1]:
        owner = getattr(owner, part)
    return owner, parts[-1]


def comparable(folder: Path) -> dict[str, Any]:
    """What a run wrote, without times and costs: bytes of tensors and configuration, evaluation."""
    kept = [
        path
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".yaml") or path.name == "config.json"
    ]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for part in TIMES:
        del evaluation[part]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return {**{str(p.relative_to(folder)): p.read_bytes() for p in kept}, "evaluation": evaluation, "files": files}
