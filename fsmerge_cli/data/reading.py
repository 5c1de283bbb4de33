"""Read images in worker processes, with the same error messages as without workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, default_collate

from fsmerge_cli.common.errors import DataError
from fsmerge_cli.common.inputs import NamedTensors, stack
from fsmerge_cli.common.shown import shown

T = TypeVar("T", covariant=True)

MAX_LISTED = 10
"""Largest number of unreadable images listed in a message."""


class Items(Protocol[T]):
    """Anything that returns an item for an index."""

    def __getitem__(self, index: int) -> T:
        """The item; raises DataError if it cannot be read."""


@dataclass(frozen=True)
class _ErrorsAsItems(Generic[T]):
    """The same items with their indices; a DataError is returned, as one raised in a worker loses its message."""

    items: Items[T]

    def __getitem__(self, index: int) -> tuple[int, T | DataError]:
        try:
            return index, self.items[index]
        except DataError as error:
            return index, error


@dataclass(frozen=True)
class Part:
    """One batch: indices of the items that could be read, these items stacked (None: none), errors by index."""

    indices: Sequence[int]
    content: Any
    errors: Mapping[int, DataError]


def read(items: Items[Any], order: Sequence[int], batch: int, workers: int, pinned: bool = False) -> Iterator[Any]:
    """Batches of items in the given order, stacked: [<= batch, ...] per element of an item.

    workers: processes that read ahead (0: the calling process). pinned: return tensors in pinned memory.
    Raises one DataError for all items of `order` that cannot be read, and one if a worker process dies.
    """
    errors: list[DataError] = []
    for part in read_valid(items, order, batch, workers, pinned):
        errors += part.errors.values()
        if not errors:  # after an error, the rest is read only to collect its errors
            yield part.content
    if errors:
        raise combined_error(errors)


def read_valid(
    items: Items[Any], order: Sequence[int], batch: int, workers: int, pinned: bool = False
) -> Iterator[Part]:
    """As `read`, but a batch holds only the items that can be read, and the errors of the others.

    Raises DataError if a worker process dies.
    """
    if not order:
        return
    loader: DataLoader[Any] = DataLoader(
        _ErrorsAsItems(items),  # type: ignore[arg-type]  # typed as Dataset, but only __getitem__ is used
        batch,
        sampler=order,
        num_workers=workers,
        pin_memory=pinned,
        collate_fn=_collate,
        generator=torch.Generator(),  # else it takes worker seeds, unused here, from the global one
    )
    try:
        for batch_content in loader:
            yield Part(*batch_content)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a process that reads images died ({str(error).splitlines()[0]}). It may have had too little memory, "
            "or shared memory (/dev/shm). Pass hardware.workers=0, or fewer workers than now."
        ) from None


def combined_error(errors: Sequence[DataError]) -> DataError:
    """One error that lists up to MAX_LISTED of `errors`."""
    if len(errors) == 1:
        return errors[0]
    lines = "\n".join(f"  - {shown(error)}" for error in errors[:MAX_LISTED])
    more = f"\n  - and {len(errors) - MAX_LISTED} more" if len(errors) > MAX_LISTED else ""
    return DataError(f"{len(errors)} images cannot be read:\n{lines}{more}")


def stacked(items: list[Any]) -> Any:
    """Items as one batch: of tensors, of inputs with their classes, of inputs alone."""
    first = items[0]
    if isinstance(first, NamedTensors):
        return stack(items)
    if isinstance(first, tuple) and isinstance(first[0], NamedTensors):
        inputs, *others = zip(*items)
        return [stack(inputs), *(default_collate(list(own)) for own in others)]
    return default_collate(items)


def _collate(items: list[tuple[int, Any]]) -> tuple[list[int], Any, dict[int, DataError]]:
    errors = {index: item for index, item in items if isinstance(item, DataError)}
    valid = [(index, item) for index, item in items if not isinstance(item, DataError)]
    return [index for index, _ in valid], stacked([item for _, item in valid]) if valid else None, errors
