"""Attention pooling in closed form: its attention begins a stream, to which its MLP adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.branches import BranchSolver
from fsmerge_cli.alignment.closed_form.moments import Moments
from fsmerge_cli.alignment.closed_form.stages import recorded
from fsmerge_cli.alignment.closed_form.stream import StreamProjection, project_stream
from fsmerge_cli.alignment.closed_form.streams import Further, Streams


class AttentionPooling(BranchSolver):
    """The attention of a pooling. Its stream is what it reads: the stream of the blocks behind the last norm.

    A head has one query for all images, so that one unit of queries and keys is enough for its logits.
    """

    def _start(self, streams: Streams, part: int) -> Tensor:
        return torch.zeros(())

    def _parts(self, after: Streams, part: int, mine: Tensor) -> list[Tensor]:
        target = self._target(after, part)
        return [target, torch.zeros_like(target)]

    def _behind(self, source: int, part: int, before: Tensor, written: Tensor) -> Tensor:
        return written.cpu()

    def _moved(self, mine: Tensor, further: Further) -> Tensor:
        found: Tensor = self._run(self._merged, mine, further, (), [self._writer])[f"{self._writer}.output"]
        return found

    def _every(self, streams: Streams) -> int:
        return 1

    def _queries_and_keys(self, block: nn.Module, found: Mapping[str, Tensor]) -> Sequence[Tensor]:
        latent: Tensor = getattr(block, self._latent.rpartition(".")[2])
        keys = found[f"{self._reader}.output"].chunk(2, dim=-1)[0]
        return latent.expand(len(keys), -1, -1), keys

    @property
    def _latent(self) -> str:
        return self.branch.latent or ""


class PooledMLP(BranchSolver):
    """The MLP of a pooling, on the stream that its attention began."""

    def _module(self, network: nn.Module, block: str) -> nn.Module:
        norm, *_, mlp = self._inner(block)
        return _Residual(network.get_submodule(block), norm, mlp)

    def _inner(self, block: str) -> tuple[str, ...]:
        """The names of its norm and of the module of its layers, inside the pooling."""
        norm = self.branch.norm or ""
        return norm[len(block) + 1 :], self.branch.module[len(block) + 1 :]


class _Residual(nn.Module):
    """x + mlp(norm(x)) with the parts of a pooling, under their names there."""

    def __init__(self, pooling: nn.Module, norm: str, mlp: str) -> None:
        super().__init__()
        self.add_module(norm or "norm", pooling.get_submodule(norm) if norm else nn.Identity())
        self.add_module(mlp, pooling.get_submodule(mlp))
        self._names = norm or "norm", mlp

    def forward(self, x: Tensor) -> Tensor:
        norm, mlp = (self.get_submodule(name) for name in self._names)
        found: Tensor = x + mlp(norm(x))
        return found


def pooled_projection(
    blocks: Sequence[nn.Module],
    writer: str,
    streams: Streams,
    sizes: Sequence[int],
    width: int,
    centred: bool,
    device: torch.device,
) -> StreamProjection:
    """The projection of the streams of all poolings, side by side.

    blocks: the pooling of every source. writer: name of what begins the stream, inside it. streams: what they
    read. The norm of the MLP takes the mean over the units away, the features keep it: of the means of all
    sources, one number each, the top direction is written along the ones vector of the merged stream.
    """
    found, means = [Moments(), Moments()], Moments()
    with torch.inference_mode():
        for part in range(len(streams.merged)):
            values: list[list[Tensor]] = [[], []]
            for block, own in zip(blocks, streams.sources):
                with recorded(block, outputs=[writer, ""]) as recording:
                    block(own[part].to(device))
                for kept, key in zip(values, (f"{writer}.output", ".output")):
                    kept.append(recording[key].flatten(0, -2).double())
            if centred:
                means.add(torch.cat([v.mean(-1, keepdim=True) * v.shape[-1] ** 0.5 for v in values[1]], -1))
                values = [[v - v.mean(-1, keepdim=True) for v in own] for own in values]
            for moments, own_values in zip(found, values):
                moments.add(torch.cat(own_values, -1))
    projection = project_stream(found, sizes, width, centred)
    if not centred:
        return projection
    return StreamProjection(tuple(_with_means(projection, found[-1], means, sizes)), projection.kept)


def _with_means(
    projection: StreamProjection, features: Moments, means: Moments, sizes: Sequence[int]
) -> list[Tensor]:
    parts = torch.split(features.second().diagonal(), list(sizes))
    scale = torch.stack([part.mean().clamp(min=1e-24).rsqrt() for part in parts])
    _, vectors = torch.linalg.eigh(means.second() * scale[:, None] * scale)
    weights = vectors[:, -1] * scale
    maps = []
    for R, weight, size in zip(projection.maps, weights, sizes):
        ones = torch.ones_like(R) / (len(R) * size) ** 0.5
        maps.append(R + weight * ones)
    return maps
