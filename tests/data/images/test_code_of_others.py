"""What the code of a user's own collection raises is a DataError that names the place; streams end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.data import content
from fsmerge_cli.data.base import Task
from fsmerge_cli.data.images.in_memory import InMemory
from fsmerge_cli.data.text.in_memory import TextsInMemory

IMAGE = torch.rand(1, 4, 4)
ENDING = "Pass one whose length and rows can be read."


class Own(Dataset[Any]):
    """Items that may be exceptions, and a length that may be one."""

    def __init__(self, items: list[Any], length: Any = None) -> None:
        self.items, self.length = items, length

    def __len__(self) -> int:
        if isinstance(self.length, BaseException):
            raise self.length
        return len(self.items) if self.length is None else int(self.length)

    def __getitem__(self, row: int) -> Any:
        if isinstance(self.items[row], BaseException):
            raise self.items[row]
        return self.items[row]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield IMAGE


def read(value: Any, config: type[InMemory | TextsInMemory] = InMemory) -> list[Any]:
    """All items, as a merge reads them."""
    data = config(content=value)
    data.options()
    data.is_mixed(["a", "b"])
    found = data.build("train", Task("", None), lambda item: torch.zeros(1))
    assert found is not None
    return [found[row] for row in range(len(found))]


def broken() -> Any:
    raise OSError("no network")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            lambda: Own([ValueError("boom")]),
            f"data[0]: ValueError in the code of the collection itself (boom). {ENDING}",
        ),
        (
            lambda: Own([IMAGE, KeyError("late")]),
            "data[1]: KeyError in the code of the collection itself ('late'). ",
        ),
        (
            lambda: Own([IMAGE, StopIteration()]),
            "data[1]: StopIteration in the code of the collection itself (StopIt",
        ),
        (
            lambda: Own([IMAGE], 3),
            "data[1]: IndexError in the code of the collection itself (list index out of ran",
        ),
        (lambda: Own([IMAGE], RuntimeError("?")), "data: RuntimeError in the code of the collection itself (?). "),
        (
            lambda: Own([IMAGE], -1),
            "data: ValueError in the code of the collection itself (__len__() should return",
        ),
        (lambda: Own([IMAGE], 2**70), "data: OverflowError in the code of the collection itself (cannot fit"),
        (lambda: torch.Tensor, "data: TypeError in the code of the collection itself ("),
        (
            lambda: Subset(Own([IMAGE]), [9]),
            "data[0]: IndexError in the code of the collection itself (list index",
        ),
        (
            lambda: DataLoader(Own([IMAGE]), collate_fn=lambda batch: broken()),
            "data: OSError in the code of the co",
        ),
        (
            lambda: torch.empty(3, 1, 4, 4, device="meta"),
            "data: NotImplementedError in the code of the collection",
        ),
        (lambda: torch.rand(3, 1, 4, 4).to_sparse(), "data: TypeError in the code of the collection itself ("),
        (
            lambda: np.ma.masked_array(np.zeros((3, 4, 4)), mask=True),
            "data: a masked array has pixels without a v",
        ),
    ],
)
def test_errors_of_a_collection_name_their_place(value: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        read(value())
    assert str(error.value).startswith(message)
    assert "masked" in message or error.value.__cause__ is not None


def test_a_length_is_asked_for_once() -> None:
    class Shrinking(Own):
        calls = 0

        def __len__(self) -> int:
            self.calls += 1
            return 4 - self.calls

    assert len(read(Shrinking([IMAGE] * 4))) > 0


@pytest.mark.parametrize("value", [Endless, lambda: DataLoader(Endless(), batch_size=2), lambda: iter(int, 1)])
def test_a_stream_without_an_end_is_refused(value: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_STREAMED", 50)
    with pytest.raises(DataError) as error:
        read(value())
    assert str(error.value) == (
        "data has more than 50 items and no length. Pass one that ends, or a Dataset with a length, which is read "
        "when needed."
    )


def test_texts_are_read_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"data: ValueError in the code of the collection itself \(boom\)\. "):
        read(Own([ValueError("boom")]), TextsInMemory)
    monkeypatch.setattr(content, "MAX_STREAMED", 50)
    with pytest.raises(DataError, match="data has more than 50 items and no length"):
        read(iter(lambda: "a text", 1), TextsInMemory)
