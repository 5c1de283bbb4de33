"""The slow reference: an unfolded SuperNet in fp64, which maps activations instead of weights and never folds.

Every module with mapped weights is replaced by k frozen copies in parallel, with U before and M after each, as the
method is published. All other modules (norms, activations, attention) stay those of the skeleton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.architectures.ports import Constant, Mapped, Unit
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.supernet.map_set import MergeMaps
from fsmerge_cli.supernet.maps import Map


class UnfoldedSuperNet(nn.Module):
    """The same function as `SuperNet`, computed as published; for tests and certificates.

    One layer at a time is cast to `dtype`, which saves memory.
    """

    def __init__(
        self,
        plan: Plan,
        maps: MergeMaps,
        weights: Sequence[Mapping[str, Tensor]],
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.plan, self.maps, self.dtype = plan, maps, dtype
        self._weights = tuple(weights)
        self._constants = {n: weights[0][n] for n, role in plan.roles.items() if isinstance(role, Constant)}

    def forward(self, images: Inputs) -> Tensor:
        """Merged features z' of a batch."""
        network = self.plan.skeleton().to(self.dtype).to_empty(device=images.device)
        _set(network, self._constants)
        _set(network, {n: t.to(self.dtype) for n, t in self.maps.units().items()})
        for name in list(self.plan.roles):
            owner, _, leaf = name.rpartition(".")
            role = self.plan.roles[name]
            if isinstance(role, Constant | Unit) or leaf == "bias":
                continue
            module = network.get_submodule(owner)
            if leaf == "weight" and isinstance(module, nn.Linear | nn.Conv2d):
                _replace(network, owner, self._parallel(module, owner, role))
            else:
                _set(network, {name: self._token(name, role)})
        features: Tensor = network(images.to(self.dtype))
        return features

    def project(self, features: Tensor, source: int) -> Tensor:
        """U_out,i z': [n, d'] -> [n, d_i]."""
        ports = self.plan.feature_ports
        parts = features.to(self.dtype).chunk(len(ports), -1)
        return torch.cat([self._cast(self.maps.read(p, source))(part) for p, part in zip(ports, parts)], -1)

    def _parallel(self, module: nn.Linear | nn.Conv2d, owner: str, role: Mapped) -> nn.Module:
        sources = range(len(self._weights))
        reads, writes = role.read[1] if role.read else (), role.write[1]
        copies = [
            _Copy(
                self._weights[i][f"{owner}.weight"],
                self._weights[i].get(f"{owner}.bias"),
                [self.maps.read(port, i) for port in reads],
                [self.maps.write(port, i) for port in writes],
            )
            for i in sources
        ]
        if isinstance(module, nn.Conv2d):
            stride, padding, dilation = module.stride, module.padding, module.dilation
            return _Parallel(lambda x, W, b: F.conv2d(x, W, b, stride, padding, dilation), copies, 1, self._cast)
        return _Parallel(F.linear, copies, -1, self._cast)

    def _token(self, name: str, role: Mapped) -> Tensor:
        axis, (port,) = role.write
        terms = [
            self._cast(self.maps.write(port, i))(w[name].to(self.dtype).movedim(axis, -1)).movedim(-1, axis)
            for i, w in enumerate(self._weights)
        ]
        return torch.stack(terms).sum(0)

    def _cast(self, one: Map) -> Map:
        return one.each(lambda tensor: tensor.to(self.dtype))


@dataclass(frozen=True)
class _Copy:
    """The layer of one source: its weights and the maps before and after it, one per equal part of the axis."""

    weight: Tensor
    bias: Tensor | None
    reads: Sequence[Map]
    writes: Sequence[Map]


class _Parallel(nn.Module):
    """sum_i M_i layer_i(U_i x) along `axis` of the activations."""

    def __init__(
        self,
        layer: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        copies: Sequence[_Copy],
        axis: int,
        cast: Callable[[Map], Map],
    ) -> None:
        super().__init__()
        self._parts = (layer, copies, axis, cast)

    def forward(self, x: Tensor) -> Tensor:
        layer, copies, axis, cast = self._parts
        outputs = []
        for copy in copies:
            inner = _map(x, copy.reads, axis, cast) if copy.reads else x
            bias = None if copy.bias is None else copy.bias.to(x.dtype)
            outputs.append(_map(layer(inner, copy.weight.to(x.dtype), bias), copy.writes, axis, cast))
        return sum(outputs[1:], outputs[0])


def _map(x: Tensor, maps: Sequence[Map], axis: int, cast: Callable[[Map], Map]) -> Tensor:
    parts = x.movedim(axis, -1).chunk(len(maps), dim=-1)
    return torch.cat([cast(m)(part) for m, part in zip(maps, parts)], dim=-1).movedim(-1, axis)


def _set(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by plain tensors, which keep their graph."""
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = network.get_submodule(owner)
        module._parameters.pop(leaf, None)
        module._buffers.pop(leaf, None)
        setattr(module, leaf, tensor)


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(owner), leaf, module)
