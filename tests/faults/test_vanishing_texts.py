"""The set of texts and labels never changes silently: files, rows and columns that are not read are named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data.base import Task
from fsmerge_cli.data.text.text import Texts
from fsmerge_cli.runs.predict_texts import texts_in

TASK = Task("films", ("neg", "pos"))


def read(root: Path, task: Task = TASK) -> tuple[list[tuple[Any, int]], tuple[str, ...]]:
    """Texts with their classes, and the notes."""
    found = Texts(root=str(root), test_share=0.0).build("train", task, lambda text: text)
    assert found is not None
    return [found.read(row) for row in range(len(found))], found.notes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label in TASK.labels or ():
        (tmp_path / "films" / label).mkdir(parents=True)
        (tmp_path / "films" / label / "0.txt").write_text(f"{label} text")
    return tmp_path


PLAIN = [("neg text", 0), ("pos text", 1)]


def write(root: Path, name: str, content: str = "other") -> None:
    path = root / "films" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def test_other_formats_are_counted(root: Path) -> None:
    for name in ("pos/a.docx", "pos/b.md", "neg/c"):
        write(root, name)
    (root / "films/pos/broken.txt").symlink_to("gone.txt")
    os.mkfifo(root / "films/pos/pipe.txt")
    note = "1 x .docx, 1 x .md, 1 x broken link, 1 x no regular file, 1 x no suffix"
    where = root / "films"
    assert read(root) == (PLAIN, (f"task 'films': files in {where} that are no texts were not used: {note}",))


def test_folders_of_systems_are_no_classes(root: Path) -> None:
    write(root, "__MACOSX/0.txt")
    write(root, ".git/0.txt")
    assert read(root) == (PLAIN, ())


def test_links_are_followed_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1.txt").write_text("linked")
    (root / "films/pos/more").symlink_to(tmp_path / "more")
    (root / "films/pos/up").symlink_to("..")
    assert read(root) == ([*PLAIN, ("linked", 1)], ())


def test_empty_texts_are_counted(root: Path) -> None:
    write(root, "pos/1.txt", " \n")
    assert read(root) == (PLAIN, (f"task 'films': 1 of 3 texts in {root / 'films'} are empty: not used",))


NOTED = {
    "empty cells": ("text,label\nbad,neg\n,pos\n  ,pos\ngood,pos\n", "2 of 4 texts in {path} are empty: not used"),
    "one column": (
        "bad film\ngood film\n",
        "'bad film' is taken as the name of the only column, not as a text (data.text_column)",
    ),
    "spaces in the first line": ("text , label\nbad,neg\ngood,pos\n", None),
}


@pytest.mark.parametrize("case", NOTED)
def test_rows_that_are_left_out_are_noted(case: str, tmp_path: Path) -> None:
    content, note = NOTED[case]
    path = tmp_path / "films.csv"
    path.write_text(content)
    texts, notes = read(tmp_path)
    assert notes == (() if note is None else (f"task 'films': {note.replace('{path}', str(path))}",))
    assert len(texts) == (1 if case == "one column" else 2)


def test_missing_labels_of_a_head_without_names_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text("text,label\na,0\nb,1\nc,2\nd,-1\ne,\n")
    texts, notes = read(tmp_path, Task("films", ("0", "1", "2"), named=False))
    assert texts == [("a", 0), ("b", 1), ("c", 2)]
    assert notes == (f"task 'films': 2 of 5 texts in {path} have no label (or -1): not used",)


REFUSED: dict[str, tuple[str, str, str]] = {
    "-1 and 1": (
        "films.csv",
        "text,label\nbad,-1\ngood,1\n",
        "{path}: -1 stands for a missing label, and with it the labels (-1, 1) are as many as those of task "
        "'films'. Number the classes from 0, or remove the texts without a label.",
    ),
    "two columns of one name": (
        "films.csv",
        "text,label,label\nbad,neg,pos\n",
        "{path}: its first line names label more than once, and only one of these columns would be read. Rename "
        "or remove the others.",
    ),
    "a key twice": (
        "films.jsonl",
        '{"text": "good", "text": "bad", "label": "pos"}\n',
        "{path}, line 1: the key 'text' stands there twice. Repair the file.",
    ),
    "only a first line": (
        "films.csv",
        "text,label\n",
        "{path} holds no texts for task 'films'. Pass another file or folder.",
    ),
    "names in another order": (
        "films.csv",
        "text,label\nbad,neutral\ngood,neg\n",
        "{path}: task 'films' has 2 labels, of which pos does not match any of the 2 classes (neg, neutral). Pass "
        "models.sources.N.labels=[...] or another data=...",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_be_misread_is_refused(case: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    (tmp_path / name).write_text(content)
    task = Task("films", ("pos", "neg")) if case == "names in another order" else TASK
    with pytest.raises(DataError) as error:
        read(tmp_path, task)
    assert str(error.value) == message.replace("{path}", str(tmp_path / name))


def test_a_class_that_would_end_empty_is_refused(root: Path) -> None:
    write(root, "neutral/a.docx")
    with pytest.raises(DataError) as error:
        read(root)
    assert str(error.value) == (
        f"data=text: the folder {root / 'films/neutral'} has no texts, only 1 x .docx. Save them as .txt, or "
        "remove the folder."
    )


def test_two_places_of_one_task_are_refused(root: Path) -> None:
    (root / "films.csv").write_text("text,label\nbad,neg\n")
    with pytest.raises(DataError) as error:
        read(root)
    assert str(error.value) == (
        f"data=text: {root / 'films'}, {root / 'films.csv'} are all called 'films'. Keep one of them, or pass "
        "data.train=PATH."
    )


def test_a_path_is_not_predicted_as_a_text(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("text\ngood\n")
    assert texts_in(["reviews.csv is a text"]) == (["reviews.csv is a text"], [])
    for given in (path, tmp_path):
        with pytest.raises(DataError) as error:
            texts_in([str(given)])
        assert str(error.value) == (
            f"{given} is a path, and not a .txt file of one text per line. Save its texts as such a file, or give "
            "texts in quotes."
        )


def test_texts_beside_the_splits_are_noted(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("train.csv", "test.csv", "valid.csv"):
        (folder / name).write_text("text,label\nbad,neg\ngood,pos\n")
    assert read(tmp_path)[1] == (
        f"task 'films': of {folder} only train and test are read; texts beside them are not used: valid.csv (1)",
    )
