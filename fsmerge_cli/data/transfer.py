"""Move rows of a large table to the device that computes with them, and results back to host memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fsmerge_cli.common.inputs import Inputs

MEMORY_FRACTION = 4
"""A table is kept on a GPU if it takes at most 1 / MEMORY_FRACTION of the free memory."""


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may stay on `device` during other work."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= free // MEMORY_FRACTION


class Feed:
    """`feed[rows]`: rows of a table in host memory (or a mapped file), on `device`.

    On the CPU this is indexing. For a GPU, the table is copied there once if it takes at most a quarter of the
    free memory (`fits`). Otherwise the requested rows are gathered into pinned memory and copied while the GPU
    computes. (Pinning the whole table would not help: rows taken from it are a new tensor, in pageable memory.)
    """

    def __init__(self, table: Inputs, device: torch.device) -> None:
        self.device = device
        self.moved = fits(table.nbytes, device)
        self._table = table.to(device) if self.moved else table

    def __len__(self) -> int:
        """Number of rows of the table."""
        return len(self._table)

    def __getitem__(self, rows: Tensor) -> Any:
        """Rows (indices [m] on any device) as new inputs, or a new tensor [m, ...], on the device."""
        if self.moved:
            return self._table[rows.to(self.device, non_blocking=True)]
        if not isinstance(self._table, Tensor):
            return self._table[rows.cpu()].to(self.device, non_blocking=True)
        shape = (len(rows), *self._table.shape[1:])
        pinned = torch.empty(shape, dtype=self._table.dtype, pin_memory=True)  # reused by torch once copied
        torch.index_select(self._table, 0, rows.cpu(), out=pinned)
        return pinned.to(self.device, non_blocking=True)


def to_host(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same tensors in host memory, in order; a tensor of a GPU is copied while the next one is computed."""
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
