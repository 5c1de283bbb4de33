"""Images are decoded by worker processes, and a bad one is reported as if there were none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import default_collate as stacked

from fsmerge_cli.errors import DataError

T = TypeVar("T", covariant=True)


class Items(Protocol[T]):
    """Anything that gives an item for a number."""

    def __getitem__(self, index: int) -> T:
        """The item; raises DataError where it cannot be read."""


@dataclass(frozen=True)
class _Shielded(Generic[T]):
    """The same items, but an error is one of them: raised in a worker it would lose its words."""

    items: Items[T]

    def __getitem__(self, index: int) -> T | DataError:
        try:
            return self.items[index]
        except DataError as error:
            return error


def read(items: Items[Any], order: Sequence[int], batch: int, workers: int, pinned: bool = False) -> Iterator[Any]:
    """Batches of items in the given order, stacked: [<= batch, ...] per part of an item.

    workers: processes that read ahead (0: this one). pinned: in memory that a GPU copies from directly.
    Raises DataError, also where a worker dies.
    """
    if not order:
        return
    loader: DataLoader[Any] = DataLoader(
        _Shielded(items),  # type: ignore[arg-type]  # it asks for a Dataset and needs only __getitem__
        batch,
        sampler=order,
        num_workers=workers,
        pin_memory=pinned,
        collate_fn=_collate,
        generator=torch.Generator(),  # else it draws from the global one, for seeds that nobody reads here
    )
    try:
        for found in loader:
            if isinstance(found, DataError):
                raise found
            yield found
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that reads images died ({str(error).splitlines()[0]}). It may have had too little memory, "
            "or shared memory (/dev/shm). Pass hardware.workers=0, or fewer workers than now."
        ) from None


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, DataError)), None) or stacked(items)
