"""The training rows of `fsmerge finetune`: duplicates with other labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsmerge_cli.common.progress import silent
from fsmerge_cli.data.base import Task
from fsmerge_cli.data.text.sentences import Sentences
from fsmerge_cli.data.text.text import Texts
from fsmerge_cli.data.text.tokens import ToTokens
from fsmerge_cli.runs.finetune_rows import Label, _in_words, training_rows

LABELS = ("b\x1bad", "good")
READER = ToTokens(Sentences.tokenization().state, 64, 2)


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        (["the cake,good", "a match,b\x1bad"], []),
        (["the cake,good", "the cake,good"], ["1 image left out, identical to another training image"]),
        (
            ["a match,good", "the cake,b\x1bad", "the cake,good"],
            [
                "1 image left out, identical to another training image",
                "1 training image has more than one label, of which one is trained: {0}:4 is good, and {0}:3, "
                "which is identical, is b\\x1bad",
            ],
        ),
        (
            ["the cake,b\x1bad", "a match,b\x1bad", "a match,good", "the cake,good", "the cake,b\x1bad"],
            [
                "3 images left out, identical to another training image",
                "2 training images have more than one label, of which one is trained: {0}:4 is good, and {0}:3, "
                "which is identical, is b\\x1bad",
            ],
        ),
    ],
)
def test_the_same_input_with_two_labels_is_a_note(rows: list[str], notes: list[str], tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    texts = Texts(root=str(tmp_path), test_share=0.0).build("train", Task("reviews", LABELS), READER)
    assert texts is not None
    order = range(len(texts))[::-1]  # the last one is trained
    found = training_rows(texts, order, len(texts), {}, 0, silent)
    assert found.notes(texts, LABELS) == [note.format(file) for note in notes]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (1, "good"),
        (0, "b\\x1bad"),
        (0.25, "0.25"),
        ((0, -1, 1), "b\\x1bad - good"),
        ((1,) * 99, "good " * 40 + "..."),
    ],
)
def test_labels_of_every_kind_in_words(label: Label, words: str) -> None:
    assert _in_words(label, LABELS) == words
