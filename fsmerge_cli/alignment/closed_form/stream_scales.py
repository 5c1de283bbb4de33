"""Scales that give the streams of all sources the same size, where norms run over units of several of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.stages import recorded
from fsmerge_cli.alignment.closed_form.steps import Step
from fsmerge_cli.alignment.statistics import BATCH
from fsmerge_cli.architectures.ports import Unit
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.training.teachers import batches


def stream_scales(
    plan: Plan, networks: Sequence[nn.Module], steps: Sequence[Step], images: Tensor, device: torch.device
) -> dict[str, list[float]]:
    """A factor for every source, by space: of the residual streams that norms read. Their product is 1.

    The size of a stream is the standard deviation over its units, the mean over positions and blocks. Without
    factors the norms of selected units see mostly the source with the largest stream. A layer before the blocks,
    with a norm behind it, has a factor of its own, by its port.
    """
    normed = {
        role.port.space
        for name, role in plan.roles.items()
        if isinstance(role, Unit) and hasattr(plan_module(networks[0], name), "eps")
    }
    wanted = {s.sum: s.write.space for s in steps if s.sum == s.block and s.sum and s.write.space in normed}
    wanted |= {s.module: str(s.write) for s in steps if s.block is None and s.write.space in normed}
    sizes = [dict.fromkeys(wanted.values(), 0.0) for _ in networks]
    with torch.inference_mode():
        for rows in batches(len(images), BATCH):
            for network, own in zip(networks, sizes):
                with recorded(network, outputs=list(wanted)) as found:
                    network(images[rows].to(device))
                for name, key in wanted.items():
                    value = found[f"{name}.output"].double()
                    own[key] += float(value.var(1, correction=0).mean()) * len(value)
    scales = {}
    for key in dict.fromkeys(wanted.values()):
        logs = torch.tensor([own[key] for own in sizes], dtype=torch.float64).clamp(min=1e-300).log() / 2
        scales[key] = (logs.mean() - logs).exp().tolist()
    return scales


def plan_module(network: nn.Module, name: str) -> nn.Module:
    """The module of a tensor."""
    return network.get_submodule(name.rpartition(".")[0])


def acts_in_stream(network: nn.Module, blocks: Sequence[str], name: str) -> bool:
    """Whether a per-unit tensor has the scale of the stream: a bias of a depthwise layer, or a norm before it.

    That of a norm that a branch reads has not, and neither has a kernel.
    """
    if hasattr(plan_module(network, name), "eps"):
        order = list(network.state_dict())
        inside = [place for place, own in enumerate(order) if own.startswith(tuple(f"{b}." for b in blocks))]
        return bool(inside) and order.index(name) < inside[0]
    return name.endswith(".bias")
