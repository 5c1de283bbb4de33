"""Texts in files: every format, the columns that are found, the splits, what is cut, and whole error messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from tokenizers import Tokenizer

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.inputs import READ
from fsmerge_cli.data import DataConfig
from fsmerge_cli.data.base import ImageSet, Task
from fsmerge_cli.data.text.sentences import Sentences
from fsmerge_cli.data.text.text import Texts
from fsmerge_cli.data.text.tokens import ToTokens
from fsmerge_cli.models.tokenization import Side

TASK = Task("mood", ("negative", "positive"))
ROWS = [("the cake was good", "positive"), ("the cake, was bad", "negative"), ("we hated it", "negative")]


def transform() -> ToTokens:
    return ToTokens(Sentences.tokenization().state, 64, 2)


def read(data: DataConfig, split: Any = "train", task: Task = TASK) -> list[tuple[Any, int]]:
    found = data.build(split, task, transform())
    assert isinstance(found, ImageSet)
    return [found.read(i) for i in range(len(found))]


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def csv_of(root: Path) -> None:
    lines = "".join(f'"{text}",{label}\n' for text, label in ROWS)
    write(root / "mood.csv", f"review,label\n{lines}")


def tsv_of(root: Path) -> None:
    write(root / "mood.tsv", "id\tsentence\tsentiment\n" + "".join(f"1\t{t}\t{x}\n" for t, x in ROWS))


def lines_of(root: Path) -> None:
    write(root / "mood.jsonl", "".join(json.dumps({"text": t, "label": x}) + "\n" for t, x in ROWS))


def numbers_of(root: Path) -> None:
    rows = [{"text": t, "label": ["negative", "positive"].index(x)} for t, x in ROWS]
    write(root / "mood.json", json.dumps(rows))


def folders_of(root: Path) -> None:
    for number, (text, label) in enumerate(ROWS):
        write(root / f"mood/{label}/{number}.txt", text)


def splits_of(root: Path) -> None:
    lines = "".join(f'"{text}",{label}\n' for text, label in ROWS)
    write(root / "mood/train.csv", f"text,class\n{lines}")


@pytest.mark.parametrize("form", [csv_of, tsv_of, lines_of, numbers_of, folders_of, splits_of])
def test_every_format_has_the_same_texts_and_labels(form: Any, tmp_path: Path) -> None:
    form(tmp_path)
    data = Texts(root=str(tmp_path), test_share=0.0)
    assert sorted(read(data)) == sorted((text, int(label == "positive")) for text, label in ROWS)
    assert data.build("test", TASK, transform()) is None


def test_plain_lines_have_no_label(tmp_path: Path) -> None:
    write(tmp_path / "mood.txt", "one text\n\nanother text\n")
    assert read(Texts(root=str(tmp_path))) == [("one text", -1), ("another text", -1)]


def test_labelled_texts_are_split_by_their_content(tmp_path: Path) -> None:
    rows = [(f"text number {i}", ("negative", "positive")[i % 2]) for i in range(200)]
    write(tmp_path / "mood.csv", "text,label\n" + "".join(f"{t},{x}\n" for t, x in rows))
    train, test = (read(Texts(root=str(tmp_path)), split) for split in ("train", "test"))
    assert sorted(train + test) == sorted((text, int(label == "positive")) for text, label in rows)
    assert 20 < len(test) < 60
    write(tmp_path / "mood.csv", "text,label\n" + "".join(f"{t},{x}\n" for t, x in rows[::-1]))
    assert sorted(read(Texts(root=str(tmp_path)), "test")) == sorted(test)


def test_two_columns_are_a_pair(tmp_path: Path) -> None:
    write(tmp_path / "mood.csv", "sentence1,sentence2\nthe cake,was good\n")
    data = Texts(root=str(tmp_path))
    assert read(data) == [(("the cake", "was good"), -1)]
    found = data.build("train", TASK, transform())
    assert found is not None
    assert found[0][0].tensors["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_file_named_after_no_task_belongs_to_all(tmp_path: Path) -> None:
    write(tmp_path / "all.txt", "one text\nanother text\n")
    data = Texts(root=str(tmp_path / "all.txt"))
    assert data.is_mixed(["mood", "topic"])
    assert read(data, task=Task("", None)) == [("one text", -1), ("another text", -1)]
    write(tmp_path / "mood.txt", "one text\n")
    assert not Texts(root=str(tmp_path)).is_mixed(["mood", "topic"])


def test_a_note_says_how_much_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "mood.txt", "the cake was good\nwe\n")
    found = Texts(root=str(tmp_path), max_length=4).build("train", TASK, transform())
    assert found is not None
    assert found.notes == (
        "task 'mood': 1 of 2 texts are longer than 4 tokens and are cut, which leaves out 22.2 % of all tokens "
        "(data.max_length)",
    )
    assert len(found[0][0].tensors["input_ids"]) == 4


def test_texts_are_cut_at_the_end_that_is_stated(tmp_path: Path) -> None:
    text = "the unbelievable cake was not bad"
    write(tmp_path / "mood.txt", f"{text}\n")
    tokenizer = transform()
    whole = Tokenizer.from_str(tokenizer.state).encode(text).ids
    expected = {"right": [*whole[:5], whole[-1]], "left": [whole[0], *whole[-5:]]}
    for side in get_args(Side):
        found = Texts(root=str(tmp_path), max_length=6, truncation=side).build("train", TASK, tokenizer)
        assert found is not None
        assert found[0][0].tensors["input_ids"].tolist() == expected[side]
        assert ("are cut at their beginning, which leaves" in found.notes[-1]) is (side == "left")
    left = replace(tokenizer, side="left", longest=len(whole) - 4, words=True)  # inside the second word
    assert left.word_numbers(text) == [2, 3, 4, 5]
    assert int(left(text).tensors[READ].sum()) == 4


def test_special_tokens_alone_are_no_text(tmp_path: Path) -> None:
    write(tmp_path / "mood.csv", "sentence1,sentence2\nthe cake,was good\n")
    with pytest.raises(DataError) as error:
        Texts(root=str(tmp_path), max_length=3).build("train", TASK, transform())
    assert str(error.value) == ("data.max_length=3 leaves no token of a text: 3 are special ones. Pass 4 or more.")


def test_a_quote_in_tsv_is_a_character_like_others(tmp_path: Path) -> None:
    write(tmp_path / "mood.tsv", 'text\tlabel\n"we hated it\tnegative\nthe "cake"\tpositive\n')
    assert read(Texts(root=str(tmp_path), test_share=0.0)) == [('"we hated it', 0), ('the "cake"', 1)]


def test_a_csv_with_semicolons_is_read_by_them(tmp_path: Path) -> None:
    write(tmp_path / "mood.csv", "text;label\nthe cake, was bad;negative\nyes;positive\n")
    assert read(Texts(root=str(tmp_path), test_share=0.0)) == [("the cake, was bad", 0), ("yes", 1)]


def test_the_columns_that_were_chosen_and_those_that_were_not_are_noted(tmp_path: Path) -> None:
    write(tmp_path / "mood.csv", "idx,question,sentence,label\n1,was it good,it was,positive\n2,a,b,negative\n")
    data = Texts(root=str(tmp_path), test_share=0.0)
    found = data.build("train", TASK, transform())
    assert found is not None
    assert read(data) == [(("was it good", "it was"), 1), (("a", "b"), 0)]
    assert found.notes == (
        "task 'mood': texts from 'question' and 'sentence', labels from 'label'; not read: idx (data.text_column, "
        "data.label_column)",
    )


@pytest.mark.parametrize("end", ["\u2028", "\x0c", "\x85"])
def test_only_line_feeds_end_a_line(end: str, tmp_path: Path) -> None:
    write(tmp_path / "mood.txt", f"one{end}text\r\nanother\r")
    assert read(Texts(root=str(tmp_path))) == [(f"one{end}text", -1), ("another", -1)]
    (tmp_path / "mood.txt").unlink()
    write(tmp_path / "mood.jsonl", json.dumps({"text": f"one{end}text"}, ensure_ascii=False))
    assert read(Texts(root=str(tmp_path))) == [(f"one{end}text", -1)]


def test_minus_one_is_no_label(tmp_path: Path) -> None:
    write(tmp_path / "mood.jsonl", "".join(f'{{"text": "{t}", "label": -1}}\n' for t in ("a", "b")))
    assert read(Texts(root=str(tmp_path))) == [("a", -1), ("b", -1)]


def test_a_folder_for_all_tasks_holds_files_of_every_kind(tmp_path: Path) -> None:
    write(tmp_path / "one.csv", "text\na text\n")
    write(tmp_path / "two.txt", "another text\n" * 30)
    data, task = Texts(root=str(tmp_path)), Task("", None)
    assert data.is_mixed(["mood", "topic"])
    assert read(data, task=task) == [("a text", -1), ("another text\n" * 30, -1)]
    assert getattr(data.build("train", task, transform()), "notes", ())[0] == (
        "every .txt file in the folder is read as one text, and 1 of 1 have more than 20 lines. Where a line is a "
        "text, pass the file itself"
    )


WRONG = {
    "no column": (
        "mood.csv",
        "a,b\n1,2\n",
        "mood.csv: none of its columns is known to hold the texts: a, b. Pass data.text_column=NAME.",
    ),
    "not JSON": (
        "mood.jsonl",
        '{"text": "a"}\n{"text\n',
        "mood.jsonl, line 2: this is no JSON object per line. Repair the file.",
    ),
    "a comma without quotes": (
        "mood.csv",
        "text,label\nwe, hated it,negative\n",
        "mood.csv, line 2: there are 3 cells, and the first line names 2 columns (text, label). Repair the file: "
        "a cell with a delimiter stands in quotes in .csv.",
    ),
    "a stray quote": (
        "mood.csv",
        'text,label\n"we hated it,negative\nthe cake,positive\n',
        "mood.csv, line 3: unexpected end of data. A cell with a quote stands in quotes, and the quote is "
        "doubled. Repair the file.",
    ),
    "a list": ("mood.jsonl", "[1]\n", "mood.jsonl, line 1: should be an object, is [1]."),
    "a number": ("mood.jsonl", '{"text": 3}\n', "mood.jsonl, line 1: a text should be a string, is 3."),
    "several labels": (
        "mood.jsonl",
        '{"text": "a", "label": [1, 2]}\n',
        "mood.jsonl:1: a label should be a name or a whole number, is [1, 2]. Several labels per text are not "
        "supported. Pass data.label_column=NAME of another column.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_reported_with_its_place(case: str, tmp_path: Path) -> None:
    name, content, message = WRONG[case]
    write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        read(Texts(root=str(tmp_path)))
    assert str(error.value) == f"{tmp_path}/{message}"


def test_a_missing_task_is_reported_with_the_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(Texts(root=str(tmp_path)))
    assert str(error.value) == (
        f"data=text: {tmp_path} has no texts of task 'mood': neither a folder of this name nor a file with one of "
        "the suffixes .txt, .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .conll."
    )


def test_without_a_place_the_keys_are_named() -> None:
    with pytest.raises(DataError) as error:
        read(Texts())
    assert str(error.value) == (
        "data=text needs data.root=FOLDER, with a file or a folder per task, or data.train=PATH ({task} stands "
        "for the task's name)."
    )
