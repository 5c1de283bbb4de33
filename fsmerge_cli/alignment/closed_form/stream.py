"""The residual stream: one orthogonal projection of the sources' streams, side by side, for all depths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.moments import Moments
from fsmerge_cli.alignment.closed_form.rows import spread_rows
from fsmerge_cli.alignment.closed_form.stages import recorded
from fsmerge_cli.common.inputs import Inputs, in_use
from fsmerge_cli.training.teachers import batches


@dataclass(frozen=True)
class Place:
    """Where the stream can be observed: the input or the output of a module."""

    module: str
    side: str

    @property
    def key(self) -> str:
        """Under which `stages.recorded` reports it."""
        return f"{self.module}.{self.side}"


def names(places: Sequence[Place], side: str) -> list[str]:
    """The modules of the places on one side."""
    return [place.module for place in places if place.side == side]


def stream_moments(
    networks: Sequence[nn.Module],
    places: Sequence[Place],
    rows: Sequence[Tensor | None],
    images: Inputs,
    batch: int,
    device: torch.device,
    centred: bool,
) -> list[Moments]:
    """Second moments of the concatenated streams at every place, fp64.

    rows: weights of the tokens at every place. centred: the mean over the units of each source, which LayerNorm
    removes, is subtracted.
    """
    found = [Moments() for _ in places]
    with torch.inference_mode():
        for part in batches(len(images), batch):
            streams, own = [], images[part].to(device)
            used = in_use(own)
            for network in networks:
                with recorded(network, names(places, "input"), names(places, "output")) as recording:
                    network(own)
                streams.append(recording)
            for place, moments, weights in zip(places, found, rows):
                values = [recording[place.key] for recording in streams]
                if centred:
                    values = [value - value.mean(-1, keepdim=True) for value in values]
                moments.add(torch.cat(values, -1).flatten(0, 1), None, spread_rows(weights, values[0], used))
    return found


@dataclass(frozen=True)
class StreamProjection:
    """maps: R_i [d', d_i] per source, which write into the merged stream. kept: share of the second moments."""

    maps: tuple[Tensor, ...]
    kept: float

    def __call__(self, streams: Sequence[Tensor]) -> Tensor:
        """The merged stream that stands for the sources' streams, sum_i R_i s_i: [*, d_i] each -> [*, d']."""
        return torch.stack([s @ R.T.to(s.dtype) for s, R in zip(streams, self.maps)]).sum(0)


def project_stream(
    moments: Sequence[Moments], sizes: Sequence[int], width: int, centred: bool
) -> StreamProjection:
    """The top directions of the concatenated streams; each source and each depth weighs alike.

    moments: by depth; the last are those behind the last block, where the streams of all sources are scaled to
    equal size (without it the source with the smaller stream is lost). sizes: d_i. width: d'. centred: LayerNorm
    subtracts the mean of the merged units as well, so that one dimension is left to the ones vector.
    """
    total = torch.stack([_weighing_alike(m.second(), sizes) for m in moments]).mean(0)
    values, vectors = torch.linalg.eigh(total)
    count = min(width - 1 if centred else width, len(total))
    basis = (orthogonal_to_ones(width) if centred else torch.eye(width)).to(total)
    projection = basis[:, :count] @ vectors[:, -count:].flip(1).T
    maps = []
    for part, size in zip(torch.split(projection, list(sizes), dim=1), _sizes(moments[-1].second(), sizes)):
        own = part / size
        maps.append(own - own.mean(1, keepdim=True) if centred else own)  # R C, with C = I - 1 1^T / d_i
    kept = values[-count:].sum() / values.sum().clamp(min=1e-300)
    return StreamProjection(tuple(maps), float(kept))


def along(x: Tensor, wanted: Tensor) -> Tensor:
    """Sums for `factor`: x . wanted and x . x of every row, [n, 2] in fp64."""
    x, wanted = x.double(), wanted.double()
    return torch.stack([(x * wanted).sum(-1), x.square().sum(-1)], -1).flatten(0, -2)


def factor(sums: Moments) -> Tensor:
    """The number a with the least squared error of a x for what is wanted, from the rows of `along`."""
    product, square = torch.as_tensor(sums.x).tolist()
    return torch.tensor(max(product / max(square, 1e-300), 1e-6))


def _sizes(second: Tensor, sizes: Sequence[int]) -> list[float]:
    """Root mean square of every source's units."""
    return [max(float(part.mean()), 1e-24) ** 0.5 for part in torch.split(second.diagonal(), list(sizes))]


def _weighing_alike(second: Tensor, sizes: Sequence[int]) -> Tensor:
    scales = [torch.full((d,), 1 / size) for d, size in zip(sizes, _sizes(second, sizes))]
    scale = torch.cat(scales).to(second)
    return second * scale[:, None] * scale


def orthogonal_to_ones(n: int) -> Tensor:
    """[n, n - 1], orthonormal columns that are orthogonal to the ones vector, fp64."""
    start = torch.eye(n, dtype=torch.float64)
    start[:, 0] = 1
    basis: Tensor = torch.linalg.qr(start).Q
    return basis[:, 1:]
