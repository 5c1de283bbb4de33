"""How much every unit of a network contributes to its predictions: conductance (arXiv 1805.12233)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.statistics import BATCH, Place, channels_last, places
from fsmerge_cli.common.progress import Event
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import batches, network

STEPS = 10
"""Steps of the path from black pixels to an image."""

LEAST = 1e-8
"""Added to the attribution of every unit, so that none has the weight zero."""


def unit_importance(problem: Problem, source: int) -> dict[str, Tensor]:
    """By space, the importance of one source's units, [size] in fp64 on the CPU, of sum 1.

    On the images of the source's task, the conductance of a unit for the logit of the predicted class: the
    integral of dF/dh over the values h that the unit takes while the pixels grow from 0 to x. Its absolute value
    is summed over positions and images, and averaged over the places where a space is read.
    """
    own, images = problem.sources[source], problem.task_images(source)
    selected = places(problem.plan)
    module = network(own, problem.device)
    head = None if own.head is None else own.head.to(problem.device)
    if head is None:
        raise ValueError(own.name)  # the method requires heads
    totals: dict[Place, Tensor] = {}
    for rows in batches(len(images), BATCH):
        x = images[rows].to(problem.device)
        if not isinstance(x, Tensor):
            raise TypeError("texts have no path from zero")
        for place, value in conductance(module, head, x, selected).items():
            summed = value.abs().flatten(0, -2).double().sum(0).cpu()
            totals[place] = totals.get(place, 0) + summed / len(images)
        problem.progress(Event(f"conductance of {own.name}", rows.stop, len(images), images=1))
    found: dict[str, Tensor] = {}
    for place, value in totals.items():
        found[place.space] = found.get(place.space, 0) + (value + LEAST) / (value + LEAST).sum()
    return {space: value / value.sum() for space, value in found.items()}


def conductance(
    module: nn.Module, head: Callable[[Tensor], Tensor], pixels: Tensor, selected: tuple[Place, ...]
) -> dict[Place, Tensor]:
    """The conductance of the units at every place, [n, ..., size], for the class that is predicted for `pixels`.

    The integral is a sum over steps with the slope at the end of each. The values of a layer that all signals pass
    sum to F(x) - F(0), up to its error.
    """
    with torch.no_grad():
        target = head(module(pixels)).argmax(1, keepdim=True)
    found: dict[Place, Tensor] = {}
    before: dict[Place, Tensor] = {}
    for step in range(STEPS + 1):
        point = (step / STEPS * pixels).requires_grad_(True)
        values, handles = _watched(module, selected)
        with handles:
            score = head(module(point)).gather(1, target).sum()
        slopes = torch.autograd.grad(score, list(values.values()), allow_unused=True)
        for place, (value, slope) in zip(values, zip(values.values(), slopes)):
            owner = module.get_submodule(place.module)
            pair = (value.detach(), torch.zeros_like(value) if slope is None else slope)
            h, g = (channels_last(owner, own).chunk(place.parts, dim=-1)[place.part] for own in pair)
            if place in before:
                added = (h - before[place]) * g
                found[place] = found[place] + added if place in found else added
            before[place] = h
    return found


def _watched(module: nn.Module, selected: tuple[Place, ...]) -> tuple[dict[Place, Tensor], ExitStack]:
    """The activations at the places in the next forward pass, as parts of its graph; how to stop."""
    values: dict[Place, Tensor] = {}
    stack = ExitStack()

    def on_input(place: Place) -> Any:
        return lambda _, inputs: values.__setitem__(place, inputs[0])

    def on_output(place: Place) -> Any:
        return lambda _, inputs, output: values.__setitem__(place, output)

    for place in selected:
        owner = module.get_submodule(place.module)
        if place.side == "input":
            stack.callback(owner.register_forward_pre_hook(on_input(place)).remove)
        else:
            stack.callback(owner.register_forward_hook(on_output(place)).remove)
    return values, stack
