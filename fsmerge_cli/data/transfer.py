"""Rows of a large table go to where they are computed with, and results come back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

SHARE = 4
"""A table is kept on a GPU where it takes no more than one part in so many of the free memory."""


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may stay on `device` while other work goes on there."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= free // SHARE


class Feed:
    """`feed[rows]`: rows of a table in host memory (or a mapped file), on `device`.

    On the CPU this is indexing. On a GPU the table moves there once if it takes a quarter of the free memory or
    less; otherwise the asked rows are gathered into pinned memory and copied while the GPU goes on computing.
    (Pinning the whole table would not help: rows picked from it are a new tensor, in ordinary memory.)
    """

    def __init__(self, table: Tensor, device: torch.device) -> None:
        self.device = device
        self.moved = fits(table.nbytes, device)
        self._table = table.to(device) if self.moved else table

    def __len__(self) -> int:
        """Rows in the table."""
        return len(self._table)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Rows (indices [m] on any device) as a new tensor [m, ...] on the device."""
        if self.moved:
            return self._table[rows.to(self.device, non_blocking=True)]
        shape = (len(rows), *self._table.shape[1:])
        pinned = torch.empty(shape, dtype=self._table.dtype, pin_memory=True)  # reused by torch once copied
        torch.index_select(self._table, 0, rows.cpu(), out=pinned)
        return pinned.to(self.device, non_blocking=True)


def fetched(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same tensors in host memory, in order; those of a GPU come back while the next one is computed."""
    before: tuple[Tensor, torch.cuda.Event | None] | None = None
    for part in parts:
        host, arrived = part.to("cpu", non_blocking=True), None
        if part.is_cuda:
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(part.device))
        if before is not None:
            yield _whole(*before)
        before = host, arrived
    if before is not None:
        yield _whole(*before)


def _whole(host: Tensor, arrived: torch.cuda.Event | None) -> Tensor:
    if arrived is not None:
        arrived.synchronize()
    return host
