"""The closed form of RegMean and RegMean++: least squares over the layer inputs of all sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.ports import Mapped
from fsmerge_cli.models.plan import Plan

JITTER = 1e-6
"""Ridge towards the weight of every source, relative to the mean diagonal of its Gram matrix."""


MAX_INPUTS = 12_288
"""Most inputs of a kernel whose products are summed in one matrix (1.2 GB in fp64)."""


def by_position(module: nn.Module) -> bool:
    """Whether the inputs of a kernel are too many for one matrix: every position has its own."""
    return isinstance(module, nn.Conv2d) and module.weight[0].numel() > MAX_INPUTS


def linear_modules(plan: Plan) -> tuple[str, ...]:
    """Modules that multiply their input by a weight: linear layers and patch projections, in order."""
    skeleton = plan.skeleton()
    return tuple(
        name.removesuffix(".weight")
        for name, role in plan.roles.items()
        if isinstance(role, Mapped)
        and name.endswith(".weight")
        and isinstance(skeleton.get_submodule(name.removesuffix(".weight")), nn.Linear | nn.Conv2d)
    )


def solve(
    grams: Sequence[Tensor], weights: Sequence[Tensor], scale: float, task_weights: Sequence[float] | None = None
) -> tuple[Tensor, float]:
    """W minimising sum_i w_i |X_i W_i^T - X_i W^T|^2 for G_i = X_i^T X_i / rows, and the condition number.

    W^T = (sum_i w_i G~_i)^-1 sum_i w_i G~_i W_i^T with G~ = scale G + (1 - scale) diag(G), fp64, by Cholesky
    (RegMean, arXiv 2212.09849). task_weights: the w_i (None: all are 1). The jitter is added to every G~_i on
    both sides: directions without inputs get the mean of the weights instead of zero, and identical sources are
    returned exactly. Gram matrices [positions, in, in] are those of every position of a kernel, each of which is
    solved alone.
    """
    if grams[0].ndim == 3:
        kernels = [weight.flatten(2).unbind(2) for weight in weights]
        parts = [solve(own, W, scale, task_weights) for own, W in zip(zip(*grams), zip(*kernels))]
        return torch.stack([W for W, _ in parts], 2).reshape(weights[0].shape), max(c for _, c in parts)
    matrices = [weight.double().flatten(1) for weight in weights]
    scaled = [scale * G + (1 - scale) * G.diagonal().diag() for G in grams]
    identity = torch.eye(len(scaled[0]), dtype=torch.float64, device=scaled[0].device)
    scaled = [G + (JITTER * G.diagonal().mean()).clamp(min=1e-12) * identity for G in scaled]
    scaled = [w * G for w, G in zip(task_weights or (1.0,) * len(scaled), scaled)]
    total = torch.stack(scaled).sum(0)
    right = torch.stack([G @ W.T for G, W in zip(scaled, matrices)]).sum(0)
    merged = torch.cholesky_solve(right, torch.linalg.cholesky(total)).T
    values = torch.linalg.eigvalsh(total)
    condition = float(values[-1] / values[0].clamp(min=1e-300))
    return merged.reshape(weights[0].shape).to(weights[0].dtype), condition


def mean(weights: Sequence[Mapping[str, Tensor]], name: str, task_weights: Sequence[float]) -> Tensor:
    """The weighted mean of one tensor over the sources; the mean of the `task_weights` is 1."""
    tensors = [w[name] for w in weights]
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    return torch.stack([w * t.double() for w, t in zip(task_weights, tensors)]).mean(0).to(tensors[0].dtype)
