"""The evaluation of a written model, in memory and as files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fsmerge_cli.common.atomic import write_json, write_tensors, write_text
from fsmerge_cli.common.output_files import check_files, write_file
from fsmerge_cli.common.separation import Input
from fsmerge_cli.evaluation.predictions import Example
from fsmerge_cli.evaluation.scoring import Outputs, Score
from fsmerge_cli.reporting.html import page
from fsmerge_cli.reporting.schema import typed
from fsmerge_cli.runs.merged import Merged
from fsmerge_cli.runs.result import document


@dataclass(frozen=True)
class Reevaluation:
    """The evaluation of a written model on some data.

    model: as it was read. scores: rows by name, `merged` and, on request, the sources and their `ensemble`.
    predictions: by task, compared with those of the sources (see `evaluation.predictions`). outputs: logits of
    every head on all test images. truth: task [n] and class [n] (-1: unknown) of the test images. method: key of
    the method that made the model (`unknown`: third-party). cost, provenance, options, notes: as those of a merge.
    examples: test images with both predictions, for the report. inputs: what was read, which is never written.
    """

    model: Merged
    scores: Mapping[str, Score]
    predictions: Mapping[str, Mapping[str, Any]]
    outputs: Outputs
    truth: tuple[Tensor, Tensor]
    method: str
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]
    options: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())
    examples: tuple[Example, ...] = ()
    inputs: tuple[Input, ...] = ()

    def evaluation(self) -> dict[str, Any]:
        """The content of an evaluation.json; fields that only a merge has are empty."""
        predictions = {name: dict(values) for name, values in self.predictions.items()}
        return document(self, self.method, self.model.tasks, predictions=predictions)

    def save(self, file: str | Path, overwrite: bool = False) -> None:
        """Write the evaluation as a JSON file, atomically. Raises OutputError."""
        evaluation = self.evaluation()
        typed(evaluation)
        with self._written("output.file=", file, overwrite) as temporary:
            write_json(temporary, evaluation)

    def save_report(self, file: str | Path, overwrite: bool = False) -> None:
        """Write the evaluation as an HTML report, atomically. Raises OutputError."""
        with self._written("output.report=", file, overwrite) as temporary:
            write_text(temporary, page(self.evaluation(), self.examples))

    def save_logits(self, file: str | Path, overwrite: bool = False) -> None:
        """Write `logits.TASK` [n, classes], `task` [n] and `label` [n] of all test images as safetensors."""
        tensors = {f"logits.{name}": own for name, own in zip(self.model.tasks, self.outputs.logits)}
        with self._written("output.logits=", file, overwrite) as temporary:
            write_tensors(temporary, {**tensors, "task": self.truth[0], "label": self.truth[1]})

    def _written(self, key: str, file: str | Path, overwrite: bool) -> AbstractContextManager[Path]:
        return write_file(check_files({key: file}, self.inputs, overwrite)[key], key, overwrite)
