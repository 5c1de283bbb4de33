"""A merged network under construction: its maps so far, and the weights that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.moments import Linear
from fsmerge_cli.architectures.ports import Constant, Mapped, Port
from fsmerge_cli.models.plan import Plan

Maps = dict[tuple[Port, int], Tensor]
"""Matrices in fp64 by port and source."""


@dataclass
class Assembly:
    """plan, weights: of the sources, fp32, on `device`. network: of the merged size, zero where nothing is solved.

    merge, unmerge: the maps M [d', d_i] and U [d_i, d'] that are solved.
    """

    plan: Plan
    weights: Sequence[Mapping[str, Tensor]]
    device: torch.device
    network: nn.Module = field(init=False)
    merge: Maps = field(default_factory=dict)
    unmerge: Maps = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = self.plan.skeleton()
        state = self.network.state_dict()
        zeros = {name: torch.zeros(t.shape, dtype=t.dtype, device=self.device) for name, t in state.items()}
        for name, role in self.plan.roles.items():
            if isinstance(role, Constant):
                zeros[name] = self.weights[0][name].clone()
        self.network.load_state_dict(zeros, assign=True)
        self.network.requires_grad_(False)

    @property
    def sources(self) -> range:
        """The places of the sources."""
        return range(len(self.weights))

    def has(self, name: str) -> bool:
        """Whether the architecture has the tensor."""
        return name in self.plan.roles

    def assign(self, name: str, value: Tensor) -> None:
        """Set one tensor of the merged network."""
        owner, _, leaf = name.rpartition(".")
        target: Tensor = getattr(self.network.get_submodule(owner), leaf)
        target.copy_(value)

    def fold(self, name: str, intercepts: Sequence[Tensor] | None = None) -> None:
        """Set a tensor to sum_i M_i W_i U_i (or sum_i M_i b_i). intercepts: added to b_i first, [d_i] each."""
        role = self.plan.roles[name]
        if not isinstance(role, Mapped):
            raise TypeError(f"{name} has no maps")
        terms = []
        for i in self.sources:
            own = self.weights[i][name].double()
            terms.append(self._one(own if intercepts is None else own + intercepts[i], role, i))
        self.assign(name, torch.stack(terms).sum(0))

    def _one(self, W: Tensor, role: Mapped, source: int) -> Tensor:
        axis, ports = role.write
        parts = W.movedim(axis, 0).chunk(len(ports))
        W = torch.cat([torch.tensordot(self.merge[p, source], part, dims=1) for p, part in zip(ports, parts)])
        W = W.movedim(0, axis)
        if role.read is None:
            return W
        axis, ports = role.read
        parts = W.movedim(axis, -1).chunk(len(ports), dim=-1)
        W = torch.cat([part @ self.unmerge[p, source] for p, part in zip(ports, parts)], dim=-1)
        return W.movedim(-1, axis)


def through_constant(found: Linear) -> Tensor:
    """[q, p]: the regression with its intercept, for an x whose mean over the units is 1 (`set_norm`)."""
    return found.matrix + found.intercept[:, None] / found.matrix.shape[1]


def write_ports(plan: Plan, module: str) -> tuple[Port, ...]:
    """The ports that a module's weight writes to."""
    role = plan.roles[f"{module}.weight"]
    return role.write[1] if isinstance(role, Mapped) else ()


def set_norm(assembly: Assembly, module: str | None) -> None:
    """A norm of the merged stream: weight 1, and bias 1, which is the constant that intercepts go through."""
    for name in (f"{module}.weight", f"{module}.bias"):
        if assembly.has(name):
            assembly.assign(name, torch.ones(()))


def selections(chosen: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Matrices [len(chosen), d_i] that select units of the sources; chosen: places in all units, side by side."""
    whole = torch.zeros(len(chosen), sum(sizes), dtype=torch.float64, device=chosen.device)
    whole[torch.arange(len(chosen)), chosen] = 1
    return list(torch.split(whole, list(sizes), dim=1))
