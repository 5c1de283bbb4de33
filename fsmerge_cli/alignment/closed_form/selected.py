"""The closed form of a network with operations on single units: units are selected, layers are regressed.

An activation behind every sum (ResNet) or every layer (VGG), or a depthwise convolution of the stream (ConvNeXt)
leaves no directions to choose from: a merged unit is one unit of one source. What is read from the units that
are left out is reconstructed from those that are kept, by least squares over the patches that a layer reads, on
the inputs that the already merged layers produce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.assembly import Assembly, Maps, selections
from fsmerge_cli.alignment.closed_form.finished import Finished
from fsmerge_cli.alignment.closed_form.folds import FoldMoments
from fsmerge_cli.alignment.closed_form.options import ClosedFormOptions
from fsmerge_cli.alignment.closed_form.patches import (
    input_rows,
    output_rows,
    positions,
    regressors,
    sampled_places,
    units_first,
    weight_of,
)
from fsmerge_cli.alignment.closed_form.space_selection import selected_units
from fsmerge_cli.alignment.closed_form.stages import embed, run
from fsmerge_cli.alignment.closed_form.steps import Step
from fsmerge_cli.alignment.closed_form.stream_scales import acts_in_stream, stream_scales
from fsmerge_cli.architectures.ports import Port, Unit
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.training.teachers import batches

MAX_REGRESSORS = 6144
"""Layers that read more values per output are folded, sum_i M_i W_i U_i, and not fitted (2 GB of sums in fp64)."""


@dataclass
class SelectedSolver:
    """assembly: receives the result. networks: of the sources. images: rows [n, C, H, W]. folds: of these.

    finished: layers.
    """

    assembly: Assembly
    networks: Sequence[nn.Module]
    steps: Sequence[Step]
    images: Tensor
    folds: Tensor
    options: ClosedFormOptions
    finished: Finished
    _block: str | None = None
    _streams: list[list[Tensor]] = field(default_factory=list)
    _scales: Mapping[str, Sequence[float]] = field(default_factory=dict)
    _factors: Maps = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, list[list[float]]]:
        """What to report, one entry per layer."""
        return self.finished.facts

    def solve(self) -> tuple[Tensor, ...]:
        """Solve all layers; the projectors U_out [d_i, d']."""
        assembly, plan = self.assembly, self.assembly.plan
        self.finished.load()
        chosen = dict(self.finished.more)
        if not chosen:
            seed, device = self.options.seed, assembly.device
            chosen = selected_units(plan, self.networks, assembly.weights, self.images, device, seed)
        maps = {name: selections(own, plan.spaces[name].sources) for name, own in chosen.items()}
        self._set_maps(maps)
        self._set_units(maps)
        for step in self.steps[self.finished.done :]:
            self._solve(step, chosen)
            self.finished.add(len(self.steps), chosen)
        self.facts["units"] = [[sum(float(maps[name][i].sum()) for name in maps) for i in assembly.sources]]
        return self._features(chosen)

    def _set_maps(self, maps: Mapping[str, Sequence[Tensor]]) -> None:
        """M of every port: the selection, times LayerScale behind the port and the scale of the stream."""
        assembly = self.assembly
        plan, images, device = assembly.plan, self.images, assembly.device
        self._scales = stream_scales(plan, self.networks, self.steps, images, device)
        behind = {step.write: step.scale for step in self.steps if step.scale is not None}
        for port in plan.writes:
            for i, M in enumerate(maps[port.space]):
                factors = torch.full(M.shape[1:], self._scale(port, i), dtype=M.dtype, device=device)
                if port in behind:
                    factors = factors * assembly.weights[i][behind[port]].double()
                self._factors[port, i] = factors
                assembly.merge[port, i] = M * factors

    def _scale(self, port: Port, source: int) -> float:
        found = self._scales.get(str(port)) or self._scales.get(port.space)
        return found[source] if found else 1.0

    def _set_units(self, maps: Mapping[str, Sequence[Tensor]]) -> None:
        """Per-unit tensors are those of the selected units; factors before a sum are folded, and are 1."""
        assembly, blocks = self.assembly, self.assembly.plan.family.blocks(self.networks[0])
        for name, role in assembly.plan.roles.items():
            if not isinstance(role, Unit):
                continue
            space = role.port.space
            scaled = acts_in_stream(self.networks[0], blocks, name)
            parts = [
                torch.tensordot(M, w[name].double(), 1) * (self._scale(role.port, i) if scaled else 1.0)
                for i, (M, w) in enumerate(zip(maps[space], assembly.weights))
            ]
            assembly.assign(name, torch.stack(parts).sum(0))
        for step in self.steps:
            if step.scale is not None:
                assembly.assign(step.scale, torch.ones(()))

    def _solve(self, step: Step, chosen: dict[str, Tensor]) -> None:
        """Set one layer's weight and bias."""
        assembly, name = self.assembly, f"{step.module}.weight"
        module = assembly.network.get_submodule(step.module)
        if step.read is None:
            assembly.fold(name)
            if assembly.has(f"{step.module}.bias"):
                assembly.fold(f"{step.module}.bias")
            return
        correct = self.options.correct and regressors(module) <= MAX_REGRESSORS
        reading, fitting = self._observe(step, module, correct, chosen)
        sources = list(assembly.plan.spaces[step.read.space].sources)
        found, ridges = reading.fit(self.options.ridge, False, _prior(chosen[step.read.space], sum(sources)))
        for i, part in enumerate(torch.split(found.matrix, sources)):
            assembly.unmerge[step.read, i] = part
        assembly.fold(name)
        has_bias = assembly.has(f"{step.module}.bias")
        if has_bias:
            assembly.fold(f"{step.module}.bias")
        if correct:
            ridges += self._fit(step, module, fitting, has_bias)
        self.facts.setdefault("ridge", []).append(ridges)
        self.facts.setdefault("read_error", []).append(
            [float(part.mean()) for part in torch.split(found.errors, sources)]
        )

    def _fit(self, step: Step, module: nn.Module, fitting: FoldMoments, has_bias: bool) -> list[float]:
        """The weight by least squares on patches; the ridge pulls towards sum_i M_i W_i U_i. The ridges."""
        weight = weight_of(module)
        start, parts = weight.flatten(1), 1 if step.sum is None else 2
        prior = torch.cat([start, *[torch.zeros_like(start)] * (parts - 1)])
        groups = [len(start)] * parts
        fit, ridges = fitting.fit(self.options.ridge, has_bias, prior, groups)
        self.assembly.assign(
            f"{step.module}.weight", torch.stack(fit.matrix.chunk(parts)).sum(0).reshape(weight.shape)
        )
        if has_bias:
            self.assembly.assign(f"{step.module}.bias", torch.stack(fit.intercept.chunk(parts)).sum(0))
        return ridges

    def _observe(
        self, step: Step, module: nn.Module, correct: bool, chosen: dict[str, Tensor]
    ) -> tuple[FoldMoments, FoldMoments]:
        """One pass over all rows: the sources' inputs on the merged ones, and what the layer is to put out.

        The latter in two parts with a ridge each: what the sources put out, and behind a sum the errors of the
        shortcut. The second can be noise on other images, where there are few.
        """
        reading, fitting = FoldMoments(), FoldMoments()
        key, end = step.module, _end(step)
        units = chosen[step.write.space]
        for part, rows in enumerate(batches(len(self.images), self.options.batch)):
            folds = self.folds[rows]
            outputs = [key] if correct else []
            mine = self._run(self.assembly.network, -1, rows, part, step, outputs)
            own = [self._run(net, i, rows, part, step, outputs) for i, net in enumerate(self.networks)]
            x = mine[f"{key}.input"]
            per_image = self.options.rows_per_unit / len(self.images)
            at = self._places(step, "reading", part, x, per_image * x.shape[1])
            inputs = torch.cat([output_rows(found[f"{key}.input"], at) for found in own], -1)
            reading.add(output_rows(x, at).flatten(0, 1), inputs.flatten(0, 1), folds)
            if not correct:
                continue
            y = mine[f"{key}.output"]
            at = self._places(step, "patches", part, y, per_image * regressors(module))
            parts = [
                output_rows(found[f"{key}.output"], at) * self._factors[step.write, i].float()
                for i, found in enumerate(own)
            ]
            targets = [torch.cat(parts, -1)[..., units]]
            if end is not None:
                parts = [output_rows(found[end], at) * self._scale(step.write, i) for i, found in enumerate(own)]
                targets.append(torch.cat(parts, -1)[..., units] - targets[0] - output_rows(mine[end], at))
            fitting.add(input_rows(module, x, at).flatten(0, 1), torch.cat(targets, -1).flatten(0, 1), folds)
        return reading, fitting

    def _places(self, step: Step, what: str, part: int, value: Tensor, wanted: float) -> Tensor:
        random = generator(self.options.seed, what, step.module, part)
        return sampled_places(len(value), positions(value), wanted, random)

    def _run(
        self, network: nn.Module, source: int, rows: slice, part: int, step: Step, outputs: Sequence[str]
    ) -> dict[str, Tensor]:
        """The layer's input and output, and the sum behind it, of one network on one batch."""
        inputs, outputs = [step.module], list(outputs)
        if step.sum is not None and outputs:
            (outputs if step.sum == step.block else inputs).append(step.sum)
        with torch.inference_mode():
            if step.block is None:
                images = self.images[rows].to(self.assembly.device)
                return _units_first(network, run(network, images, inputs, outputs, copy=True))
            self._advance(step.block)
            found = run(
                network.get_submodule(step.block),
                self._streams[source][part].to(self.assembly.device),
                [_inside(name, step.block) for name in inputs],
                [_inside(name, step.block) for name in outputs],
                copy=True,
            )
        named = {f"{step.block}{'.' if key[0] != '.' else ''}{key}": value for key, value in found.items()}
        return _units_first(network, named)

    def _advance(self, block: str) -> None:
        """Run all networks up to the input of `block`, whose earlier layers are solved."""
        blocks = list(dict.fromkeys(step.block for step in self.steps if step.block is not None))
        networks = [*self.networks, self.assembly.network]
        if self._block is None:
            parts = list(batches(len(self.images), self.options.batch))
            device = self.assembly.device
            self._streams = [
                [embed(net, blocks, self.images[rows].to(device)).cpu() for rows in parts] for net in networks
            ]
            self._block = blocks[0]
        while self._block != block:
            for network, stream in zip(networks, self._streams):
                module = network.get_submodule(self._block)
                for part, value in enumerate(stream):
                    stream[part] = module(value.to(self.assembly.device)).cpu()
            self._block = blocks[blocks.index(self._block) + 1]

    def _features(self, chosen: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The projectors, by ridge regression from the merged features to the sources'."""
        sums, device = FoldMoments(), self.assembly.device
        with torch.inference_mode():
            for rows in batches(len(self.images), self.options.batch):
                images = self.images[rows].to(device)
                own = torch.cat([network(images) for network in self.networks], 1)
                sums.add(self.assembly.network(images), own, self.folds[rows])
        space = self.assembly.plan.spaces[self.assembly.plan.features.space]
        prior = _prior(chosen[space.name], sum(space.sources))
        found, ridges = sums.fit(self.options.ridge, False, prior)
        self.facts["ridge_features"] = [ridges]
        parts = torch.split(found.errors, list(space.sources))
        self.facts["feature_error"] = [[float(part.mean()) for part in parts]]
        return tuple(part.float() for part in torch.split(found.matrix, list(space.sources)))


def _prior(chosen: Tensor, size: int) -> Tensor:
    """U that copies every selected unit, [size, selected], fp64."""
    return selections(chosen, [size])[0].T


def _end(step: Step) -> str | None:
    """Under which name the sum behind a layer is recorded."""
    if step.sum is None:
        return None
    return f"{step.sum}.{'output' if step.sum == step.block else 'input'}"


def _inside(name: str, block: str) -> str:
    """The name of a module inside a block; of the block itself it is empty."""
    return name.removeprefix(block).removeprefix(".")


def _units_first(network: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is recorded, as [n, C, h, w] or [n, C]."""
    modules = {key: network.get_submodule(key.rpartition(".")[0]) for key in found}
    return {key: units_first(modules[key], value) for key, value in found.items()}
