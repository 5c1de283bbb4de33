"""What comes before the blocks: tables (patch projection, tokens, positions, words), and a norm behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.assembly import Assembly, through_constant
from fsmerge_cli.alignment.closed_form.folds import FoldMoments
from fsmerge_cli.alignment.closed_form.moments import Moments
from fsmerge_cli.alignment.closed_form.options import ClosedFormOptions
from fsmerge_cli.alignment.closed_form.outline import Outline
from fsmerge_cli.alignment.closed_form.stages import run
from fsmerge_cli.alignment.closed_form.stream import StreamProjection, along, factor, project_stream
from fsmerge_cli.architectures.ports import Mapped
from fsmerge_cli.common.inputs import Inputs, in_use, used_rows
from fsmerge_cli.training.teachers import batches


class Embeddings:
    """inputs: rows; own: those of every source's task."""

    def __init__(
        self,
        assembly: Assembly,
        networks: Sequence[nn.Module],
        outline: Outline,
        inputs: Inputs,
        own: Sequence[Inputs],
        options: ClosedFormOptions,
    ) -> None:
        self.assembly, self.networks, self.outline = assembly, networks, outline
        self.inputs, self.own, self.options = inputs, own, options

    def write(self, stream: StreamProjection, folds: Tensor) -> None:
        """Write the tables through R, which a norm behind them scales first.

        Where the tables are narrower than the stream (ELECTRA), they are projected by themselves, and the layer
        between writes the sources' streams. folds: of the inputs.
        """
        if self.outline.projected is None:
            self._tables(stream)
            return
        self._tables(self._narrow())
        self._layer_between(self.outline.projected, stream, folds)

    def _tables(self, projection: StreamProjection) -> None:
        assembly, outline = self.assembly, self.outline
        maps: Sequence[Tensor] = projection.maps
        # What reads it has no norm of its own.
        bare = outline.first_norm is not None and assembly.has(f"{outline.first_norm}.bias")
        constant = outline.post_norm or outline.projected is not None or bare
        for module in outline.before:
            maps = set_first_norm(assembly, module, projection, self._spread(module), constant)
        for name in outline.tables:
            role = assembly.plan.roles[name]
            if isinstance(role, Mapped):
                for i in assembly.sources:
                    assembly.merge[role.write[1][0], i] = maps[i]
                assembly.fold(name)
        if constant or outline.first_norm is not None:
            for module in outline.before:
                self._scale(module, projection, constant)

    def _scale(self, module: str, projection: StreamProjection, constant: bool) -> None:
        """The weight of the first norm by least squares, where its size matters: no other norm follows."""
        assembly, sums = self.assembly, Moments()
        weight, shift = assembly.network.get_parameter(f"{module}.weight"), float(constant)
        bias = (
            assembly.network.get_parameter(f"{module}.bias")
            if assembly.has(f"{module}.bias")
            else torch.zeros_like(weight)
        )
        with torch.inference_mode():
            for rows in batches(len(self.inputs), self.options.batch):
                part = self.inputs[rows].to(assembly.device)
                mine, *own = (
                    used_rows(run(network, part, outputs=[module])[f"{module}.output"], in_use(part))
                    for network in (assembly.network, *self.networks)
                )
                sums.add(along(mine - bias, projection(own) - (bias - shift)))
        assembly.assign(f"{module}.weight", weight * factor(sums))

    def _spread(self, module: str) -> list[float]:
        """Root mean variance over the units of what every source's norm reads."""
        found = []
        with torch.inference_mode():
            for network, own in zip(self.networks, self.own):
                some = own[: self.options.batch].to(self.assembly.device)
                x = used_rows(run(network, some, inputs=[module])[f"{module}.input"], in_use(some))
                found.append(float(x.double().var(-1, correction=0).mean().sqrt()))
        return found

    def _narrow(self) -> StreamProjection:
        """The projection of the sources' embeddings, side by side."""
        space, sums = self.assembly.plan.spaces[self.outline.embedded], Moments()
        with torch.inference_mode():
            for rows in batches(len(self.inputs), self.options.batch):
                own = [self._read(network, rows) for network in self.networks]
                sums.add(torch.cat([x - x.mean(-1, keepdim=True) for x in own], 1))
        return project_stream([sums], space.sources, space.merged, centred=True)

    def _read(self, network: nn.Module, rows: slice) -> Tensor:
        """What the layer between tables and stream reads, one row per token."""
        part, module = self.inputs[rows].to(self.assembly.device), self.outline.projected or ""
        return used_rows(run(network, part, inputs=[module])[f"{module}.input"], in_use(part))

    def _layer_between(self, module: str, stream: StreamProjection, folds: Tensor) -> None:
        """Regress the sources' embeddings on the merged ones, and write the sources' streams."""
        assembly, sums = self.assembly, FoldMoments()
        with torch.inference_mode():
            for rows in batches(len(self.inputs), self.options.batch):
                x = self._read(assembly.network, rows)
                used = in_use(self.inputs[rows].to(assembly.device))
                own = torch.cat([self._read(network, rows) for network in self.networks], 1)
                tokens = len(x) // len(folds[rows]) if used is None else used.sum(1).cpu()
                sums.add(x, own, folds[rows].repeat_interleave(tokens))
        role = assembly.plan.roles[f"{module}.weight"]
        if not isinstance(role, Mapped) or role.read is None:
            raise TypeError(f"{module} has no maps")
        read, write = role.read[1][0], role.write[1][0]
        found, _ = sums.fit(self.options.ridge, True)
        sizes = list(assembly.plan.spaces[read.space].sources)
        for i, part in enumerate(torch.split(through_constant(found), sizes)):
            assembly.unmerge[read, i], assembly.merge[write, i] = part, stream.maps[i]
        for name in (f"{module}.weight", f"{module}.bias"):
            assembly.fold(name)


def set_first_norm(
    assembly: Assembly, module: str, projection: StreamProjection, spread: Sequence[float], constant: bool
) -> list[Tensor]:
    """A norm between the tables and the first block; the maps R_i diag(g_i) / spread_i for the tables before it.

    The merged norm has one scale and the bias sum_i R_i b_i. Only where the norms' denominators of all sources are
    constant is that exact; what is missing is left to the blocks. constant: the bias is 1 larger, for intercepts
    of what reads the stream as it is.
    """
    maps, bias = [], torch.zeros(len(projection.maps[0]), dtype=torch.float64, device=assembly.device)
    for i, R in enumerate(projection.maps):
        own = assembly.weights[i]
        gain = R * own[f"{module}.weight"].double() / spread[i]
        maps.append(gain - gain.mean(1, keepdim=True))
        if assembly.has(f"{module}.bias"):
            bias = bias + R @ own[f"{module}.bias"].double()
    square = torch.stack([M.square().sum() * size**2 for M, size in zip(maps, spread)]).sum() / len(maps[0])
    assembly.assign(f"{module}.weight", square.sqrt())
    if assembly.has(f"{module}.bias"):
        assembly.assign(f"{module}.bias", bias + 1 if constant else bias)
    return maps
