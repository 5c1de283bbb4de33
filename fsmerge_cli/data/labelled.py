"""Labelled images for supervised training: kept in memory if they are few, else read when needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.base import ImageSet
from fsmerge_cli.data.draw import READ_BATCH
from fsmerge_cli.data.reading import read
from fsmerge_cli.data.transfer import Feed

MAX_KEPT_BYTES = 2**31
"""Size up to which images are read once and kept in memory; larger sets are read again in every epoch."""


class Pool:
    """Labelled images of one task, kept in memory if they are few, else read when needed.

    Rows are indices of `images`. Both ways give the same pixels in 0..1 [n, C, H, W] and classes [n].
    """

    def __init__(self, images: ImageSet, hardware: Hardware, device: torch.device) -> None:
        self.images, self.hardware, self.device = images, hardware, device
        self._feed: Feed | None = None
        self._places: dict[int, int] = {}
        self.pixels = self.classes = torch.empty(0)

    def keep(self, rows: Sequence[int], size: tuple[int, int, int], progress: Progress) -> None:
        """Read `rows`, images of `size`, into memory if they take at most MAX_KEPT_BYTES."""
        if len(rows) * math.prod(size) * 4 > MAX_KEPT_BYTES:
            return
        self.pixels, self.classes = torch.empty(len(rows), *size), torch.empty(len(rows), dtype=torch.long)
        done = 0
        for pixels, classes in read(self.images, rows, READ_BATCH, self.hardware.workers):
            part = slice(done, done + len(pixels))
            self.pixels[part], self.classes[part] = pixels, classes
            done += len(pixels)
            progress(Event("read images", done, len(rows), images=1))
        self._places = {row: place for place, row in enumerate(rows)}
        self._feed = Feed(self.pixels, self.device)

    def batches(self, parts: Iterator[Sequence[int]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and classes of every part; all parts have `size` rows except the last."""
        if self._feed is not None:
            for part in parts:
                at = torch.tensor([self._places[row] for row in part])
                yield self._feed[at], self.classes[at].to(self.device)
            return
        gpu = self.device.type == "cuda"
        rows = list(itertools.chain.from_iterable(parts))
        for pixels, classes in read(self.images, rows, size, self.hardware.workers, pinned=gpu):
            yield pixels.to(self.device, non_blocking=gpu), classes.to(self.device)

    def all(self, rows: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Every row of `rows` once, in batches of hardware.eval_batch."""
        size = self.hardware.eval_batch
        return self.batches((rows[i : i + size] for i in range(0, len(rows), size)), size)
