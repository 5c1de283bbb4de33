"""Memory and operations of the closed form where units are selected (`closed_form/selected`), from shapes.

Memory, in bytes, beside the sources and the images themselves:

- rows: the images with their views, 4 per value.
- streams: the input of the largest residual block, of all sources and of the merged network, 4 per value and row.
- the merged network, twice at the end (8 n).
- the largest phase: the sums of the selection, 8 (sum_i d_i)^2 per place where a space is read; or those of one
  layer of p regressors and q outputs, SUMS times 8 p (p + 2 q), with one batch of its sampled patches and of its
  activations in all networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.closed_form.folds import COLUMNS, FOLDS, MANY, RIDGES
from fsmerge_cli.alignment.closed_form.patches import regressors, units_first
from fsmerge_cli.alignment.closed_form.selected import MAX_REGRESSORS
from fsmerge_cli.alignment.closed_form.space_selection import ROWS_PER_CANDIDATE
from fsmerge_cli.alignment.closed_form.steps import steps
from fsmerge_cli.alignment.statistics import reading_places
from fsmerge_cli.models.plan import Plan

DOUBLE = 2.0
"""Time of an operation in fp64, relative to fp32."""

SUMS = FOLDS + 4
"""Matrices of the size of a layer's sums: of every fold, in all, and in a regression."""


@dataclass(frozen=True)
class Size:
    """One layer that reads a space: values of its input and output per image, of the block's input, positions.

    regressors: values that an output is computed from. outputs: units. candidates, merged: units of the space that
    it reads, of all sources and of the merged network.
    """

    input: int
    output: int
    block: int
    positions: int
    regressors: int
    outputs: int
    candidates: int
    merged: int


def sizes(plan: Plan) -> list[Size]:
    """The sizes of all layers of the merged network; nothing is computed."""
    network = plan.skeleton()
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0], output

        return hook

    order = steps(plan) or ()
    names = {name for step in order for name in (step.module, step.block) if name is not None}
    handles = [network.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.inference_mode():
        network(plan.family.sample(plan.arch, 1, None))
    for handle in handles:
        handle.remove()
    found = []
    for step in order:
        if step.read is None:
            continue
        space = plan.spaces[step.read.space]
        module = network.get_submodule(step.module)
        x, y = (units_first(module, value) for value in seen[step.module])
        block = seen[step.block][0].numel() if step.block else 0
        wide = regressors(module)
        found.append(
            Size(
                x.numel(),
                y.numel(),
                block,
                y[0, 0].numel(),
                wide if wide <= MAX_REGRESSORS else 0,
                y.shape[1],
                sum(space.sources),
                space.merged,
            )
        )
    return found


def memory(plan: Plan, rows: int, parameters: int, pixels: int, batch: int, rows_per_unit: float) -> int:
    """Bytes beside the sources and their images. batch: largest number of images per pass."""
    layers, networks = sizes(plan), len(plan.tasks) + 1
    used = min(rows, batch)
    streams = 4 * rows * networks * max(own.block for own in layers)
    selection = [8 * sum(plan.spaces[p.space].sources) ** 2 for p in reading_places(plan).values()]
    fits = []
    for own in layers:
        p, values = own.regressors, own.input + 2 * own.output
        sums = 8 * SUMS * max(p * (p + 2 * own.outputs), own.merged * (own.merged + own.candidates))
        patches = (4 * own.positions + 16 * _sampled(own, rows, rows_per_unit) / rows) * max(p, own.merged)
        fits.append(sums + used * (4 * networks * values + patches))
    return int(4 * rows * pixels + streams + 8 * parameters + max(sum(selection) + 3 * max(selection), *fits))


def _sampled(own: Size, rows: int, rows_per_unit: float) -> float:
    return min(rows * own.positions, rows_per_unit * max(own.regressors, own.merged))


def _fit(p: int, q: int) -> float:
    """Operations of the regression of q values on p, with the choice of its ridge."""
    folds, columns = (1, min(q, COLUMNS)) if p > MANY else (FOLDS, q)
    return p**2 * (len(RIDGES) * folds * (p / 3 + 6.0 * columns) + 2 * (p / 3 + 4.0 * q))


def operations(plan: Plan, rows: int, forward: float, rows_per_unit: float) -> float:
    """Operations, those in fp64 counted DOUBLE. forward: of one image through the merged network."""
    layers, k = sizes(plan), len(plan.tasks)
    per_block = len(layers) / max(1, len({step.block for step in steps(plan) or ()}))
    total = rows * forward * ((k + 1) * (per_block + 3))
    for own in layers:
        p, sampled = own.regressors, _sampled(own, rows, rows_per_unit)
        pairs = sampled * p * (1.2 * p + 4 * own.outputs)
        pairs += _fit(p, 2 * own.outputs) + _fit(own.merged, own.candidates)
        pairs += min(rows * own.positions, rows_per_unit * own.merged) * own.merged * 2.0 * own.candidates
        pairs += 1.2 * min(rows * own.positions, ROWS_PER_CANDIDATE * own.candidates) * own.candidates**2
        total += DOUBLE * pairs
    return total
