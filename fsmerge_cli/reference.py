"""The slow truth: an unfolded SuperNet that maps activations, never weights, and never calls `fold`.

Every module that owns mapped weights is replaced by k frozen copies side by side, with U before and M after
each, as the method is published; everything else (norms, activations, attention) stays the skeleton's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_cli.maps import Full, Map, MergeMaps
from fsmerge_cli.plan import Plan
from fsmerge_cli.spaces import Constant, Mapped, Unit


class UnfoldedSuperNet(nn.Module):
    """The same function as `SuperNet`, computed the published way; for tests, certificates and the benchmark.

    dtype: fp64 where it is the truth that something is held against, fp32 where its speed is measured.
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
        self._weights = [{n: t.to(dtype) for n, t in w.items() if t.is_floating_point()} for w in weights]
        self._constants = {n: weights[0][n] for n, role in plan.roles.items() if isinstance(role, Constant)}

    def forward(self, images: Tensor) -> Tensor:
        """Merged features z' of a batch, in `dtype`."""
        network = self.plan.skeleton().to_empty(device=images.device).to(self.dtype)
        _set(network, self._constants)
        _set(network, {n: t.to(self.dtype) for n, t in self.maps.units().items()})
        for name in list(self.plan.roles):
            owner, _, leaf = name.rpartition(".")
            role = self.plan.roles[name]
            if isinstance(role, Constant | Unit) or leaf == "bias":
                continue
            module = network.get_submodule(owner)
            if leaf == "weight" and isinstance(module, nn.Linear | nn.Conv2d):
                _replace(network, owner, self._side_by_side(module, owner, role))
            else:
                _set(network, {name: self._token(name, role)})
        features: Tensor = network(images.to(self.dtype))
        return features

    def readout(self, features: Tensor, source: int) -> Tensor:
        """U_out,i z' in `dtype`: [n, d'] -> [n, d_i]."""
        return features.to(self.dtype) @ self._dense(self.maps.read(self.plan.features, source)).T

    def _side_by_side(self, module: nn.Module, owner: str, role: Mapped) -> nn.Module:
        sources = range(len(self._weights))
        read = None
        if role.read is not None:
            read = [[self._dense(self.maps.read(port, i)) for port in role.read[1]] for i in sources]
        write = [[self._dense(self.maps.write(port, i)) for port in role.write[1]] for i in sources]
        weights = [w[f"{owner}.weight"] for w in self._weights]
        biases = [w.get(f"{owner}.bias") for w in self._weights]
        if isinstance(module, nn.Conv2d):
            return _SideBySide(
                lambda x, W, b: F.conv2d(x, W, b, module.stride, module.padding),
                weights,
                biases,
                None,
                write,
                1,
            )
        return _SideBySide(F.linear, weights, biases, read, write, -1)

    def _token(self, name: str, role: Mapped) -> Tensor:
        axis, (port,) = role.write
        terms = [
            (w[name].movedim(axis, -1) @ self._dense(self.maps.write(port, i)).T).movedim(-1, axis)
            for i, w in enumerate(self._weights)
        ]
        return torch.stack(terms).sum(0)

    def _dense(self, map_: Map) -> Tensor:
        # The identity through a full map would be a product that the published form does not make.
        return (map_.matrix if isinstance(map_, Full) else map_.dense()).to(self.dtype)


class _SideBySide(nn.Module):
    """sum_i M_i layer_i(U_i x), with one matrix per equal part of the axis."""

    def __init__(
        self,
        layer: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        weights: list[Tensor],
        biases: list[Tensor | None],
        read: list[list[Tensor]] | None,
        write: list[list[Tensor]],
        axis: int,
    ) -> None:
        super().__init__()
        self._parts = (layer, weights, biases, read, write, axis)

    def forward(self, x: Tensor) -> Tensor:
        layer, weights, biases, read, write, axis = self._parts
        total: Tensor | None = None
        for i, (W, b) in enumerate(zip(weights, biases)):
            inner = x if read is None else _map(x, read[i], -1)
            outer = _map(layer(inner, W, b), write[i], axis)
            total = outer if total is None else total + outer
        if total is None:
            raise ValueError("no sources")
        return total


def _map(x: Tensor, matrices: list[Tensor], axis: int) -> Tensor:
    parts = x.movedim(axis, -1).chunk(len(matrices), dim=-1)
    return torch.cat([p @ T.T for p, T in zip(parts, matrices)], dim=-1).movedim(-1, axis)


def _set(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put plain tensors in the place of parameters and buffers, keeping their graph."""
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = network.get_submodule(owner)
        module._parameters.pop(leaf, None)
        module._buffers.pop(leaf, None)
        setattr(module, leaf, tensor)


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(owner), leaf, module)
