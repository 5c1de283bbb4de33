"""The closed form of a network whose layers follow each other without a residual stream, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.assembly import Assembly, selections
from fsmerge_cli.alignment.closed_form.finished import Finished
from fsmerge_cli.alignment.closed_form.folds import FoldMoments
from fsmerge_cli.alignment.closed_form.moments import Moments
from fsmerge_cli.alignment.closed_form.options import ClosedFormOptions
from fsmerge_cli.alignment.closed_form.selection import select_units
from fsmerge_cli.alignment.closed_form.stages import run
from fsmerge_cli.architectures.ports import Mapped, Port, Unit
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.training.teachers import batches


@dataclass(frozen=True)
class Layer:
    """One linear layer, the norm behind it and its activation.

    linear: module. read: the port of its input (None: pixels). write: the port of its output. norm: module of a
    BatchNorm behind it (None: none). output: module whose output are the layer's units.
    """

    linear: str
    read: Port | None
    write: Port
    norm: str | None
    output: str


def layers(plan: Plan) -> tuple[Layer, ...] | None:
    """The layers in order; None if the network is not one chain of them."""
    network = plan.skeleton()
    outputs = list(plan.family.layers(network))
    linear = [
        (name.removesuffix(".weight"), role)
        for name, role in plan.roles.items()
        if isinstance(role, Mapped) and name.endswith(".weight")
    ]
    if len(linear) != len(outputs) or any(len(role.write[1]) != 1 for _, role in linear):
        return None
    norms = {
        role.port.space: name.rpartition(".")[0] for name, role in plan.roles.items() if isinstance(role, Unit)
    }
    found: list[Layer] = []
    for (module, role), output in zip(linear, outputs):
        write = role.write[1][0]
        read = role.read[1][0] if role.read else None
        if plan.spaces[write.space].heads is not None or (read is None) != (not found):
            return None
        found.append(Layer(module, read, write, norms.get(write.space), output))
    return tuple(found)


@dataclass
class LayeredSolver:
    """assembly: receives the result. networks: of the sources. images: rows [n, C, H, W]. folds: of these.

    finished: layers.
    """

    assembly: Assembly
    networks: Sequence[nn.Module]
    layers: Sequence[Layer]
    images: Tensor
    folds: Tensor
    options: ClosedFormOptions
    finished: Finished

    @property
    def facts(self) -> dict[str, list[list[float]]]:
        """What to report, one entry per layer."""
        return self.finished.facts

    def solve(self) -> tuple[Tensor, ...]:
        """Solve all layers; the projectors U_out [d_i, d']."""
        activations = [self._units(network) for network in self.networks]
        merged, picked = self.images, [torch.empty(0)]
        self.finished.load()
        if done := self.finished.done:
            merged = self._units(self.assembly.network, [self.layers[done - 1]])[0]
            picked = [self.finished.more[str(i)] for i in self.assembly.sources]
        for place, layer in list(enumerate(self.layers))[done:]:
            following = self.layers[place + 1] if place + 1 < len(self.layers) else None
            if layer.read is not None:
                before = [own[place - 1] for own in activations]
                intercepts = self._read(layer.read, merged, before, picked)
            else:
                intercepts = None
            picked = self._select(layer, [own[place] for own in activations], following)
            self._assign(layer, intercepts)
            if layer.norm is not None:
                self._normalize(layer)
            merged = self._units(self.assembly.network, [layer])[0]
            self.finished.add(len(self.layers), {str(i): M for i, M in enumerate(picked)})
        return self._features(merged, [own[-1] for own in activations], picked)

    def _units(self, network: nn.Module, wanted: Sequence[Layer] | None = None) -> list[Tensor]:
        """The units behind every layer on all images, [n, d]."""
        names = [layer.output for layer in (self.layers if wanted is None else wanted)]
        return self._outputs(network, names)

    def _outputs(self, network: nn.Module, names: Sequence[str]) -> list[Tensor]:
        parts = []
        with torch.inference_mode():
            for rows in batches(len(self.images), self.options.batch):
                found = run(network, self.images[rows].to(self.assembly.device), outputs=names)
                parts.append([found[f"{name}.output"] for name in names])
        return [torch.cat([part[place] for part in parts]) for place in range(len(names))]

    def _select(self, layer: Layer, units: Sequence[Tensor], following: Layer | None) -> list[Tensor]:
        """Select the units of a layer by the error left in the next layer's inputs, or in the features."""
        sums = Moments()
        sums.add(torch.cat(list(units), 1))
        gram = sums.second()
        cross = []
        for i, part in enumerate(torch.split(gram, [own.shape[1] for own in units], dim=1)):
            target = part if following is None else part @ self._next(i, following).T
            cross.append(target / target.norm().clamp(min=1e-300))
        space = self.assembly.plan.spaces[layer.write.space]
        picked = selections(select_units(gram, torch.cat(cross, 1), space.merged), space.sources)
        for i, M in enumerate(picked):
            self.assembly.merge[layer.write, i] = M * self._norm_scale(layer, i)
        self.facts.setdefault("units", []).append([float(M.sum()) for M in picked])
        return picked

    def _next(self, source: int, layer: Layer) -> Tensor:
        """The next layer's weight of one source, with its norm, [q, d_i]."""
        weight = self.assembly.weights[source][f"{layer.linear}.weight"].double()
        return weight * self._norm_scale(layer, source)[:, None]

    def _norm_scale(self, layer: Layer, source: int) -> Tensor:
        """What the layer's BatchNorm multiplies with in evaluation, [d_i]."""
        own = self.assembly.weights[source]
        size = self.assembly.plan.spaces[layer.write.space].sources[source]
        if layer.norm is None:
            return torch.ones(size, dtype=torch.float64, device=self.assembly.device)
        eps = self.networks[source].get_submodule(layer.norm).eps
        return own[f"{layer.norm}.weight"].double() * (own[f"{layer.norm}.running_var"].double() + eps).rsqrt()  # type: ignore[operator]

    def _read(
        self, port: Port, merged: Tensor, before: Sequence[Tensor], picked: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """U_i: from the merged units to those of every source. The ridge pulls towards the selected units."""
        sums = FoldMoments()
        sums.add(merged, torch.cat(list(before), 1), self.folds)
        found, ridges = sums.fit(self.options.ridge, self.options.correct, torch.cat([M.T for M in picked]))
        self.facts.setdefault("ridge", []).append(ridges)
        sizes = [own.shape[1] for own in before]
        for i, part in enumerate(torch.split(found.matrix, sizes)):
            self.assembly.unmerge[port, i] = part
        self.facts.setdefault("read_error", []).append(
            [float(part.mean()) for part in torch.split(found.errors, sizes)]
        )
        return list(torch.split(found.intercept, sizes)) if self.options.correct else None

    def _assign(self, layer: Layer, intercepts: Sequence[Tensor] | None) -> None:
        assembly = self.assembly
        assembly.fold(f"{layer.linear}.weight")
        if not assembly.has(f"{layer.linear}.bias"):
            return
        moved = None
        if intercepts is not None:
            moved = [assembly.weights[i][f"{layer.linear}.weight"].double() @ a for i, a in enumerate(intercepts)]
        assembly.fold(f"{layer.linear}.bias", moved)

    def _normalize(self, layer: Layer) -> None:
        """BatchNorm with the statistics of its merged input, and the affine that gives the sources' function.

        The sources' scale is in M already: the input is M_i s_i W_i x, and M_i t_i is to be added.
        """
        assembly, norm = self.assembly, layer.norm
        inputs = self._outputs(assembly.network, [layer.linear])[0].double()
        mean, variance = inputs.mean(0), inputs.var(0, correction=0)
        eps = float(assembly.network.get_submodule(str(norm)).eps)  # type: ignore[arg-type]
        shift = torch.zeros_like(mean)
        for i in assembly.sources:
            own = assembly.weights[i]
            scale = self._norm_scale(layer, i)
            added = own[f"{norm}.bias"].double() - scale * own[f"{norm}.running_mean"].double()
            shift = shift + (assembly.merge[layer.write, i] != 0).double() @ added
        assembly.assign(f"{norm}.running_mean", mean)
        assembly.assign(f"{norm}.running_var", variance)
        assembly.assign(f"{norm}.weight", (variance + eps).sqrt())
        assembly.assign(f"{norm}.bias", mean + shift)

    def _features(self, merged: Tensor, own: Sequence[Tensor], picked: Sequence[Tensor]) -> tuple[Tensor, ...]:
        sums = FoldMoments()
        sums.add(merged, torch.cat(list(own), 1), self.folds)
        found, ridges = sums.fit(self.options.ridge, False, torch.cat([M.T for M in picked]))
        self.facts["ridge_features"] = [ridges]
        sizes = [part.shape[1] for part in own]
        self.facts["feature_error"] = [[float(part.mean()) for part in torch.split(found.errors, sizes)]]
        return tuple(part.float() for part in torch.split(found.matrix, sizes))
