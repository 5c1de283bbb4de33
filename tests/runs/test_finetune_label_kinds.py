"""`fsmerge finetune`: labels of another kind than what is to be predicted, and numbers that cannot be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.runs.finetune import finetune
from tests.support.encoders import with_tokenizer
from tests.support.finetuning import CPU
from tests.support.text_finetuning import NOUNS, label_folder, small_text, write_labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label_folder(tmp_path_factory.mktemp("texts") / "own")


TAGS = (
    "Tags are two lists in a row of .jsonl or Parquet (tokens and tags), or lines of .conll: a word and its tag."
)


def other_kind(predicts: str, task: str, found: str, other: str) -> str:
    remedy = f" {TAGS}" * (predicts == "tags")
    return (
        f"model.predicts={predicts}, and the labels of task '{task}' in data=text are {found}. Pass "
        f"model.predicts={other}, or data.label_column=NAME of another column.{remedy}"
    )


REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("letter", {"predicts": "class"}, DataError, other_kind("class", "letter", "tags of words", "tags")),
    ("letter", {"predicts": "number"}, DataError, other_kind("number", "letter", "tags of words", "tags")),
    ("topic", {"predicts": "tags"}, DataError, other_kind("tags", "topic", "names of classes", "class")),
    ("topic", {"predicts": "number"}, DataError, other_kind("number", "topic", "names of classes", "class")),
    ("rating", {"predicts": "tags"}, DataError, other_kind("tags", "rating", "numbers", "class or number")),
    ("stars", {"predicts": "tags"}, DataError, other_kind("tags", "stars", "whole numbers", "class or number")),
    (
        "rating",
        {"predicts": "number", "labels": ("a", "b")},
        ConfigError,
        "model.labels: one number is predicted, and there are 2 names (a, b). Pass its name "
        "(model.labels=[score]) or none; for classes pass model.predicts=class.",
    ),
    (
        "stars",
        {},
        ConfigError,
        "model.labels: the texts have no class names (their labels are numbers, or there are none). Pass the "
        "names, in the order of the numbers: a list (model.labels=[cat,dog]), or a file (.txt, .json). To predict "
        "the number itself, pass model.predicts=number.",
    ),
]


@pytest.mark.parametrize(("task", "model", "kind", "message"), REFUSED, ids=[f"{n} {m}" for n, m, *_ in REFUSED])
def test_labels_of_another_kind_are_refused(
    task: str, model: dict[str, Any], kind: type[Exception], message: str, folder: Path
) -> None:
    with pytest.raises(kind) as error:
        small_text(folder, task, model)
    assert str(error.value) == message


def test_images_have_classes_only() -> None:
    model = {"arch": {"family": "mlp", "input_size": [1, 8, 8], "widths": [4]}, "start": "random"}
    with pytest.raises(ConfigError) as error:
        finetune({**model, "predicts": "number"}, data="digits", hardware=CPU)
    assert str(error.value) == (
        "model.predicts=number: only text encoders learn tags of words and numbers, and images have classes. "
        "Leave it out."
    )


def test_numbers_that_do_not_differ_are_refused_and_texts_without_one_left_out(
    folder: Path, tmp_path: Path
) -> None:
    with_tokenizer(tmp_path / "tokenizer")
    root = tmp_path / "own"
    root.mkdir()
    write_labels(root / "same.csv", [(f"the {noun}", 2.5) for noun in NOUNS])
    with pytest.raises(DataError) as error:
        small_text(root, "same", data={"test_share": 0.0})
    assert str(error.value) == (
        "task 'same': the mean of its 6 training labels is 2.5 and their standard deviation 0. "
        "Numbers that differ, and are below 1e+30, can be learned: pass other texts, or "
        "data.label_column=NAME of another column."
    )
    write_labels(root / "some.csv", [(f"the {noun}", "" if n < 2 else n / 4) for n, noun in enumerate(NOUNS)])
    done = small_text(root, "some", data={"test_share": 0.0}, training={"head_steps": 1, "steps": 0})
    assert "2 texts without a label left out" in done.notes
