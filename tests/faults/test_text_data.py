"""Files of texts from the wild: packed sizes, whole documents in a cell, halves of characters, missing classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.data import DATASETS
from fsmerge_cli.data.base import Task
from fsmerge_cli.data.text import parquet
from fsmerge_cli.data.text.files import Columns, rows_of
from fsmerge_cli.data.text.text import Texts
from fsmerge_cli.data.text.tokens import require_whole
from fsmerge_cli.data.text.words import Words
from fsmerge_cli.runs import finetune_request
from tests.support.encoders import TOPIC, save_encoder, sentence_source

TASK = Task("films", ("neg", "pos"))


def read(root: Path, task: Task = TASK) -> tuple[list[tuple[Any, int]], tuple[str, ...]]:
    """Texts with their classes, and the notes."""
    found = Texts(root=str(root), test_share=0.0).build("train", task, lambda text: text)
    assert found is not None
    return [found.read(row) for row in range(len(found))], found.notes


def table(path: Path, **columns: Any) -> None:
    import pyarrow.parquet as pq
    from pyarrow import table as of

    pq.write_table(of(columns), path)


def packed(path: Path) -> None:
    """Every row stands for the same value, which the file holds once."""
    from pyarrow import DictionaryArray, array

    table(path, text=DictionaryArray.from_arrays(array([0] * 300), array(["x" * 5000])))


def twice(path: Path) -> None:
    import pyarrow.parquet as pq
    from pyarrow import Table, array

    pq.write_table(Table.from_arrays([array(["a"]), array(["b"])], names=["text", "text"]), path)


LIMIT = "holds more than 500 rows or 1 MB of unpacked values, the limit for such a file. Save a part of it."
PARQUET: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "cannot be read (it is a named pipe, not a regular file). Repair the file."),
    "few bytes, many rows": (lambda path: table(path, text=[None] * 501), LIMIT),
    "few bytes, long texts": (packed, LIMIT),
    "two columns of one name": (
        twice,
        "has several columns named text, and only one of them would be read. Rename or remove the others.",
    ),
}


@pytest.mark.parametrize("case", PARQUET)
def test_a_parquet_file_is_read_up_to_a_size(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_ROWS", 500)
    monkeypatch.setattr(parquet, "MAX_BYTES", 2**20)
    make, message = PARQUET[case]
    make(tmp_path / "films.parquet")
    with pytest.raises(DataError) as error:
        Texts(train=str(tmp_path / "films.parquet")).build("train", TASK, lambda text: text)
    assert str(error.value) == f"{tmp_path / 'films.parquet'} {message}"


def test_class_names_that_are_none_are_not_used(tmp_path: Path) -> None:
    import pyarrow.parquet as pq
    from pyarrow import table as of

    stated = '{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "a"]}}}}'
    content = of({"text": ["x", "y"], "label": [0, 1]}).replace_schema_metadata({"huggingface": stated})
    pq.write_table(content, tmp_path / "films.parquet")
    note = "task 'films': its labels are matched to the classes by their order: 'neg' is class 0"
    assert read(tmp_path) == ([("x", 0), ("y", 1)], (note,))


def test_a_cell_may_be_a_document_and_a_label_has_no_spaces_around_it(tmp_path: Path) -> None:
    document = "the " * 50_000
    (tmp_path / "films.csv").write_text(f"text,label\n{document}, pos\nbad,neg \n")
    assert read(tmp_path) == ([(document, 1), ("bad", 0)], ())


@pytest.mark.parametrize("content", ["", "text,label\n", "text,label\n ,pos\n"])
def test_a_file_without_texts_is_called_so_where_class_names_are_read(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=rf"{tmp_path}/t.csv (holds no texts for task 't'|.*is empty)"):
        Texts(train=str(tmp_path / "t.csv")).classes(Task("t", None))


def test_a_file_of_columns_is_not_read_as_the_words_of_one_text(tmp_path: Path) -> None:
    (tmp_path / "films.json").write_text('{"text": ["good", "bad"], "label": ["pos", "neg"]}')
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/films.json holds columns (text, label: a list of all values each), which would be read as "
        "the words of one text. Save a list of objects, or one object per line."
    )


@pytest.mark.parametrize(
    ("name", "content", "tags"),
    [
        ("one.jsonl", '{"text": ["Anna", "left"], "tags": ["PER", "O"]}\n', ("PER", "O")),
        ("one.jsonl", '{"text": ["Anna", "left"], "labels": ["PER", "O"]}\n', ("PER", "O")),
        ("one.ndjson", '{"sentence": ["Anna", "left"]}\n', None),
        ("one.json", '{"text": ["Anna", "left"], "ner_tags": [1, 0]}', (1, 0)),
        ("one.json", '{"tokens": ["Anna", "left"], "labels": ["PER", "O"]}', ("PER", "O")),
        ("one.json", '[{"text": ["Anna", "left"], "labels": ["PER", "O"]}]', ("PER", "O")),
    ],
)
def test_one_record_with_lists_is_a_text_as_its_words(
    name: str, content: str, tags: tuple[Any, ...] | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    (row,) = rows_of(tmp_path / name, Columns())
    assert (row.text, row.label) == (Words(("Anna", "left")), tags)


@pytest.mark.parametrize("label", ["1.0", "true"])
def test_a_label_that_is_no_whole_number_says_what_to_do(label: str, tmp_path: Path) -> None:
    (tmp_path / "films.jsonl").write_text(f'{{"text": "good", "label": {label}}}\n')
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/films.jsonl:1: a label should be a name or a whole number, is {label.title()}. Save it so, "
        "or pass data.label_column=NAME of another column."
    )


def test_a_suffix_in_upper_case_is_one(tmp_path: Path) -> None:
    (tmp_path / "films.CSV").write_text("text,label\nbad,neg\ngood,pos\n")
    assert read(tmp_path) == ([("bad", 0), ("good", 1)], ())


def test_a_file_without_texts_of_a_class_is_read(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for name, content in (("train", "bad,neg\ngood,pos\n"), ("test", "good,pos\n")):
        (tmp_path / f"films/{name}.csv").write_text(f"text,label\n{content}")
    found = Texts(root=str(tmp_path)).build("test", TASK, lambda text: text)
    assert found is not None
    assert [found.read(0), found.classes, found.labelled] == [("good", 1), [1], True]


HALVES = {
    "text": ('{"text": "a \\ud800 b", "label": "pos"}', "the text holds '\\ud800'", "'a \\ud800 b'"),
    "label": ('{"text": "a", "label": "pos\\udfff"}', "the label holds '\\udfff'", "'pos\\udfff'"),
}


@pytest.mark.parametrize("part", HALVES)
def test_a_half_of_a_character_is_refused(part: str, tmp_path: Path) -> None:
    line, what, whole = HALVES[part]
    path = tmp_path / "films.jsonl"
    path.write_text(line)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"{path}:1: {what}, one half of a character, and so is no Unicode text: {whole}. Repair or remove it."
    )
    require_whole("\U0001f600 is written with two halves in JSON")


WITH_PATHS = [
    ("text", "root"),
    ("text", "train"),
    ("hf_text", "path"),
    ("hf", "path"),
    ("tensors", "train"),
    ("torchvision", "root"),
    ("folder", "root"),
]


@pytest.mark.parametrize(("name", "key"), WITH_PATHS)
def test_the_home_folder_of_nobody_is_one_message(name: str, key: str) -> None:
    with pytest.raises(DataError) as error:
        DATASETS[name](**{key: "~nobody-of-that-name/x"})
    assert str(error.value) == (
        f"data.{key}='~nobody-of-that-name/x' cannot be used (Could not determine home directory). Pass another "
        "path."
    )


MISUSED = {
    "images": (
        {"name": "folder", "root": "."},
        "data=folder (--images stands for it) holds images, and these sources read texts. Pass one of hf_text, "
        "none, per_task, sentences, text: data=text data.root=PATH, for example",
    ),
    "numbers": (
        {"name": "text", "root": "."},
        "model.labels: the texts have no class names (their labels are numbers, or there are none). Pass the "
        "names, in the order of the numbers: a list (model.labels=[cat,dog]), or a file (.txt, .json). To predict "
        "the number itself, pass model.predicts=number.",
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("case", MISUSED)
def test_finetune_says_what_its_texts_lack(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "a", sentence_source("BERT", 1, TOPIC))
    Path("films.csv").write_text("text,label\nbad,0\ngood,1\n")
    data, message = MISUSED[case]
    with pytest.raises(ConfigError) as error:
        finetune_request.request({"checkpoint": "a", "task": "films"}, data, None, "cpu", 0, False, False, "60s")
    assert str(error.value) == message
