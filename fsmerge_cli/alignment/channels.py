"""Means and variances of the outputs of convolutions, by channel: for BatchNorms, in files and after a merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import batches

Moments = tuple[Tensor, Tensor]
"""Mean and variance [C] of every channel."""


def with_statistics(problem: Problem, solution: Solution) -> Solution:
    """The solution with the statistics that the BatchNorms of its file state; unchanged where there are none."""
    family, plan = problem.plan.family, problem.plan
    if family.folding is None or not len(problem.images):
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
        rows = output.detach().double().transpose(0, 1).flatten(1)
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
