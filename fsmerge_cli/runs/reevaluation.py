"""The evaluation of a written model, in memory and as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fsmerge_cli.common.atomic import write_json, write_tensors, write_text
from fsmerge_cli.common.output_files import check_files, write_files
from fsmerge_cli.common.separation import Input
from fsmerge_cli.evaluation.forward import Outputs
from fsmerge_cli.evaluation.predictions import Example
from fsmerge_cli.evaluation.scoring import Score
from fsmerge_cli.reporting.html import page
from fsmerge_cli.reporting.notebook import as_html, one_line
from fsmerge_cli.reporting.schema import typed
from fsmerge_cli.runs.merged import Merged
from fsmerge_cli.runs.result import document


@dataclass(frozen=True, repr=False)
class Reevaluation:
    """The evaluation of a written model on some data.

    model: as it was read. scores: rows by name, `merged` and, on request, the sources and their `ensemble`.
    predictions: by task, compared with those of the sources (see `evaluation.predictions`). outputs: logits of
    every head on all test images. truth: task [n] and class [n] (-1: unknown) of the test images. method: key of
    the method that made the model (`unknown`: third-party). cost, provenance, options, notes: as those of a merge.
    examples: test images with both predictions, for the report. classes, joint_confusion: see
    `evaluation.class_results`. inputs: what was read, which is never written.
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
    classes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    joint_confusion: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        """One line: method, tasks and accuracy."""
        return one_line("Reevaluation", self.evaluation())

    def _repr_html_(self) -> str:
        """The table of scores, in a notebook."""
        return as_html(self.evaluation())

    def evaluation(self) -> dict[str, Any]:
        """The content of an evaluation.json; fields that only a merge has are empty."""
        predictions = {name: dict(values) for name, values in self.predictions.items()}
        return document(
            self,
            self.method,
            self.model.tasks,
            predictions=predictions,
            classes=self.classes,
            joint_confusion=self.joint_confusion,
            inputs=self.model.family.kind,
            counted=self.model.family.counted(self.model.arch),
        )

    def save(self, file: str | Path, overwrite: bool = False) -> None:
        """Write the evaluation as a JSON file, atomically. Raises OutputError."""
        self.save_files(file=file, overwrite=overwrite)

    def save_report(self, file: str | Path, overwrite: bool = False) -> None:
        """Write the evaluation as an HTML report, atomically. Raises OutputError."""
        self.save_files(report=file, overwrite=overwrite)

    def save_logits(self, file: str | Path, overwrite: bool = False) -> None:
        """Write `logits.TASK` [n, classes], `task` [n] and `label` [n] of all test images as safetensors."""
        self.save_files(logits=file, overwrite=overwrite)

    def save_files(
        self,
        *,
        file: str | Path | None = None,
        report: str | Path | None = None,
        logits: str | Path | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write several of these files: all of them appear, or none. Raises OutputError."""
        evaluation, kind = self.evaluation(), self.model.family.kind
        typed(evaluation)
        own = {f"logits.{name}": values for name, values in zip(self.model.tasks, self.outputs.every)}
        tensors = {**own, "task": self.truth[0], "label": self.truth[1]}
        writers: dict[str, Callable[[Path], None]] = {
            "output.file=": lambda path: write_json(path, evaluation),
            "output.report=": lambda path: write_text(path, page(evaluation, self.examples, kind)),
            "output.logits=": lambda path: write_tensors(path, tensors),
        }
        paths = check_files(dict(zip(writers, (file, report, logits))), self.inputs, overwrite)
        write_files({key: (path, writers[key]) for key, path in paths.items()}, overwrite)
