"""What `fsmerge finetune` learns to predict: one of several classes, the tags of words, or a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fsmerge_cli.checkpoints.tasks import DATA, FILES, with_label_names
from fsmerge_cli.checkpoints.text_models import NUMBER
from fsmerge_cli.common.errors import ConfigError, DataError, unknown
from fsmerge_cli.common.shown import listed
from fsmerge_cli.data import DataConfig, Task
from fsmerge_cli.data.base import LabelKind
from fsmerge_cli.models.source_spec import SourceSpec

Predicts = Literal["class", "tags", "number"]

Given = str | tuple[str, ...] | None
"""`model.labels` as it is written."""

FOUND = {
    "names": "names of classes",
    "whole numbers": "whole numbers",
    "numbers": "numbers",
    "tags": "tags of words",
}
"""The kinds of labels in messages."""

FORMS = (
    "Tags are two lists in a row of .jsonl or Parquet (tokens and tags), or lines of .conll: a word and its tag."
)

GUESSED = (
    "its labels are numbers and not all of them whole, so that a number is predicted (regression); pass "
    "model.predicts=class if they are classes"
)
"""A note where nothing states that a number is predicted."""


def predicted(given: Predicts | None, labels: Given, spec: SourceSpec, data: DataConfig, texts: bool) -> Predicts:
    """What is predicted: as given, or what the labels of the data set are. Raises ConfigError, DataError.

    labels: of the model, as given. texts: whether the model reads texts.
    """
    own = data.of(spec.name)
    if own.kind != "text" or not texts:
        if given not in (None, "class"):
            raise ConfigError(
                f"model.predicts={given}: only text encoders learn tags of words and numbers, and images have "
                "classes. Leave it out."
            )
        return "class"
    found = data.label_kind(Task(spec.name, None))
    if given is None:
        return "tags" if found == "tags" else "number" if found == "numbers" and labels is None else "class"
    _require_fitting(given, found, spec.name, own.name)
    return given


def _require_fitting(given: Predicts, found: LabelKind | None, task: str, data: str) -> None:
    """Raise DataError where the labels are of another kind. found: None without labels, which is refused later."""
    fitting = {
        "class": ("names", "whole numbers", "numbers"),
        "tags": ("tags",),
        "number": ("whole numbers", "numbers"),
    }
    if found is None or found in fitting[given]:
        return
    other = {"tags": "tags", "names": "class"}.get(found, "class or number")
    remedy = f" {FORMS}" if given == "tags" else ""
    raise DataError(
        f"model.predicts={given}, and the labels of task '{task}' in data={data} are {FOUND[found]}. Pass "
        f"model.predicts={other}, or data.label_column=NAME of another column.{remedy}"
    )


def labels_of(predicts: Predicts, given: Given, spec: SourceSpec, data: DataConfig) -> tuple[str, ...]:
    """The classes of the task, from `model.labels` or from the data set; of a number its name."""
    sets = data.of(spec.name).label_sets()
    found = _given(given, spec, data, sets)
    if predicts == "number":
        found = found or NUMBER
        if len(found) != 1:
            raise ConfigError(
                f"model.labels: one number is predicted, and there are {len(found)} names ({listed(found[:9])}). "
                "Pass its name (model.labels=[score]) or none; for classes pass model.predicts=class."
            )
        return found
    if given is None:
        found = sets.get(spec.name) or data.classes(Task(spec.name, None)) or ()
    more = f", or one of {', '.join(sorted(sets))}." if sets else "."
    if not found:
        texts = data.of(spec.name).kind == "text"
        what = "texts" if texts else "images"
        number = " To predict the number itself, pass model.predicts=number." * (texts and predicts == "class")
        raise ConfigError(
            f"model.labels: the {what} have no class names (their labels are numbers, or there are none). Pass "
            "the names, in the order of the numbers: a list (model.labels=[cat,dog]), or a file (.txt, .json)"
            f"{more}{number}"
        )
    if len(found) < 2 or len(set(found)) != len(found):
        raise ConfigError(
            f"model.labels: a classifier needs two or more different classes, and there are {len(found)} "
            f"({', '.join(found[:9]) or 'none'}). Pass a list (model.labels=[cat,dog]), a file (.txt, .json){more}"
        )
    return tuple(found)


def _given(
    given: Given, spec: SourceSpec, data: DataConfig, known: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The names that `model.labels` states; empty for null. known: the label sets. Raises ConfigError."""
    if given is None or isinstance(given, tuple):
        return given or ()
    if given in known:
        return tuple(known[given])
    if given == DATA or Path(given).suffix.lower() in FILES:
        return tuple(with_label_names(replace(spec, labels=given), data).labels or ())
    raise ConfigError(
        f"model.labels: {unknown('label set', given, known)} Or give a list, or a file (.txt, .json)."
    )
