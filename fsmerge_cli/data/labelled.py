"""Labelled images or texts for supervised training: kept in memory if they are few, else read when needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.inputs import Inputs, NamedTensors, join
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.base import ImageSet
from fsmerge_cli.data.draw import READ_BATCH
from fsmerge_cli.data.reading import read
from fsmerge_cli.data.transfer import Feed

MAX_KEPT_BYTES = 2**31
"""Size up to which images are read once and kept in memory; larger sets are read again in every epoch."""


class Pool:
    """Labelled images or texts of one task, kept in memory if they are few, else read when needed.

    Rows are indices of `images`. Both ways give the same inputs (pixels in 0..1 [n, C, H, W]) and labels: classes
    [n]; numbers [n], fp32, where these are predicted; of texts read word by word the class of every such word.
    """

    def __init__(self, images: ImageSet, hardware: Hardware, device: torch.device) -> None:
        self.images, self.hardware, self.device = images, hardware, device
        self._feed: Feed | None = None
        self._places: dict[int, int] = {}
        self._texts: NamedTensors | None = None
        self._tags: dict[int, list[int]] = {}
        self.classes = torch.empty(0, dtype=torch.long)

    def keep(self, rows: Sequence[int], item_bytes: int, progress: Progress) -> None:
        """Read `rows` into memory if they take at most MAX_KEPT_BYTES. item_bytes: of the largest input."""
        if len(rows) * item_bytes > MAX_KEPT_BYTES:
            return
        table, texts, labels, done = torch.empty(0), list[Inputs](), list[Tensor](), 0
        for inputs, classes in read(self.images, rows, READ_BATCH, self.hardware.workers):
            if isinstance(inputs, Tensor):
                table = table if done else torch.empty(len(rows), *inputs.shape[1:])
                table[done : done + len(inputs)] = inputs
            else:
                texts.append(inputs)
            labels.append(classes)
            done += len(inputs)
            progress(Event("read images", done, len(rows), images=1))
        self.classes = torch.cat(labels)
        self._places = {row: place for place, row in enumerate(rows)}
        if self.images.tags is not None:
            self._tags = {row: self.images.tags(row) for row in rows}
        if texts and isinstance(found := join(texts), NamedTensors):
            self._texts = found
        else:
            self._feed = Feed(table, self.device)

    def batches(self, parts: Iterator[Sequence[int]], size: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Inputs and labels of every part; all parts have `size` rows except the last."""
        if self._places:
            for part in parts:
                at = torch.tensor([self._places[row] for row in part])
                yield self._kept(at), self._labels(part, self.classes[at]).to(self.device)
            return
        gpu, start = self.device.type == "cuda", 0
        rows = list(itertools.chain.from_iterable(parts))
        for inputs, classes in read(self.images, rows, size, self.hardware.workers, pinned=gpu):
            part, start = rows[start : start + len(inputs)], start + len(inputs)
            yield inputs.to(self.device, non_blocking=gpu), self._labels(part, classes).to(self.device)

    def _labels(self, rows: Sequence[int], classes: Tensor) -> Tensor:
        """What is predicted for these rows. classes: of every one, where it has one."""
        if self.images.values is not None:
            return torch.tensor([self.images.values[row] for row in rows], dtype=torch.float32)
        if self.images.tags is None:
            return classes
        own = [self._tags[row] if row in self._tags else self.images.tags(row) for row in rows]
        return torch.tensor(list(itertools.chain.from_iterable(own)), dtype=torch.long)

    def _kept(self, at: Tensor) -> Inputs:
        """Texts are trimmed before they are moved: on a GPU nothing could be trimmed without waiting for it."""
        if self._texts is not None:
            return self._texts[at].trimmed().to(self.device)
        found: Tensor = self._feed[at]  # type: ignore[index]  # `keep` has set one of both
        return found

    def all(self, rows: Sequence[int]) -> Iterator[tuple[Inputs, Tensor]]:
        """Every row of `rows` once, in batches of hardware.eval_batch."""
        size = self.hardware.eval_batch
        return self.batches((rows[i : i + size] for i in range(0, len(rows), size)), size)
