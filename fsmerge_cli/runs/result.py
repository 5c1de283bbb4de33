"""The result of a merge, in memory and as files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from fsmerge_cli.checkpoints.dtype import to_dtype
from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.atomic import claim, output_errors, write_json, write_text
from fsmerge_cli.common.private_paths import PrivatePaths, remember
from fsmerge_cli.common.progress import Event
from fsmerge_cli.common.separation import Input
from fsmerge_cli.common.shown import well_formed
from fsmerge_cli.common.wording import Kind, Word
from fsmerge_cli.evaluation.certificates import Certificate, Certifier
from fsmerge_cli.evaluation.predictions import write_correct
from fsmerge_cli.evaluation.score_table import Evaluation
from fsmerge_cli.evaluation.scoring import Score
from fsmerge_cli.methods import Solution
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.reporting.html import page
from fsmerge_cli.reporting.model_card import model_card
from fsmerge_cli.reporting.notebook import as_html, one_line
from fsmerge_cli.reporting.schema import VERSION, typed
from fsmerge_cli.runs.classifier import FOLDER as CLASSIFIER
from fsmerge_cli.runs.classifier import classifier_certificate, why_no_classifier, write_classifier
from fsmerge_cli.runs.compressed import FOLDER as COMPRESSED
from fsmerge_cli.runs.compressed import write_compressed
from fsmerge_cli.runs.features import write_projectors
from fsmerge_cli.runs.sentence_tasks import write_embedding_tasks
from fsmerge_cli.runs.text_tasks import FOLDER as TASKS
from fsmerge_cli.runs.text_tasks import task_names, tasks_certificate, write_tasks
from fsmerge_cli.training.state import Trace

CURVE = 500
"""Largest number of points of the training loss that are recorded."""


@dataclass(frozen=True, repr=False)
class MergeResult:
    """One merged model and its evaluation.

    plan: of the sources. preprocessing: of an item before the model. solution: weights, projectors and the
    trace of the training. heads: one folded head per task that has one. measured: rows of the table by name (each
    source, `ensemble`, `average`, `merged`), and the similarity to the sources by layer. cost: seconds by phase,
    steps, trainable parameters. provenance: versions, device, source hashes, command. options: every option of the
    run, resolved. notes: what the user should know. certifier: compares the written folder with this model.
    inputs: what was read, which `save` never replaces.
    """

    plan: Plan
    preprocessing: Any
    solution: Solution
    heads: Mapping[str, Head]
    measured: Evaluation
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]
    options: Mapping[str, Any]
    notes: tuple[str, ...]
    certifier: Certifier
    inputs: tuple[Input, ...] = ()

    def __repr__(self) -> str:
        """One line: method, tasks and accuracy."""
        return one_line("MergeResult", self.evaluation())

    def _repr_html_(self) -> str:
        """The table of scores, in a notebook."""
        return as_html(self.evaluation())

    @property
    def scores(self) -> Mapping[str, Score]:
        """The rows of the score table, by name."""
        return self.measured.rows

    def backbone(self) -> nn.Module:
        """The merged backbone as an ordinary module in evaluation mode."""
        module = self.plan.skeleton()
        module.load_state_dict({n: t.cpu().clone() for n, t in self.solution.weights.items()}, assign=True)
        return module.requires_grad_(False).eval()

    def evaluation(self, certificates: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The content of evaluation.json; certificates: those of the written files (none before)."""
        trace = self.solution.trace
        return document(
            self,
            self.options["method"]["name"],
            self.plan.tasks,
            similarity=dict(self.measured.similarity),
            predictions={name: dict(values) for name, values in self.measured.predictions.items()},
            training=course(trace, {name: known(e) for name, e in zip(self.plan.tasks, trace.start_error)}),
            classes=dict(self.measured.classes),
            joint_confusion=self.measured.joint_confusion,
            certificates=dict(certificates or {}),
            facts=dict(self.solution.facts),
            tokens={name: own.entry() for name, own in self.measured.tokens.items()},
            measured_on=measured_on(self.measured),
            inputs=self.plan.family.kind,
            counted=self.plan.family.counted(self.plan.arch),
        )

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the folder of the run, atomically: model, evaluation, report, options. Raises OutputError."""
        with claim(Path(folder), overwrite, self.inputs) as temporary, output_errors(Path(folder)):
            self.write(temporary, Path(folder))

    def write(self, folder: Path, output: Path | None = None) -> None:
        """Write the files into an existing folder. Raises CertificateError where they differ from the model.

        output: what the folder will be called. No file names a path of this machine, see `private_paths`.
        """
        merged, plan, dtype = folder / "merged", self.plan, self.solution.dtype
        tensors, facts = head_tensors(self.heads)
        self.certifier.progress(Event("write", 0, 2))
        write_model(
            merged,
            model_config(plan.family, plan.arch, self.preprocessing, dtype),
            to_dtype(self._unrounded().tensors(plan), dtype),
            to_dtype(tensors, dtype),
            facts,
            self.preprocessing.files,
        )
        self.certifier.progress(Event("write", 1, 2))
        start = time.perf_counter()
        more = [
            *write_projectors(merged, self.certifier, self.measured.tokens),
            *write_embedding_tasks(folder / TASKS, self.certifier, self.preprocessing, self.solution),
            *self._written_classifiers(folder),
            *write_compressed(folder / COMPRESSED, self.certifier, self.solution),
        ]
        evaluation = self.evaluation(self.certifier.certify(merged, more))
        cost = evaluation["cost"]
        cost["seconds"] = {**cost["seconds"], "certify": round(time.perf_counter() - start, 3)}
        private = PrivatePaths.of(self.options, output, self.provenance["command"])
        typed(evaluation := private.values(evaluation))
        written = private.values(plain_values(self.options))
        options = yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
        write_text(merged / "README.md", model_card(self.plan, self.heads, evaluation, options))
        write_text(folder / "config.yaml", options)
        write_text(folder / "report.html", page(evaluation, self.measured.examples, self.plan.family.kind))
        if self.scores:
            write_correct(folder, self.scores["merged"].correct)
        write_json(folder / "evaluation.json", evaluation)
        remember(folder / "evaluation.json", plain_values(self.options), written)
        self.certifier.progress(Event("write", 2, 2))

    def _unrounded(self) -> Solution:
        """The solution before rounding: the tensors of the files are rounded, which may be others (BatchNorm)."""
        return self.solution if self.solution.dtype == "float32" else self.certifier.solution

    def _written_classifiers(self, folder: Path) -> list[Callable[[], Certificate]]:
        """Write classifier/ or tasks/, if there can be one; their certificates."""
        heads, dtype = self.certifier.heads, self.solution.dtype  # the heads before rounding
        if task_names(self.plan, heads):
            write_tasks(folder / TASKS, self.plan, self.preprocessing, self.solution.weights, heads, dtype)
            return [partial(tasks_certificate, self.certifier, folder / TASKS)]
        if why_no_classifier(self.plan, self.heads) is not None:
            return []
        write_classifier(folder / CLASSIFIER, self.plan, self.preprocessing, self._unrounded(), heads, dtype)
        return [partial(classifier_certificate, self.certifier, folder / CLASSIFIER)]


def known(error: float) -> float | None:
    """A finite error; None for a source without images."""
    return error if math.isfinite(error) else None


def document(
    found: Any,
    method: str,
    tasks: Sequence[str],
    *,
    training: Mapping[str, Any] | None = None,
    joint_confusion: Mapping[str, Any] | None = None,
    inputs: Kind = "image",
    counted: Word = "image",
    **more: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of an evaluation.json.

    found: what was measured, with its scores, cost, provenance, options and notes. joint_confusion: see
    `evaluation.class_results`. inputs: what the models read. counted: what its test counts count. more:
    similarity, predictions, classes, certificates, facts, tokens and measured_on, each empty by default.
    """
    content = {
        "schema_version": VERSION,
        "method": method,
        "tasks": list(tasks),
        "rows": {name: row(score, found.scores) for name, score in found.scores.items()},
        "similarity": more.get("similarity", {}),
        "predictions": more.get("predictions", {}),
        "classes": more.get("classes", {}),
        "joint_confusion": joint_confusion,
        "training": training or course(Trace(), {}),
        "certificates": more.get("certificates", {}),
        "facts": more.get("facts", {}),
        "measured_on": more.get("measured_on", {}),
        "tokens": more.get("tokens", {}),
        "notes": list(found.notes),
        "cost": dict(found.cost),
        "provenance": dict(found.provenance),
        "config": plain_values(found.options),
    }
    kind: dict[str, str] = {} if inputs == "image" else {"inputs": inputs}
    if counted == "word":
        kind["counted"] = counted
    return dict(well_formed({**content, **kind}))


def measured_on(found: Evaluation) -> dict[str, Any]:
    """By task: which images measure it, and how many they are."""
    return {
        name: {"images": len(own.images), "kind": own.kind, "of": own.of}
        for name, own in found.measured.items()
        if own.images
    }


def course(trace: Trace, start_error: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a training. start_error: by task, before the first step."""
    return {
        "start_error": dict(start_error),
        "curve": curve(trace.loss),
        "final_loss": trace.loss[-1] if trace.loss else None,
        "validation": [{"step": step, "loss": loss} for step, loss in trace.validation],
        "validation_parts": parts(trace),
        "chosen_step": trace.chosen_step,
    }


def parts(trace: Trace) -> list[dict[str, Any]]:
    """The validation loss by its parts: the error of the features, and the rest, of the heads."""
    features = dict(trace.feature_part)
    return [
        {"step": step, "features": features[step], "logits": max(0.0, loss - features[step])}
        for step, loss in trace.validation
        if step in features
    ]


def curve(loss: Sequence[float]) -> list[dict[str, Any]]:
    """The loss per step as at most CURVE points: means of consecutive steps, at the last step of each mean.

    >>> curve([3.0, 1.0])
    [{'step': 1, 'loss': 3.0}, {'step': 2, 'loss': 1.0}]
    """
    size = math.ceil(len(loss) / CURVE)
    parts = [(start, loss[start : start + size]) for start in range(0, len(loss), size or 1)]
    return [{"step": start + len(part), "loss": sum(part) / len(part)} for start, part in parts]


def row(score: Score, sources: Mapping[str, Score]) -> dict[str, Any]:
    """A row of evaluation.json. sources: rows by name, which include those of the sources, if any."""
    tasks = {}
    for name, task in score.tasks.items():
        own = sources[name].tasks[name].top1 if name in sources else None
        relative = task.top1 / own if own else None
        tasks[name] = {**asdict(task), "interval": list(task.interval), "relative": relative}
    numbers = {}
    for name, number in score.numbers.items():
        alone = sources[name].numbers[name].pearson if name in sources else None
        relative = number.pearson / alone if alone and alone > 0 and number.pearson is not None else None
        numbers[name] = {**asdict(number), "relative": relative}
    shares = [task["relative"] for task in (*tasks.values(), *numbers.values())]
    return {
        "tasks": tasks,
        **({"numbers": numbers} if numbers else {}),
        "mean_top1": score.mean,
        "mean_relative": sum(shares) / len(shares) if shares and None not in shares else None,
        "joint_top1": dict(score.joint),
        "chosen_tasks": {protocol: dict(own) for protocol, own in score.chosen.items()},
        "temperatures": dict(score.temperatures),
        "joint_decision": dict(score.decisions),
        "feature_error": {name: values["error"] for name, values in score.features.items()},
        "feature_cosine": {name: values["cosine"] for name, values in score.features.items()},
        "feature_cka": {name: values["cka"] for name, values in score.features.items()},
        "agreement": {name: {"images": n, "same": same} for name, (n, same) in score.agreement.items()},
        "neighbours": {name: asdict(own) for name, own in score.neighbours.items()},
        **({"probes": {name: asdict(own) for name, own in score.probes.items()}} if score.probes else {}),
    }


def plain_values(value: Any) -> Any:
    """Tuples as lists, which YAML writes without tags."""
    if isinstance(value, Mapping):
        return {key: plain_values(entry) for key, entry in value.items()}
    return [plain_values(entry) for entry in value] if isinstance(value, list | tuple) else value
