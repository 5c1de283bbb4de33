"""Texts in Parquet files and in data sets of Hugging Face: columns, classes, splits, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fsmerge_cli.common.errors import ConfigError, DataError
from fsmerge_cli.data import Task
from fsmerge_cli.data.text.hf_text import HuggingFaceTexts
from fsmerge_cli.data.text.text import Texts

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")

LABELS = ("good", "bad")
MOOD = Task("mood", LABELS)
ROWS = {"sentence": ["it was good", "it was bad", " ", "so good"], "label": [0, 1, 1, 0]}
EXPECTED = [("it was good", 0), ("it was bad", 1), ("so good", 0)]


def data_set(rows: dict[str, Any] = ROWS) -> Any:
    features = datasets.Features(
        {name: datasets.ClassLabel(names=LABELS) if name == "label" else datasets.Value("string") for name in rows}
    )
    return datasets.Dataset.from_dict(rows, features=features)


def items(data: Any, split: Any = "train", task: Task = MOOD) -> list[Any]:
    found = data.build(split, task, lambda text: text)
    assert found is not None
    return [found[i] for i in range(len(found))]


def saved(folder: Path) -> HuggingFaceTexts:
    other = {"sentence": ["not bad"], "label": [0]}
    datasets.DatasetDict({"train": data_set(), "validation": data_set(other)}).save_to_disk(folder / "set")
    return HuggingFaceTexts(path=str(folder / "set"), test_split="validation")


def test_the_splits_of_a_saved_data_set_have_the_names_of_the_classes(tmp_path: Path) -> None:
    data = saved(tmp_path)
    assert items(data) == EXPECTED
    assert items(data, "test") == [("not bad", 0)]
    assert data.classes(MOOD) == LABELS
    found = data.build("train", MOOD, lambda text: text)
    assert found is not None
    assert found.notes == (f"task 'mood': 1 of 4 texts in {tmp_path}/set train are empty: not used",)
    assert HuggingFaceTexts(path=str(tmp_path / "set"), test_split=None).build("test", MOOD, str) is None


def test_a_parquet_file_of_datasets_is_the_same(tmp_path: Path) -> None:
    data_set().to_parquet(tmp_path / "mood.parquet")
    texts = Texts(root=str(tmp_path), test_share=0.0)
    assert items(texts) == EXPECTED
    assert texts.classes(MOOD) == tuple(sorted(LABELS))
    folder = HuggingFaceTexts(path=str(tmp_path), test_split=None)
    assert items(folder) == EXPECTED


def test_columns_are_found_or_given_and_pairs_stay_together(tmp_path: Path) -> None:
    rows = {"premise": ["one", "two"], "hypothesis": ["three", "four"], "other": ["x", "y"], "label": [1, 0]}
    data_set(rows).save_to_disk(tmp_path / "set")
    path = str(tmp_path / "set")
    assert items(HuggingFaceTexts(path=path)) == [(("one", "three"), 1), (("two", "four"), 0)]
    given = HuggingFaceTexts(path=path, text_column="other", pair_column="premise")
    assert items(given) == [(("x", "one"), 1), (("y", "two"), 0)]
    data_set(rows).to_parquet(tmp_path / "mood.parquet")
    table = Texts(train=str(tmp_path / "mood.parquet"), text_column="other", test_share=0.0)
    assert items(table) == [("x", 1), ("y", 0)]
    with pytest.raises(DataError) as error:
        items(HuggingFaceTexts(path=path, text_column="txt"))
    assert str(error.value) == (
        f"{path} train has no column 'txt' (data.text_column). It has premise, hypothesis, other, label."
    )


def test_texts_without_a_class_are_unlabelled(tmp_path: Path) -> None:
    rows = {"sentence": ["one", "two"], "label": [-1, -1]}
    data_set(rows).to_parquet(tmp_path / "mood.parquet")
    assert items(Texts(root=str(tmp_path))) == [("one", -1), ("two", -1)]


def test_an_unknown_split_a_file_and_no_path_are_refused(tmp_path: Path) -> None:
    data = saved(tmp_path)
    with pytest.raises(ConfigError) as error:
        HuggingFaceTexts(path=data.path).build("test", MOOD, str)
    assert str(error.value) == "data.test_split: unknown split 'test'. Available: train, validation."
    data_set().to_parquet(tmp_path / "mood.parquet")
    with pytest.raises(DataError, match=r"^data=hf_text needs data\.path=PATH, a folder or the name of"):
        HuggingFaceTexts().build("train", MOOD, str)
    file = f"{tmp_path}/mood.parquet"
    with pytest.raises(DataError) as wrong:
        HuggingFaceTexts(path=file).build("train", MOOD, str)
    assert str(wrong.value) == f"data=hf_text: {file} is a file. Pass its folder, or data=text data.train=PATH."


def test_a_damaged_file_and_parts_of_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mood.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"mood\.parquet cannot be read \(.*\)\. Repair the file\."):
        items(Texts(root=str(tmp_path)))
    (tmp_path / "topic").mkdir()
    data_set().to_parquet(tmp_path / "topic/train-00000-of-00001.parquet")
    with pytest.raises(DataError) as error:
        items(Texts(root=str(tmp_path)), task=Task("topic", LABELS))
    assert str(error.value) == (
        f"data=text: {tmp_path}/topic holds the splits of a data set of Hugging Face in parts "
        f"(train-00000-of-00001.parquet). Pass data=hf_text data.path={tmp_path}/topic"
    )


@pytest.mark.parametrize("library", ["pyarrow", "datasets"])
def test_a_missing_library_is_named(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set().to_parquet(tmp_path / "mood.parquet")
    for name in [own for own in sys.modules if own.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    data: Any = Texts(root=str(tmp_path)) if library == "pyarrow" else HuggingFaceTexts(path=str(tmp_path))
    with pytest.raises(DataError) as error:
        items(data)
    if library == "datasets":
        assert str(error.value) == "data=hf_text needs Hugging Face's datasets: pip install datasets"
        return
    assert str(error.value) == (
        f"{tmp_path}/mood.parquet: Parquet files need the package pyarrow, which is not installed: pip install "
        "pyarrow"
    )
