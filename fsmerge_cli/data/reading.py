"""Images are decoded by worker processes, and a bad one is reported as if there were none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import default_collate as stacked

from fsmerge_cli.common.errors import DataError

T = TypeVar("T", covariant=True)

SHOWN = 10
"""Images that cannot be read are named up to so many."""


class Items(Protocol[T]):
    """Anything that gives an item for a number."""

    def __getitem__(self, index: int) -> T:
        """The item; raises DataError where it cannot be read."""


@dataclass(frozen=True)
class _Shielded(Generic[T]):
    """The same items, but an error is one of them: raised in a worker it would lose its words."""

    items: Items[T]

    def __getitem__(self, index: int) -> tuple[int, T | DataError]:
        try:
            return index, self.items[index]
        except DataError as error:
            return index, error


@dataclass(frozen=True)
class Part:
    """A batch: numbers of the items that could be read, those stacked (None: none), what is wrong with others."""

    numbers: Sequence[int]
    content: Any
    errors: Mapping[int, DataError]


def read(items: Items[Any], order: Sequence[int], batch: int, workers: int, pinned: bool = False) -> Iterator[Any]:
    """Batches of items in the given order, stacked: [<= batch, ...] per part of an item.

    workers: processes that read ahead (0: this one). pinned: in memory that a GPU copies from directly.
    Raises DataError that names every item of `order` that cannot be read, also where a worker dies.
    """
    errors: list[DataError] = []
    for part in sift(items, order, batch, workers, pinned):
        errors += part.errors.values()
        if not errors:  # else the others are only looked at, to be named too
            yield part.content
    if errors:
        raise together(errors)


def sift(
    items: Items[Any], order: Sequence[int], batch: int, workers: int, pinned: bool = False
) -> Iterator[Part]:
    """The same, but batches lack the items that cannot be read. Raises DataError where a worker dies."""
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
            yield Part(*found)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that reads images died ({str(error).splitlines()[0]}). It may have had too little memory, "
            "or shared memory (/dev/shm). Pass hardware.workers=0, or fewer workers than now."
        ) from None


def together(errors: Sequence[DataError]) -> DataError:
    """One error that says up to SHOWN of them."""
    if len(errors) == 1:
        return errors[0]
    lines = "\n".join(f"  - {error}" for error in errors[:SHOWN])
    more = f"\n  - and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return DataError(f"{len(errors)} images cannot be read:\n{lines}{more}")


def _collate(items: list[tuple[int, Any]]) -> tuple[list[int], Any, dict[int, DataError]]:
    errors = {number: item for number, item in items if isinstance(item, DataError)}
    good = [(number, item) for number, item in items if not isinstance(item, DataError)]
    return [number for number, _ in good], stacked([item for _, item in good]) if good else None, errors
