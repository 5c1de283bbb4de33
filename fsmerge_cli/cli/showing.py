"""What `fsmerge check` and `fsmerge merge` print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text as Line

from fsmerge_cli.cli.keys import Evaluation, keys_of
from fsmerge_cli.common.errors import MismatchError
from fsmerge_cli.common.notes import notes_in, warnings_in
from fsmerge_cli.common.options import build
from fsmerge_cli.reporting import tables, terminal


def run_check(config: DictConfig, headers_only: bool, as_json: bool) -> None:
    """Print what the merge of one composed configuration would do; MismatchError after the table."""
    keys = keys_of(config)
    from fsmerge_cli.runs.check import inspect  # imports torch
    from fsmerge_cli.runs.request import request

    merge_request = request(
        keys["models"]["sources"],
        keys["method"],
        keys.get("data"),
        keys["hardware"],
        keys["seed"],
        overwrite=False,
        kd=build(Evaluation, keys["evaluation"], "evaluation").kd,
    )
    inspection = inspect(merge_request, headers_only)
    if as_json:
        sys.stdout.write(json.dumps(asdict(inspection), indent=2) + "\n")
    else:
        console = terminal.console()
        console.print(tables.source_table(asdict(inspection)))
        for line in tables.check_lines(asdict(inspection)):
            console.print(Line(line), soft_wrap=True)
    if inspection.reasons:
        raise MismatchError(inspection.reasons)


def show(evaluation: Mapping[str, Any], folder: Path, page: Console | None = None) -> None:
    """Print the warnings, the scores, the notes and the paths of a run."""
    console = page or terminal.console()
    for warning in warnings_in(evaluation["notes"]):
        console.print(Line(f"warning: {warning}"), style="bold", soft_wrap=True)
    if evaluation["rows"]:
        console.print(tables.score_table(evaluation))
    for note in notes_in(evaluation["notes"]):
        console.print(Line(f"note: {note}"))
    console.print(Line(tables.summary_line(evaluation)))
    console.print(Line(f"merged model: {folder}/merged   scores: {folder}/evaluation.json"), soft_wrap=True)
    console.print(Line(f"report: {folder}/report.html"), soft_wrap=True)
