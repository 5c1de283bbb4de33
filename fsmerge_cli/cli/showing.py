"""What `fsmerge check` and `fsmerge merge` print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text as Line

from fsmerge_cli.cli.gate import Gate
from fsmerge_cli.cli.json_output import write_json
from fsmerge_cli.cli.keys import Checkpoint, Evaluation, Output, keys_of
from fsmerge_cli.cli.run_dirs import config_inputs, finished
from fsmerge_cli.common.errors import MismatchError
from fsmerge_cli.common.notes import notes_in, warnings_in
from fsmerge_cli.common.options import build
from fsmerge_cli.common.progress import Progress, silent
from fsmerge_cli.common.wording import worded
from fsmerge_cli.reporting import tables, terminal


@dataclass(frozen=True)
class Checking:
    """Options of `fsmerge check`."""

    headers_only: bool
    as_json: bool
    gate: Gate


def run_check(config: DictConfig, checking: Checking) -> None:
    """Print what the merge of one composed configuration would do.

    Raises MismatchError after the table; FsmergeError where the gate fails.
    """
    keys = keys_of(config)
    given = build(Output, keys["output"], "output")
    checkpoint = build(Checkpoint, keys["checkpoint"], "checkpoint")
    evaluation = build(Evaluation, keys["evaluation"], "evaluation")
    folder = None if given.dir is None else Path(given.dir)
    if folder is not None and keys["resume"] is True and finished(keys, folder) is not None:
        terminal.console().print(Line("already finished: a merge with resume=true would run nothing"))
        return
    from fsmerge_cli.runs.check import inspect  # imports torch
    from fsmerge_cli.runs.request import request

    merge_request = request(
        keys["models"]["sources"],
        keys["method"],
        keys.get("data"),
        keys["hardware"],
        keys["seed"],
        overwrite=given.overwrite,
        resume=keys["resume"],
        every=checkpoint.every,
        kd=evaluation.kd,
        dtype=given.dtype,
        license=given.license,
        images_needed=False,
        base=keys["models"].get("base"),
    )
    merge_request = replace(merge_request, more_inputs=(*merge_request.more_inputs, *config_inputs()))
    stderr = terminal.console(stderr=True)
    with terminal.Reporter(stderr) as reporter:
        progress: Progress = reporter if stderr.is_terminal else silent
        inspection = inspect(merge_request, checking.headers_only, folder, bool(checking.gate), progress)
    if checking.as_json:
        write_json(asdict(inspection))
    else:
        console = terminal.console()
        for warning in warnings_in(inspection.notes):
            console.print(Line(f"warning: {warning}"), style="bold", soft_wrap=True)
        for part in tables.source_tables(asdict(inspection), console):
            console.print(part)
        for line in tables.check_lines(asdict(inspection)):
            console.print(Line(line), soft_wrap=True)
    if inspection.reasons:
        raise MismatchError(inspection.reasons)
    merge_request.require_images()
    measured = inspection.top1, inspection.numbers
    terminal.print_notes(stderr, checking.gate.unchecked(*measured))
    checking.gate.require("the source", inspection.notes, *measured)


def show(evaluation: Mapping[str, Any], folder: Path, page: Console | None = None) -> None:
    """Print the warnings, the scores, the result in a sentence, the notes and the paths of a run."""
    console, kind = page or terminal.console(), evaluation.get("inputs", "image")
    for warning in warnings_in(evaluation["notes"]):
        console.print(Line(f"warning: {warning}"), style="bold", soft_wrap=True)
    for table in tables.result_tables(evaluation):
        console.print(terminal.worded_table(table, kind))
    for sentence in tables.result_lines(evaluation):
        console.print(Line(worded(sentence, kind)))
    for note in notes_in(evaluation["notes"]):
        console.print(Line(f"note: {note}"))
    console.print(Line(worded(tables.summary_line(evaluation), kind)))
    console.print(Line(f"merged model: {folder}/merged   scores: {folder}/evaluation.json"), soft_wrap=True)
    console.print(Line(f"report: {folder}/report.html"), soft_wrap=True)
