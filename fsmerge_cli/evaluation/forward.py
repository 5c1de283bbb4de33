"""Models run over the test images of all tasks; outputs that other runs need as well are cached."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fsmerge_cli.common.cache import try_cached_table
from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.inputs import Inputs, content
from fsmerge_cli.common.progress import Event, Progress
from fsmerge_cli.data.base import ImageSet
from fsmerge_cli.data.reading import read
from fsmerge_cli.data.transfer import fits
from fsmerge_cli.models.dense import Dense, embedded
from fsmerge_cli.models.head import Head
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.feature_key import Network, feature_key
from fsmerge_cli.training.teachers import network

T = TypeVar("T")

Forward = Callable[[Inputs], tuple[list[Tensor], list[Tensor]]]
"""Image batch -> estimated features of every source, and logits of every head."""


@dataclass(frozen=True)
class Reused:
    """A `Forward` of networks that other runs evaluate on the same images too, so that it is worth a cache entry.

    features: image batch -> features of every network, [n, d_i]. outputs: these features -> the values of a
    `Forward`. networks: what the features depend on; widths: their sizes.
    """

    features: Callable[[Inputs], list[Tensor]]
    outputs: Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]
    networks: Sequence[Network]
    widths: Sequence[int]

    def __call__(self, pixels: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        """As a `Forward`."""
        return self.outputs(self.features(pixels))


@dataclass(frozen=True)
class Outputs:
    """Outputs of one model for all test images: logits per head [n, classes], features per source [n, d_i].

    calibrating: logits per head on the images that temperatures are fitted on, [m, classes]; empty without them.
    every: outputs of all heads, also of those that predict a number, whose are not among the logits. numbers: the
    outputs of the latter by task, [n].
    """

    logits: list[Tensor]
    features: list[Tensor]
    calibrating: Sequence[Tensor] = ()
    every: Sequence[Tensor] = ()
    numbers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TestSet:
    """The test images of all tasks, one set per task (None: no images), concatenated in task order."""

    __test__ = False  # not a test class

    tasks: tuple[str, ...]
    sets: tuple[ImageSet | None, ...]
    hardware: Hardware
    device: torch.device
    progress: Progress

    def predict(self, forward: Forward, what: str) -> Outputs:
        """Run a model over every task's test images."""
        logits: list[list[Tensor]] = []
        features: list[list[Tensor]] = []
        with torch.inference_mode():
            batches = self._cached(forward, what) if isinstance(forward, Reused) else None
            for estimates, outputs in batches or self._run(forward, what):
                features.append([f.float().cpu() for f in estimates])
                logits.append([a.float().cpu() for a in outputs])
        found, estimated = ([torch.cat(parts) for parts in zip(*rows)] for rows in (logits, features))
        return Outputs(found, estimated)

    def _run(self, run: Callable[[Inputs], T], what: str) -> Iterator[T]:
        """The results of every batch."""
        done = 0
        for pixels in self._batches():
            yield run(pixels.to(self.device, non_blocking=self.device.type == "cuda"))
            done += len(pixels)
            self.progress(Event(f"evaluate {what}", done, len(self), images=1))

    def _cached(self, forward: Reused, what: str) -> Iterator[tuple[list[Tensor], list[Tensor]]] | None:
        """The same from the features in the cache; None where nothing is cached.

        On a GPU reading and hashing the images takes longer than the networks do.
        """
        if self.device.type != "cpu" or self.hardware.features != "disk" or not len(self):
            return None
        if any(t.dtype != torch.float32 for _, _, own in forward.networks for t in own.values()):
            return None
        key = feature_key(forward.networks, self._digest, __name__, self.hardware, self.device)
        shape = sum(self._sizes), sum(forward.widths)
        rows = partial(self._run, forward.features, what)
        table = try_cached_table(key, shape, lambda: (torch.cat(own, 1) for own in rows()), self.progress)
        if table is None:
            return None
        self.progress(Event(f"evaluate {what}", len(self), len(self), images=1))
        return self._outputs_of(table, forward)

    def _outputs_of(self, table: Tensor, forward: Reused) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """From the features of all images, in the batches in which the networks would run: to the bit the same."""
        for own in torch.split(table, self._sizes):
            for part in torch.split(own, self.hardware.eval_batch):
                features = torch.split(part, list(forward.widths), 1)
                yield forward.outputs([f.contiguous() for f in features])

    def _batches(self) -> Iterator[Inputs]:
        hardware = self.hardware
        for own in filter(None, self.sets):
            pinned = self.device.type == "cuda"
            for pixels, _ in read(own, range(len(own)), hardware.eval_batch, hardware.workers, pinned=pinned):
                yield pixels

    @cached_property
    def _digest(self) -> str:
        """SHA-256 of all images."""
        digest = hashlib.sha256(repr([len(own) if own else 0 for own in self.sets]).encode())
        done = 0
        for pixels in self._batches():
            if isinstance(pixels, Tensor):
                digest.update(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
                digest.update(pixels.contiguous().numpy().data)
            else:
                digest.update(repr([content(item) for item in pixels]).encode())
            done += len(pixels)
            self.progress(Event("hash test images", done, len(self), images=1))
        return digest.hexdigest()

    def __len__(self) -> int:
        return sum(len(own) for own in self.sets if own)

    @cached_property
    def _labels(self) -> list[Tensor]:
        """Class index of every row of features, by set."""
        rows = [[label for j in range(len(s)) for label in s.labels(j)] for s in self.sets if s]
        return [torch.tensor(own, dtype=torch.long) for own in rows]

    @property
    def _sizes(self) -> list[int]:
        """Number of rows of features, by set."""
        return [len(own) for own in self._labels]

    def values(self) -> Tensor:
        """The number that is to be predicted for every test image, [n], fp64 (NaN: none)."""
        nothing = [math.nan]
        parts = [s.values or nothing * size for s, size in zip(filter(None, self.sets), self._sizes)]
        return torch.tensor([value for own in parts for value in own], dtype=torch.float64)

    def truth(self) -> tuple[Tensor, Tensor]:
        """Task index [n] and class index [n] of every test image, or of every word of a text that is read so."""
        places = [i for i, s in enumerate(self.sets) if s]
        task = [torch.full((size,), i) for i, size in zip(places, self._sizes)]
        empty = torch.empty(0, dtype=torch.long)
        return torch.cat([empty, *task]), torch.cat([empty, *self._labels])


def merged_forward(
    backbone: Callable[[Inputs], Tensor],
    projectors: Sequence[Tensor],
    heads: Sequence[Head | None],
    reused: Network | None = None,
    dense: Sequence[Sequence[Dense]] = (),
) -> Forward:
    """One backbone with a projector (U_out) and a folded head per task. reused: see `Reused`.

    dense: the layers behind the features of every source (empty: there are none).
    """
    layers = dense or [()] * len(projectors)

    def outputs(features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        (z,) = features
        estimates = [embedded(own, z @ U.T) for own, U in zip(layers, projectors)]
        return estimates, [head(z) for head in heads if head]

    if reused is None:
        return lambda pixels: outputs([backbone(pixels)])
    return Reused(lambda pixels: [backbone(pixels)], outputs, [reused], [reused[1].features])


def ensemble_forward(sources: Sequence[Source], device: torch.device) -> Reused:
    """All sources side by side: the reference of a merged model.

    If they take too much of the GPU's memory (see `data.transfer.fits`), each one is moved there for its forward
    pass only.
    """
    size = sum(t.nbytes for s in sources for t in s.weights.values())
    networks = [network(source, device if fits(size, device) else "cpu") for source in sources]
    heads = [s.head.to(device) if s.head else None for s in sources]

    def run(module: nn.Module, pixels: Inputs) -> Tensor:
        features: Tensor = functional_call(
            module, {n: t.to(device) for n, t in module.state_dict().items()}, (pixels,)
        )
        return features

    def outputs(features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        own = [source.embeddings(f) for source, f in zip(sources, features)]
        return own, [head(f) for head, f in zip(heads, features) if head]

    networks_of = [(s.family, s.arch, s.weights) for s in sources]
    widths = [s.arch.features for s in sources]
    return Reused(lambda pixels: [run(module, pixels) for module in networks], outputs, networks_of, widths)
