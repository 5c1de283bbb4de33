"""Means and variances of the outputs of layers, by unit: for BatchNorms in files, and for resets after a merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.statistics import channels_last
from fsmerge_cli.architectures.ports import Mapped, Unit
from fsmerge_cli.common.hardware import double
from fsmerge_cli.common.inputs import Inputs, in_use, used_rows
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.training.problem import Problem, Solution, Stage
from fsmerge_cli.training.teachers import batches, network

Moments = tuple[Tensor, Tensor]
"""Mean and variance [C] of every channel."""


MAX_IMAGES, MAX_PIXELS = 512, 128 * 224**2
"""Most images, and most pixels of all of them, of one pass in which the statistics are reset."""

CONSTANT = 1e-6
"""A channel of a smaller standard deviation, relative to the largest of its layer, is not scaled."""


def reset_layers(plan: Plan, batchnorm: bool = True, others: bool = False) -> tuple[str, ...]:
    """The layers whose statistics can be reset by their weight and bias, in the order of the forward pass.

    batchnorm: convolutions that had a BatchNorm. others: layers with a bias and without a norm that write hidden
    units: all that writes these units reads one port, so that it is no stream, and they are no heads.
    """
    folding = plan.family.folding
    convolutions = set(folding.norms(plan.arch)) if folding else set()
    writers: dict[str, list[str]] = {}
    for name, role in plan.roles.items():
        if name.endswith(".weight") and isinstance(role, Mapped):
            for port in role.write[1]:
                writers.setdefault(port.space, []).append(name)
    normed = {role.port.space for role in plan.roles.values() if isinstance(role, Unit)}

    def is_hidden(space: str) -> bool:
        read = {getattr(plan.roles[name], "read", None) for name in writers[space]}
        return space not in normed and plan.spaces[space].heads is None and len(read) == 1

    found = []
    for name, role in plan.roles.items():
        module = name.removesuffix(".weight")
        if module == name or not isinstance(role, Mapped) or f"{module}.bias" not in plan.roles:
            continue
        hidden = all(is_hidden(port.space) for port in role.write[1])
        if (batchnorm and module in convolutions) or (others and hidden and module not in convolutions):
            found.append(module)
    order = {name: place for place, name in enumerate(folding.norms(plan.arch) if folding else ())}
    return tuple(sorted(found, key=lambda name: order.get(name, len(order))))


def with_reset(
    problem: Problem, solution: Solution, shares: Sequence[float], layers: Sequence[str] | None = None
) -> Solution:
    """The solution with reset statistics, of the mean of the sources with these shares (of mean 1).

    layers: of `reset_layers` (None: the convolutions that had a BatchNorm).
    """
    k = len(shares)
    return _with_reset(problem, solution, lambda space, source, values: shares[source] / k * values, layers)


def with_reset_of_clusters(
    problem: Problem,
    solution: Solution,
    merge: Mapping[str, Sequence[Tensor]],
    layers: Sequence[str] | None = None,
) -> Solution:
    """The solution with reset statistics, of the means M_i over clusters of units, by space and source."""
    maps = {space: [M.cpu().double() for M in own] for space, own in merge.items()}
    return _with_reset(problem, solution, lambda space, source, values: maps[space][source] @ values, layers)


Share = Callable[[str, int, Tensor], Tensor]
"""Space, source and a vector [d_i] of it -> its contribution [d'] to the merged vector."""


def _with_reset(problem: Problem, solution: Solution, share: Share, layers: Sequence[str] | None) -> Solution:
    """Every one of these layers is scaled and shifted by unit, front to back.

    Afterwards its output has the mean and the standard deviation that the sources' outputs have in the mean
    (REPAIR, arXiv 2211.08403, section 4). All networks run on the same images, of all tasks; the sources are those
    of the problem, with their units in the order of the merge. One pass: every layer is corrected before the next
    runs.
    """
    names = reset_layers(problem.plan) if layers is None else layers
    if not names or not len(problem.images):
        return solution
    plan, images = problem.plan, problem.images.images[images_of_reset(problem)]
    found = [moments(network(source, problem.device), names, images, problem) for source in problem.sources]
    module = plan.skeleton()
    module.load_state_dict({n: t.detach().clone() for n, t in solution.weights.items()}, assign=True)
    module.requires_grad_(False).eval()
    for name in names:
        role = plan.roles[f"{name}.weight"]
        spaces = [port.space for port in role.write[1]] if isinstance(role, Mapped) else []

        def shared(source: int, values: Tensor, spaces: Sequence[str] = spaces) -> Tensor:
            parts = zip(spaces, values.chunk(len(spaces)))
            return torch.cat([share(space, source, part) for space, part in parts])

        mean = torch.stack([shared(i, own[name][0]) for i, own in enumerate(found)]).sum(0)
        std = torch.stack([shared(i, own[name][1].sqrt()) for i, own in enumerate(found)]).sum(0)
        module.get_submodule(name).register_forward_hook(_Correction(mean, std, in_use(images)))
    with torch.no_grad():
        module(images.to(problem.device))
    weights = dict(module.state_dict())
    if solution.maps is None:
        return replace(solution, weights=weights)
    stage = Stage(plan, solution.maps, problem.weights("cpu"), solution.weights)
    return replace(solution, weights=weights, maps=None, stages=(stage,), finetuned=True)


class _Correction:
    """A hook of a layer: gives its output this mean and standard deviation [C], and changes its weights.

    used: the positions of the inputs that are no padding (None: all).
    """

    def __init__(self, mean: Tensor, std: Tensor, used: Tensor | None) -> None:
        self._mean, self._std, self._used = mean, std, used

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        part: Any = module
        if isinstance(module, nn.Conv2d):  # without a copy of the feature maps
            variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)
        else:
            variance, mean = torch.var_mean(_rows(module, output, self._used), 0, correction=0)
        own, mean = variance.double().sqrt(), mean.double()
        wanted, target = (t.to(output.device) for t in (self._std, self._mean))
        scale = torch.where(own > CONSTANT * own.max(), wanted / own, torch.ones_like(own))
        shift = target - scale * mean
        part.weight.copy_(part.weight.double() * scale.reshape(-1, *(1,) * (part.weight.ndim - 1)))
        part.bias.copy_(part.bias.double() * scale + shift)
        form = (-1, 1, 1) if isinstance(module, nn.Conv2d) else (-1,)
        scaled: Tensor = output * scale.to(output.dtype).reshape(form)
        return scaled + shift.to(output.dtype).reshape(form)


def _rows(module: nn.Module, output: Tensor, used: Tensor | None) -> Tensor:
    """The output of a layer as rows [n, C]: every position of a feature map and every token in use is one."""
    return used_rows(channels_last(module, output), None if isinstance(module, nn.Conv2d) else used)


def images_of_reset(problem: Problem) -> Tensor:
    """Rows of the images of one pass that holds all of them: as many of every task as fit."""
    task = problem.images.task
    height, width = problem.plan.arch.input_size[1:] if problem.plan.family.kind == "image" else (1, 1)
    groups = [(task == own).nonzero().flatten() for own in torch.unique(task)]
    most = max(1, min(MAX_IMAGES, MAX_PIXELS // (height * width)) // len(groups))
    return torch.cat([own[:most] for own in groups])


def with_statistics(problem: Problem, solution: Solution) -> Solution:
    """The solution with the statistics that the BatchNorms of its file state; unchanged where there are none."""
    family, plan = problem.plan.family, problem.plan
    if family.folding is None or not family.had_batchnorm(plan.arch) or not len(problem.images):
        return solution
    module = plan.skeleton()
    module.load_state_dict(dict(solution.weights), assign=True)
    module.eval()
    found = moments(module, family.folding.norms(plan.arch), problem.images.images, problem)
    without_bias = {
        name: (mean - solution.weights[f"{name}.bias"].detach().cpu().double(), variance)
        for name, (mean, variance) in found.items()
    }
    return replace(solution, statistics=without_bias)


def moments(module: nn.Module, names: Sequence[str], images: Inputs, problem: Problem) -> dict[str, Moments]:
    """Mean and variance, in fp64 on the CPU, of the outputs of the layers `names` on `images`.

    Every position of a feature map, and every token, is a row.
    """
    used: list[Tensor | None] = [None]
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def add(name: str, output: Tensor) -> None:
        values = double(_rows(module.get_submodule(name), output.detach(), used[0]))
        count, total, square = sums.get(name, (0, torch.zeros(()), torch.zeros(())))
        sums[name] = count + len(values), total + values.sum(0).cpu(), square + values.square().sum(0).cpu()

    with _observed(module, names, add), torch.inference_mode():
        for rows in batches(len(images), problem.hardware.eval_batch):
            part = images[rows].to(problem.device)
            used[0] = in_use(part)
            module(part)
    found = {}
    for name, (count, total, square) in sums.items():
        mean = total / count
        found[name] = mean, (square / count - mean.square()).clamp(min=0)
    return found


@contextmanager
def _observed(module: nn.Module, names: Sequence[str], add: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, `add` receives the outputs of the modules `names` in every forward pass."""
    with ExitStack() as stack:
        for name in names:

            def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                add(name, output)

            stack.callback(module.get_submodule(name).register_forward_hook(hook).remove)
        yield
