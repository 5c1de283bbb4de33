"""The SuperNet in its folded form: the module that FS-Merge trains.

There is no non-linearity between M, the frozen W_i and U, so `forward` folds once and runs one ordinary network
of the merged size instead of k networks. The weights of the skeleton and of the sources are not parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from fsmerge_cli.common.hardware import Hardware
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.supernet.fold import PreparedFold
from fsmerge_cli.supernet.map_set import MergeMaps
from fsmerge_cli.supernet.student import Student


class SuperNet(Student):
    """Maps around frozen source weights; images [n, C, H, W] -> merged features [n, d'].

    It runs on the device of the maps. hardware.precision: the frozen matrices are stored in bf16 where the network
    runs in bf16. hardware.checkpointing: every block is folded inside its activation checkpoint, so that memory
    holds the folded weights of one block at a time; the backward pass computes them again.
    hardware.compile: compiles the network; on a GPU also the fold of diagonal and low-rank maps, by itself.
    """

    def __init__(
        self,
        plan: Plan,
        maps: MergeMaps,
        weights: Sequence[Mapping[str, Tensor]],
        hardware: Hardware | None = None,
    ) -> None:
        super().__init__()
        hardware = hardware or Hardware()
        self.maps = maps
        self.plan = plan
        device = next(iter([*maps.parameters(), *maps.buffers()])).device
        batched = device.type == "cuda" and not hardware.checkpointing
        dtype = torch.bfloat16 if hardware.bf16(device) else None
        # In tuples, so that nn.Module does not register them: only maps and per-unit vectors are parameters.
        self._skeleton = (plan.reader(),)
        structure = maps.stacked() if batched else None
        compiled = hardware.compiled if batched and hardware.compile else None
        self._fold = (PreparedFold(plan, weights, device, dtype, batched, structure, compiled),)
        names = plan.family.blocks(self._skeleton[0]) if hardware.checkpointing else ()
        self._blocks = tuple(_checkpoint(self._skeleton[0], name) for name in names)
        self._inside = {name: _inside(plan, name) for name in names}
        self._run = hardware.compiled(partial(_call, self._skeleton[0]))
        self._outside = {name for name in plan.roles if not name.startswith(tuple(f"{b}." for b in names))}

    def forward(self, images: Inputs) -> Tensor:
        """Merged features z' of a batch."""
        stacked, units = self.maps.stacked(), self.maps.units()
        fold = self._fold[0]
        for block in self._blocks:

            def weights(names: dict[str, str] = self._inside[block.name]) -> dict[str, Tensor]:
                folded = fold(stacked, units, names.keys())
                return {short: folded[name] for name, short in names.items()}

            block.weights = weights
        folded = fold(stacked, units, self._outside if self._blocks else None)
        return self._run(folded, images)

    def matrices(self) -> list[nn.Parameter]:
        """The matrices of the maps: without the projectors and without vectors such as diagonals."""
        return self.maps.matrices(self.plan.feature_ports)

    def project(self, features: Tensor, source: int) -> Tensor:
        """The merged model's estimate of one source's features, U_out,i z': [n, d'] -> [n, d_i]."""
        return self.maps.estimate(self.plan, features, source)


def _call(network: nn.Module, weights: dict[str, Tensor], images: Inputs) -> Tensor:
    features: Tensor = functional_call(network, weights, (images,))
    return features


class _Block(nn.Module):
    """A block that folds its weights, swaps them in and runs, all inside one activation checkpoint.

    With `functional_call` around a checkpointed block instead, the weights would be swapped back before the
    backward pass recomputes the block, and the gradients would silently be those of other weights.
    """

    def __init__(self, block: nn.Module, name: str) -> None:
        super().__init__()
        self.inner, self.name = block, name
        self.weights: Callable[[], dict[str, Tensor]] = dict

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own output."""
        weights = self.weights  # of this forward pass, even if it is recomputed after a later one

        def run(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.inner, weights(), args, kwargs)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _checkpoint(network: nn.Module, name: str) -> _Block:
    owner, _, leaf = name.rpartition(".")
    block = _Block(network.get_submodule(name), name)
    setattr(network.get_submodule(owner), leaf, block)
    return block


def _inside(plan: Plan, block: str) -> dict[str, str]:
    """Names of a block's tensors: in the whole network -> in the block."""
    return {name: name.removeprefix(f"{block}.") for name in plan.roles if name.startswith(f"{block}.")}
