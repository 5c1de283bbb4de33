"""The accuracy that the files beside a checkpoint state, from the runs of fsmerge and Hugging Face's Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmerge_cli.checkpoints.weights import model_in
from fsmerge_cli.common.foreign_files import read_json_object
from fsmerge_cli.models.source_spec import SourceSpec

MAX_BYTES = 64 * 2**20
"""Larger files are not read."""

TRAINER = {"eval_results.json": "eval_accuracy", "all_results.json": "eval_accuracy"}
"""File of Hugging Face's Trainer -> key of the accuracy on its validation images."""


@dataclass(frozen=True)
class Stated:
    """A top-1 accuracy, a share, and the file that states it."""

    top1: float
    file: str


def stated_accuracy(checkpoint: str | Path | None, task: str) -> Stated | None:
    """The accuracy that the folder of a checkpoint states for a task; None if it states none."""
    if checkpoint is None:
        return None
    with suppress(Exception):  # any other file of that name states nothing
        path = model_in(Path(checkpoint).expanduser())
        folder = path if path.is_dir() else path.parent
        for own in (folder, folder.parent) if folder.name == "merged" else (folder,):
            found = _of_run(_content(own / "evaluation.json"), task)
            if found is not None:
                return Stated(found, str(own / "evaluation.json"))
        for name, key in TRAINER.items():
            value = _content(folder / name).get(key)
            if isinstance(value, float) and 0 <= value <= 1:
                return Stated(value, str(folder / name))
    return None


def stated_accuracies(specs: Sequence[SourceSpec]) -> dict[str, Stated]:
    """The accuracies that the folders of the sources state, by task."""
    found = {spec.name: stated_accuracy(spec.checkpoint, spec.head or spec.name) for spec in specs}
    return {name: stated for name, stated in found.items() if stated}


def _of_run(evaluation: Mapping[str, Any], task: str) -> float | None:
    """The top-1 accuracy of the written model: of a merge for the task, of a fine-tuning for its only one."""
    rows = evaluation.get("rows") or {}
    row = rows.get("merged") or (next(iter(rows.values())) if len(rows) == 1 else {})
    tasks = row.get("tasks") or {}
    own = tasks.get(task) or (next(iter(tasks.values())) if len(tasks) == 1 else {})
    value = own.get("top1")
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def _content(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.is_file() and file.stat().st_size <= MAX_BYTES else {}
