"""Texts from Python: every form of a collection, their labels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import Task
from fsmerge_cli.data import content as content_module
from fsmerge_cli.data.from_python import from_python
from fsmerge_cli.data.text.in_memory import CONTENT, TextsInMemory
from fsmerge_cli.data.text.sentences import Sentences
from fsmerge_cli.data.text.tokens import ToTokens

LABELS = ("bad", "good")
TEXTS = ["the cake was bad", "the soup was good", "the match was good"]
PLACES = [0, 1, 1]


class Items(torch.utils.data.Dataset[Any]):
    """A Dataset that raises no IndexError behind its end, as many have it."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row % len(self.items)]


def read(content: Any, task: str = "mood", labels: tuple[str, ...] | None = LABELS) -> list[tuple[Any, int]]:
    found = from_python(content, texts=True).build("train", Task(task, labels), lambda text: text)
    assert found is not None
    return [found[i] for i in range(len(found))]


FORMS: dict[str, Any] = {
    "texts and names": (TEXTS, ["bad", "good", "good"]),
    "texts and class indices": (TEXTS, torch.tensor(PLACES)),
    "Dataset": Items([*zip(TEXTS, PLACES)]),
    "mappings": [{"review": t, "label": LABELS[p]} for t, p in zip(TEXTS, PLACES)],
    "per task": {"mood": (TEXTS, PLACES), "other": TEXTS},
    "splits": {"train": (TEXTS, PLACES), "test": TEXTS},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_labelled_texts(form: str) -> None:
    assert read(FORMS[form]) == [*zip(TEXTS, PLACES)]


@pytest.mark.parametrize("content", [TEXTS, Items(TEXTS), torch.utils.data.DataLoader(Items(TEXTS)), iter(TEXTS)])
def test_texts_without_labels_are_of_all_tasks(content: Any) -> None:
    data = from_python(content, texts=True)
    assert isinstance(data, TextsInMemory)
    assert data.is_mixed(["mood", "other"])
    found = data.build("train", Task("", None), lambda text: text)
    assert found is not None
    assert [found[i] for i in range(3)] == [(text, -1) for text in TEXTS]
    assert data.build("test", Task("", None), lambda text: text) is None


def test_pairs_of_texts_stay_together() -> None:
    pairs = [("one", "two"), ("three", "four")]
    assert read(pairs, labels=None) == [(pair, -1) for pair in pairs]
    assert read([(pair, i) for i, pair in enumerate(pairs)]) == [*zip(pairs, (0, 1))]
    columns = [{"premise": a, "hypothesis": b, "label": i} for i, (a, b) in enumerate(pairs)]
    assert read(columns) == [*zip(pairs, (0, 1))]


def test_data_sets_of_hugging_face_have_names_of_classes() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    rows = {"sentence": TEXTS, "label": [1, 0, 0]}
    found = datasets.Dataset.from_dict(rows, features=features)
    assert read(found) == [*zip(TEXTS, PLACES)]
    unlabelled = datasets.Dataset.from_dict({"sentence": TEXTS, "label": [-1] * 3}, features=features)
    assert read(unlabelled) == [(text, -1) for text in TEXTS]
    assert read(datasets.DatasetDict({"train": found, "test": unlabelled})) == [*zip(TEXTS, PLACES)]


def test_a_folder_and_a_file_are_read_as_data_of_texts(tmp_path: Path) -> None:
    assert from_python(tmp_path, texts=True) == {"name": "text", "root": str(tmp_path)}
    assert from_python(tmp_path) == {"name": "folder", "root": str(tmp_path)}
    (tmp_path / "mood.csv").write_text("text,label\nthe cake was bad,bad\nit was good,good\n")
    assert read({"mood": tmp_path / "mood.csv"}) == [("the cake was bad", 0), ("it was good", 1)]


def test_long_texts_are_cut_with_a_note_and_the_content_is_not_written() -> None:
    data = from_python({"name": "in_memory", "content": TEXTS, "max_length": 4, "images_per_task": 2}, texts=True)
    assert data.options()["content"] == "list of 3"
    found = data.build("train", Task("", None), ToTokens(Sentences.tokenization().state, 64, 2))
    assert found is not None
    assert len(found[0][0].mask) == 4
    assert found.notes == (
        "3 of 3 texts are longer than 4 tokens and are cut, which leaves out 33.3 % of all tokens "
        "(data.max_length)",
    )


REFUSED: list[tuple[Any, str]] = [
    ([3], f"data[0] is no text: 3. Pass {CONTENT}."),
    (
        [("a", 0.5)],  # a number is the label of a regression only
        "data[0]: a label should be a name or a whole number, is 0.5. Save it so, or pass data.label_column=NAME "
        "of another column.",
    ),
    (([*"ab"], [0]), "data: there are 2 texts and 1 labels."),
    (7.5 + 0j, f"data: (7.5+0j) is no collection of texts. Pass {CONTENT}."),
    ([], f"data holds no texts. Pass {CONTENT}."),
    ({"other": TEXTS}, "data: there are no texts for task 'mood'. Given: other. Pass {\"mood\": ...}."),
    ({"mood": "nowhere"}, f"data['mood']: nowhere is no folder. Pass {CONTENT}."),
    (
        [{"a": "one", "b": "two"}],
        "data: none of its columns is known to hold the texts: a, b. Pass data.text_column=NAME.",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_other_values_are_refused(content: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        read(content)
    assert str(error.value) == message


def test_only_collections_without_a_length_have_a_largest_number_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "MAX_STREAMED", 2)
    assert read([*TEXTS]) == read(tuple(TEXTS))
    assert read({*TEXTS}) is not None
    with pytest.raises(DataError, match="data has more than 2 items and no length"):
        read(text for text in TEXTS)
