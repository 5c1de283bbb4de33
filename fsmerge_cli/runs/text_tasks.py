"""`tasks/NAME/`: a text encoder with the head of one task, as transformers' own classifier of texts or tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.architectures.bert import NAMES
from fsmerge_cli.checkpoints.dtype import to_dtype
from fsmerge_cli.checkpoints.load import load
from fsmerge_cli.checkpoints.text_models import text_family
from fsmerge_cli.checkpoints.write import model_config, write_model
from fsmerge_cli.evaluation.certificates import (
    ROUNDING,
    TOLERANCE,
    Certificate,
    Certifier,
    double_head,
    network,
    relative_error,
)
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source_spec import SourceSpec
from fsmerge_cli.models.tokenization import Tokenization

FOLDER = "tasks"


def task_names(plan: Plan, heads: Mapping[str, Head]) -> list[str]:
    """The tasks that get a folder: those with a head, if transformers has a classifier of this form.

    It has none without a pooler, unless every token is read: its classifiers of texts read pooled features.
    """
    if plan.family.kind != "text" or not (plan.arch.pooler or plan.arch.pooling == "tokens"):
        return []
    return [name for name, head in heads.items() if head.absorbs_projector and head.projector is None]


def write_tasks(
    folder: Path,
    plan: Plan,
    tokens: Tokenization,
    weights: Mapping[str, Tensor],
    heads: Mapping[str, Head],
    dtype: str,
) -> None:
    """One folder per task, see `write_text_classifier`. Raises nothing."""
    for task in task_names(plan, heads):
        write_text_classifier(folder / task, plan.arch, tokens, weights, heads[task], dtype)


def write_text_classifier(
    folder: Path, arch: Any, tokens: Tokenization, weights: Mapping[str, Tensor], head: Head, dtype: str
) -> None:
    """A folder as transformers saves one: config.json with the labels, model.safetensors, and the tokenizer.

    weights: of an encoder with a pooler, or of one whose tokens are read.
    """
    names = NAMES[arch.model_type].of(arch.pooling)
    bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias
    kind = "regression" if head.regression else "single_label_classification"
    stated = {
        "architectures": [names.classifier],
        "id2label": {str(row): label for row, label in enumerate(head.labels)},
        "label2id": {label: row for row, label in enumerate(head.labels)},
        **({} if arch.pooling == "tokens" else {"problem_type": kind}),
    }
    tensors = {names.in_classifier(name): tensor.cpu().clone() for name, tensor in weights.items()}
    tensors |= {f"{names.head}.weight": head.weight.cpu(), f"{names.head}.bias": bias.cpu()}
    config = {**model_config(text_family(arch.model_type), arch, dtype=dtype), **stated}
    write_model(folder, config, to_dtype(tensors, dtype), {}, {}, tokens.files)


def tasks_certificate(certifier: Certifier, folder: Path) -> Certificate:
    """The written classifiers, read back as any other model, compared with the heads on the merged features."""
    what = "logits of the written classifiers of the tasks = their heads on the merged features"
    merged = network(certifier.plan, certifier.solution.weights)(certifier.pixels.double())
    errors = []
    with torch.no_grad():
        for task in task_names(certifier.plan, certifier.heads):
            found = load(SourceSpec(task, checkpoint=str(folder / task)))
            if found.head is None or found.head.labels != certifier.heads[task].labels:
                return Certificate("tasks", what, float("inf"), TOLERANCE)
            features = network(certifier.plan, found.weights)(certifier.pixels.double())
            expected = double_head(certifier.heads[task])(merged)
            errors.append(relative_error(double_head(found.head)(features), expected))
    return Certificate("tasks", what, max(errors), TOLERANCE if certifier.dtype == "float32" else ROUNDING)
