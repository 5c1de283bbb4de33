"""A fine-tuned classifier in memory, and as the folder that `merge` reads as a source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from fsmerge_cli.checkpoints.heads import head_tensors
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.common.atomic import claim, output_errors, write_json, write_text
from fsmerge_cli.common.errors import CertificateError
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.separation import Input
from fsmerge_cli.common.shown import printable
from fsmerge_cli.common.wording import Word, worded
from fsmerge_cli.evaluation.predictions import write_correct
from fsmerge_cli.evaluation.scoring import Score
from fsmerge_cli.models.source import Source
from fsmerge_cli.reporting import summary
from fsmerge_cli.reporting.front_matter import hub_task
from fsmerge_cli.reporting.model_card import escaped, fenced, head_lines, markdown, pixels_read
from fsmerge_cli.reporting.notebook import as_html, one_line
from fsmerge_cli.reporting.schema import typed
from fsmerge_cli.runs.merged import load_merged
from fsmerge_cli.runs.result import course, document, plain_values
from fsmerge_cli.runs.text_tasks import write_text_classifier
from fsmerge_cli.training.state import Trace
from fsmerge_cli.training.teachers import network

METHOD = "finetune"
"""The method in evaluation.json of a model that was trained and not merged."""

TOLERANCE = 1e-4
"""Largest allowed difference of logits between the written model and this one, relative to the largest logit."""

SCORES = "Top-1 accuracy on test images in %, in brackets the 95 % interval (Wilson)."
NO_LABELS = "There were no labelled test images."

PIPELINE = """from transformers import pipeline

print(pipeline("{task}", model=".")("a text"))  # the path of this folder"""
"""How a text classifier is run."""

OF_A_NUMBER = "Pearson's correlation of the predicted numbers with the labels of the test images."

CARD = """# {task}: a fine-tuned {arch}

{predicts}. The input is {input}.

{scores}

## Load it without fsmerge

{snippet}

## Merge it with others

{entry}

## Provenance

{command}

Start: {origin} (SHA-256 `{sha256}`). Versions: {versions}. Device: {device}. Seed: {seed}.

{options}
"""


@dataclass(frozen=True, repr=False)
class Finetuned:
    """One trained source and its evaluation.

    source: architecture, weights, head; origin and sha256 are those of the initial weights. scores: one row, with
    the name of the task; none without labelled test images. trace: of both phases of the training. probe: a few
    inputs (images [n, C, H, W], or texts) on which the written model is compared with this one. cost, provenance,
    options, notes: as those of a merge. inputs: what was read, which `save` never replaces.
    """

    source: Source
    scores: Mapping[str, Score]
    trace: Trace
    probe: Inputs
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()

    def __repr__(self) -> str:
        """One line: method, tasks and accuracy."""
        return one_line("Finetuned", self.evaluation())

    def _repr_html_(self) -> str:
        """The table of scores, in a notebook."""
        return as_html(self.evaluation())

    def backbone(self) -> nn.Module:
        """The backbone as an ordinary module in evaluation mode, images or texts -> features [n, d]."""
        own = {name: tensor.clone() for name, tensor in self.source.weights.items()}
        return network(replace(self.source, weights=own))

    def evaluation(self) -> dict[str, Any]:
        """The content of evaluation.json; fields that only a merge has are empty."""
        kind, counted = self.source.family.kind, self._counted
        return document(
            self, METHOD, [self.source.name], training=course(self.trace, {}), inputs=kind, counted=counted
        )

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model, evaluation.json, config.yaml and a model card, atomically. Raises OutputError."""
        with claim(Path(folder), overwrite, self.inputs) as temporary, output_errors(Path(folder)):
            self.write(temporary, Path(folder))

    def write(self, folder: Path, final: Path) -> None:
        """Write the files into an existing folder, which will be renamed to `final`.

        Raises CertificateError where the written model differs from the one in memory.
        """
        source, evaluation = self.source, self.evaluation()
        typed(evaluation)
        self._write_model(folder)
        self._check(folder)
        options = yaml.safe_dump(plain_values(self.options), sort_keys=False, allow_unicode=True)
        write_text(folder / "README.md", self._card(evaluation, options, final))
        write_text(folder / "config.yaml", options)
        if self.scores:
            write_correct(folder, self.scores[source.name].correct)
        write_json(folder / "evaluation.json", evaluation)

    def _write_model(self, folder: Path) -> None:
        """In timm's layout with heads.safetensors; a text encoder as a classifier of transformers."""
        source = self.source
        if source.family.kind == "text" and source.head is not None:
            tokens = source.preprocessing
            write_text_classifier(folder, source.arch, tokens, source.weights, source.head, "float32")
            return
        heads = {source.name: source.head} if source.head else {}
        config = model_config(source.family, source.arch, source.preprocessing)
        weights = source.family.to_file(source.arch, source.weights, {})
        write_model(folder, config, weights, *head_tensors(heads))

    def _check(self, folder: Path) -> None:
        """Compare the written model with the one in memory. Raises CertificateError."""
        head = self.source.head
        if head is None:
            return
        with torch.no_grad():
            expected = head(self.backbone()(self.probe))
        # A classifier of transformers does not state the name of its task.
        reading = {"task": self.source.name} if self.source.family.kind == "text" else None
        written = load_merged(folder, reading).logits(self.probe, self.source.name)
        error = float(((expected - written).abs().max() / expected.abs().max().clamp(min=1.0)).item())
        if not error <= TOLERANCE:
            raise CertificateError([f"reloaded: {error:.3g}, at most {TOLERANCE:g}"])

    def _card(self, evaluation: Mapping[str, Any], options: str, final: Path) -> str:
        source, provenance = self.source, self.provenance
        config, kind = source.family.config(source.arch), source.family.kind
        table = summary.scores(evaluation)
        entry = json.dumps({"name": source.name, "checkpoint": final.name}, ensure_ascii=False)
        card = CARD.format(
            task=escaped(source.name),
            arch=escaped(str(config["architecture"])),
            predicts=self._predicts(),
            input=self._input(),
            scores=f"{markdown(table)}\n\n{self._measure()}" if table else worded(NO_LABELS, kind),
            snippet=fenced(self._snippet(), "python"),
            entry=fenced(f"sources:\n  - {entry}\n  - ...", "yaml"),
            command=fenced(provenance["command"], "sh"),
            origin=escaped(source.origin),
            sha256=source.sha256,
            versions=escaped(summary.versions(evaluation)),
            device=provenance["device"],
            seed=provenance["seed"],
            options=fenced(options, "yaml"),
        )
        return printable(card)

    def _predicts(self) -> str:
        """What the model predicts, as a sentence without its full stop."""
        head = self.source.head
        if head is not None and head.regression:
            return f"It predicts a number ({escaped(head.labels[0])})"
        return f"{len(self.source.labels or ())} classes{' of every word' * (self._counted == 'word')}"

    @property
    def _counted(self) -> Word:
        """What an accuracy counts."""
        return self.source.family.counted(self.source.arch)

    def _measure(self) -> str:
        """What the scores are, on which inputs."""
        head = self.source.head
        return worded(OF_A_NUMBER if head is not None and head.regression else SCORES, self._counted)

    def _input(self) -> str:
        arch = self.source.arch
        if self.source.family.kind == "text":
            longest = min(arch.longest, self.source.preprocessing.longest)
            return f"a text of up to {longest} tokens, by the tokenizer of this folder"
        return pixels_read(self.source.family, arch)

    def _snippet(self) -> str:
        source = self.source
        if source.family.kind == "text":
            return PIPELINE.format(task=hub_task("text", True, source.arch.pooling))
        heads = {source.name: source.head} if source.head else {}
        return source.family.snippet(source.arch, head_lines(heads))
