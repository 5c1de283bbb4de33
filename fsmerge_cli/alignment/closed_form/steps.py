"""The weights of a network in the order in which it uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fsmerge_cli.architectures.ports import Mapped, Port
from fsmerge_cli.models.plan import Plan


@dataclass(frozen=True)
class Step:
    """One layer with a weight.

    module: its name. read: the port of its input (None: pixels). write: the port of its output. sum: module whose
    input is the sum of this output and the shortcut (None: it is no sum). block: the residual block that contains
    it (None: none).
    """

    module: str
    read: Port | None
    write: Port
    sum: str | None
    block: str | None


def selects_units(plan: Plan) -> bool:
    """Whether a merged unit is one unit of one source: an activation follows every sum, or every layer."""
    return plan.family.activated_stream


def steps(plan: Plan) -> tuple[Step, ...] | None:
    """The layers in order, the last of a residual block after its shortcut; None where other kinds of layers are.

    All spaces are of units that an activation acts on one by one, and all layers are linear or convolutions.
    """
    network = plan.skeleton()
    if any(not isinstance(role, Mapped) for role in plan.roles.values()):
        return None
    if any(space.heads is not None for space in plan.spaces.values()):
        return None
    found = {name.rpartition(".")[0]: role for name, role in plan.roles.items() if name.endswith(".weight")}
    if any(not isinstance(network.get_submodule(name), nn.Conv2d | nn.Linear) for name in found):
        return None
    sums = dict(plan.family.sums(network))
    blocks = plan.family.blocks(network)
    ends = {end: writer for writer, end in sums.items()}
    made = []
    for called in _order(plan, network, [*(name for name in found if name not in sums), *ends]):
        name = ends.get(called, called)
        role = found[name]
        if not isinstance(role, Mapped) or len(role.write[1]) > 1:
            return None
        block = next((own for own in blocks if name.startswith(f"{own}.")), None)
        read = role.read[1][0] if role.read else None
        made.append(Step(name, read, role.write[1][0], sums.get(name), block))
    return tuple(made)


def _order(plan: Plan, network: nn.Module, names: list[str]) -> list[str]:
    """The modules `names` in the order in which a forward pass calls them."""
    order: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        return lambda module, inputs: order.append(name)

    handles: list[Any] = [network.get_submodule(n).register_forward_pre_hook(noted(n)) for n in names]
    with torch.inference_mode():
        network(plan.family.sample(plan.arch, 1, None))
    for handle in handles:
        handle.remove()
    return order
