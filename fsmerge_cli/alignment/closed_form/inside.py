"""What lies between the readers and the writer of a branch: heads that shrink, or selected hidden units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsmerge_cli.alignment.closed_form.assembly import Assembly, selections, write_ports
from fsmerge_cli.alignment.closed_form.heads import LogitMoments, merge_heads
from fsmerge_cli.alignment.closed_form.moments import Moments
from fsmerge_cli.alignment.closed_form.outline import Branch
from fsmerge_cli.alignment.closed_form.selection import select_units
from fsmerge_cli.architectures.ports import Mapped, Port, Unit
from fsmerge_cli.models.plan import Plan

Facts = dict[str, list[float]]
"""What to report of one layer, by name."""


def choose_heads(
    assembly: Assembly, branch: Branch, logits: Sequence[LogitMoments], outputs: Moments, written: Tensor
) -> Facts:
    """Choose and shrink heads; the share of each head's logits that is kept, and heads from each source.

    outputs: of all heads of all sources side by side. written: what their writers write into the merged stream.
    """
    plan = assembly.plan
    space = plan.spaces[branch.inside.space]
    gains = [_gain(assembly, branch, i) for i in assembly.sources]
    count = space.heads[0] if space.heads else 1
    found = merge_heads(logits, outputs, written, space.sources, space.merged, count)
    ports = _ports(plan, branch)
    for port, maps in zip(ports, found.maps):
        for i in assembly.sources:
            assembly.merge[port, i] = maps[i] * gains[i] if port == ports[-1] else maps[i]
    for name in branch.units:
        module = name.rpartition(".")[0].rpartition(".")[2]
        value = 0.0 if name.endswith(".bias") else found.scales.get(module, 1.0)
        assembly.assign(name, torch.tensor(value))
    if branch.latent is not None:
        assembly.fold(branch.latent)
    return {"logits_kept": list(found.kept), "heads": [float(n) for n in found.counts]}


def _ports(plan: Plan, branch: Branch) -> list[Port]:
    """What is written between: queries, keys and values, or hidden units."""
    role = plan.roles[branch.latent] if branch.latent is not None else None
    queries = role.write[1] if isinstance(role, Mapped) else ()
    return [*queries, *(port for reader in branch.readers for port in write_ports(plan, reader))]


def _gain(assembly: Assembly, branch: Branch, source: int) -> Tensor:
    """Weight of a norm over all heads before the writer, [d_i]; ones without one."""
    size = assembly.plan.spaces[branch.inside.space].sources[source]
    value = torch.ones(size, dtype=torch.float64, device=assembly.device)
    for name in branch.units:
        role = assembly.plan.roles[name]
        if name.endswith(".weight") and isinstance(role, Unit) and not role.per_head:
            value = value * assembly.weights[source][name].double()
    return value


def head_norms(plan: Plan, branch: Branch) -> list[str]:
    """Modules of the norms of queries and keys."""
    roles = ((name, plan.roles[name]) for name in branch.units if name.endswith(".weight"))
    return [name.rpartition(".")[0] for name, role in roles if isinstance(role, Unit) and role.per_head]


def choose_units(assembly: Assembly, branch: Branch, outputs: Moments, written: Tensor) -> Facts:
    """Select hidden units by the error that is left in what the branch writes; units from each source."""
    space = assembly.plan.spaces[branch.inside.space]
    gram = outputs.second()
    chosen = select_units(gram, gram @ written.T, space.merged)
    picked = selections(chosen, space.sources)
    for port in set(_ports(assembly.plan, branch)):
        for i, M in enumerate(picked):
            assembly.merge[port, i] = M
    for name in branch.units:
        own = [w[name].double() for w in assembly.weights]
        assembly.assign(name, torch.stack([M @ v for M, v in zip(picked, own)]).sum(0))
    return {"units": [float(M.sum()) for M in picked]}
