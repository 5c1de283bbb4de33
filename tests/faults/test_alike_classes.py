"""Two classes whose names look like one are trained as two, and a note says so."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from fsmerge_cli.data.matching import alike_note
from tests.support.finetuning import MLP, small_finetune, write_class_folders

NOTE = (
    "task 'pets': names that differ only in case, spaces, underscores, leading zeros, forms of letters or "
    "invisible characters are classes of their own: {}. If they are one class, give it one name"
)


@pytest.mark.parametrize(
    ("one", "other", "written"),
    [
        ("Pos", "pos", "'Pos' and 'pos'"),
        ("pos", "pos ", "'pos' and 'pos '"),
        ("big cat", "big_cat", "'big cat' and 'big_cat'"),
        ("1", "01", "'1' and '01'"),
        ("ﬁsh", "fish", "'ﬁsh' and 'fish'"),
        ("\uff12", "2", "'\uff12' and '2'"),
        ("cat\u200b", "cat", r"'cat\u200b' and 'cat'"),
        ("\ufeffcat", "cat", r"'\ufeffcat' and 'cat'"),
        ("café", unicodedata.normalize("NFD", "café"), "'café' and 'cafe\u0301'"),
        ("STRASSE", "straße", "'STRASSE' and 'straße'"),
    ],
)
def test_names_that_look_like_one_are_named(one: str, other: str, written: str) -> None:
    assert alike_note("pets", [one, "dog", other]) == (NOTE.format(written),)


@pytest.mark.parametrize(
    "names", [["cat", "dog"], ["0", "1", "10"], ["a-1", "a1"], ["crane", "crane"], ["é", "e"]]
)
def test_names_that_differ_are_not(names: list[str]) -> None:
    assert alike_note("pets", names) == ()


def test_a_fine_tuning_says_so(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "images", "pets", ("Pos", "pos"))
    data = {"name": "folder", "root": str(tmp_path / "images")}
    done = small_finetune(MLP, "pets", data=data, model={"labels": None}, training={"steps": 2, "head_steps": 2})
    assert NOTE.format("'Pos' and 'pos'") in done.notes
