"""The weights of a network in the order in which it uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fsmerge_cli.architectures.ports import Constant, Mapped, Port, Unit
from fsmerge_cli.models.plan import Plan


@dataclass(frozen=True)
class Step:
    """One layer with a weight.

    module: its name. read: the port of its input (None: pixels). write: the port of its output. sum: module whose
    input is the sum of this output and the shortcut, or the block whose output it is (None: it is no sum). block:
    the residual block that contains it (None: none). scale: name of the factors per unit between this output and
    the sum (LayerScale; None: none).
    """

    module: str
    read: Port | None
    write: Port
    sum: str | None
    block: str | None
    scale: str | None = None


def selects_units(plan: Plan) -> bool:
    """Whether a merged unit is one unit of one source: operations on single units act on the stream."""
    return plan.family.unitwise_stream


def steps(plan: Plan) -> tuple[Step, ...] | None:
    """The layers in order, the last of a residual block after its shortcut; None where other kinds of layers are.

    In all spaces operations act on units one by one, and all layers with a map are linear or convolutions.
    """
    network = plan.skeleton()
    if any(isinstance(role, Constant) for role in plan.roles.values()):
        return None
    if any(space.heads is not None for space in plan.spaces.values()):
        return None
    found = {
        name.rpartition(".")[0]: role
        for name, role in plan.roles.items()
        if name.endswith(".weight") and isinstance(role, Mapped)
    }
    if any(not isinstance(network.get_submodule(name), nn.Conv2d | nn.Linear) for name in found):
        return None
    sums, blocks = dict(plan.family.sums(network)), plan.family.blocks(network)
    ends = {end: writer for writer, end in sums.items() if end not in blocks}
    made = []
    for called in _order(plan, network, [*(name for name in found if name not in ends.values()), *ends]):
        name = ends.get(called, called)
        role = found[name]
        if len(role.write[1]) > 1:
            return None
        block = next((own for own in blocks if name.startswith(f"{own}.")), None)
        read = role.read[1][0] if role.read else None
        made.append(Step(name, read, role.write[1][0], sums.get(name), block, _scale(plan, sums.get(name))))
    return tuple(made)


def _scale(plan: Plan, end: str | None) -> str | None:
    """The per-unit factors of a block, whose output is a sum."""
    own = [name for name, role in plan.roles.items() if isinstance(role, Unit) and name.rpartition(".")[0] == end]
    return own[0] if own else None


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
