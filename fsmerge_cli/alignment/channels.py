"""Means and variances of the outputs of convolutions, by channel: for BatchNorms, in files and after a merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.architectures.ports import Mapped
from fsmerge_cli.common.hardware import double
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.training.problem import Problem, Solution, Stage
from fsmerge_cli.training.teachers import batches, network

Moments = tuple[Tensor, Tensor]
"""Mean and variance [C] of every channel."""


MAX_IMAGES, MAX_PIXELS = 512, 128 * 224**2
"""Most images, and most pixels of all of them, of one pass in which the statistics are reset."""

CONSTANT = 1e-6
"""A channel of a smaller standard deviation, relative to the largest of its layer, is not scaled."""


def can_reset(problem: Problem) -> bool:
    """Whether statistics can be reset: of networks that had BatchNorm, with at least one image."""
    return problem.plan.family.had_batchnorm(problem.plan.arch) and len(problem.images) > 0


def with_reset(problem: Problem, solution: Solution, shares: Sequence[float]) -> Solution:
    """The solution with reset statistics, of the mean of the sources with these shares (of mean 1)."""
    k = len(shares)
    return _with_reset(problem, solution, lambda space, source, values: shares[source] / k * values)


def with_reset_of_clusters(
    problem: Problem, solution: Solution, merge: Mapping[str, Sequence[Tensor]]
) -> Solution:
    """The solution with reset statistics, of the means M_i over clusters of units, by space and source."""
    maps = {space: [M.cpu().double() for M in own] for space, own in merge.items()}
    return _with_reset(problem, solution, lambda space, source, values: maps[space][source] @ values)


Share = Callable[[str, int, Tensor], Tensor]
"""Space, source and a vector [d_i] of it -> its contribution [d'] to the merged vector."""


def _with_reset(problem: Problem, solution: Solution, share: Share) -> Solution:
    """Every convolution that had a BatchNorm is scaled and shifted by channel, front to back.

    Afterwards its output has the mean and the standard deviation that the sources' outputs have in the mean
    (REPAIR, arXiv 2211.08403, section 4). All networks run on the same images, of all tasks; the sources are those
    of the problem, with their units in the order of the merge. One pass: every layer is corrected before the next
    runs.
    """
    if not can_reset(problem):
        return solution
    plan, images = problem.plan, problem.images.images[images_of_reset(problem)]
    names = plan.family.folding.norms(plan.arch) if plan.family.folding else ()
    found = [moments(network(source, problem.device), names, images, problem) for source in problem.sources]
    module = plan.skeleton()
    module.load_state_dict({n: t.detach().clone() for n, t in solution.weights.items()}, assign=True)
    module.requires_grad_(False).eval()
    for name in names:
        role = plan.roles[f"{name}.weight"]
        space = role.write[1][0].space if isinstance(role, Mapped) else ""
        mean = sum(share(space, i, own[name][0]) for i, own in enumerate(found))
        std = sum(share(space, i, own[name][1].sqrt()) for i, own in enumerate(found))
        part = module.get_submodule(name)
        part.register_forward_hook(_Correction(torch.as_tensor(mean), torch.as_tensor(std)))
    with torch.no_grad():
        module(images.to(problem.device))
    weights = dict(module.state_dict())
    if solution.maps is None:
        return replace(solution, weights=weights)
    stage = Stage(plan, solution.maps, problem.weights("cpu"), solution.weights)
    return replace(solution, weights=weights, maps=None, stages=(stage,), finetuned=True)


class _Correction:
    """A hook of a convolution: gives its output this mean and standard deviation [C], and changes its weights."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self._mean, self._std = mean, std

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        part: Any = module
        variance, mean = torch.var_mean(output, (0, 2, 3), correction=0)
        own, mean = variance.double().sqrt(), mean.double()
        wanted, target = (t.to(output.device) for t in (self._std, self._mean))
        scale = torch.where(own > CONSTANT * own.max(), wanted / own, torch.ones_like(own))
        shift = target - scale * mean
        part.weight.copy_(part.weight.double() * scale.reshape(-1, 1, 1, 1))
        part.bias.copy_(part.bias.double() * scale + shift)
        scaled: Tensor = output * scale.to(output.dtype).reshape(-1, 1, 1)
        return scaled + shift.to(output.dtype).reshape(-1, 1, 1)


def images_of_reset(problem: Problem) -> Tensor:
    """Rows of the images of one pass that holds all of them: as many of every task as fit."""
    task = problem.images.task
    height, width = problem.plan.arch.input_size[1:]
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
    """Mean and variance, in fp64 on the CPU, of the outputs of the convolutions `names` on `images`.

    Every position of a feature map is a row.
    """
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def add(name: str, output: Tensor) -> None:
        rows = double(output.detach()).transpose(0, 1).flatten(1)
        count, total, square = sums.get(name, (0, torch.zeros(()), torch.zeros(())))
        sums[name] = count + rows.shape[1], total + rows.sum(1).cpu(), square + rows.square().sum(1).cpu()

    with _observed(module, names, add), torch.inference_mode():
        for rows in batches(len(images), problem.hardware.eval_batch):
            module(images[rows].to(problem.device))
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
