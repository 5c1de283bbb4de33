"""Memory and operations of the closed form, from shapes.

Memory, in bytes, beside the sources and the images themselves:

- rows: the images with their views, 4 per value.
- streams: of every source and of the merged network, 4 rows tokens width each. With corrections also what the
  merged stream stands for before a branch; without, the sources' streams before it. A chain of layers holds all
  its units.
- the merged network, twice at the end (8 n).
- the largest phase: the moments of the streams at all depths, (depths + 3) 8 (sum_i d_i)^2; or the selection of a
  space, 3 matrices of 8 C^2 for its C candidates and one of 8 C times the units that read it; and COPIES of the
  largest activation of one batch, in fp64, which is at most MAX_BYTES.

Where units are selected, `selected_cost` has the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fsmerge_cli.alignment.closed_form.branches import ROWS_PER_CANDIDATE
from fsmerge_cli.alignment.closed_form.outline import Outline, outline
from fsmerge_cli.alignment.closed_form.residual import MAX_BYTES
from fsmerge_cli.alignment.closed_form.stages import embed
from fsmerge_cli.alignment.closed_form.steps import selects_units
from fsmerge_cli.architectures.ports import Mapped
from fsmerge_cli.methods.base import Method, Trained
from fsmerge_cli.methods.closed_form_solution import copies_per_image
from fsmerge_cli.methods.fs_closed_form import FSClosedForm
from fsmerge_cli.methods.kd import Distillation
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.runs import selected_cost
from fsmerge_cli.runs.selected_cost import DOUBLE

COPIES = 3
"""Of the largest activation: all sources side by side, in fp64, and times the weights of the rows."""


@dataclass(frozen=True)
class Shapes:
    """What the cost depends on: rows (images with views), tokens of an image, depths at which a stream is seen.

    candidates, merged: units of the largest space of all sources side by side, and of the merged network. stream,
    merged_stream: the same of the residual stream (of a chain: of all layers together).
    """

    rows: int
    tokens: int
    depths: int
    candidates: int
    merged: int
    stream: int
    merged_stream: int


def parts(method: Method) -> tuple[FSClosedForm | None, Method]:
    """The closed form that a method solves, if any, and what it trains afterwards (the method itself without)."""
    if isinstance(method, FSClosedForm):
        return method, method.training() if method.steps else method
    solved = isinstance(method, Trained) and method.solved_start
    return FSClosedForm(correct=isinstance(method, Distillation)) if solved else None, method


def rows_of(method: FSClosedForm, plan: Plan, images: int) -> int:
    """Images with their views."""
    return images * (1 + copies_per_image(images, len(plan.tasks), method.views))


def shapes(plan: Plan, rows: int) -> Shapes:
    """The shapes of a plan; nothing is computed."""
    found = outline(plan)
    spaces = plan.spaces.values()
    widest = max(spaces, key=lambda space: sum(space.sources))
    size = sum(widest.sources), widest.merged
    if found is None:
        total = sum(sum(space.sources) for space in spaces)
        return Shapes(rows, 1, 0, *size, total, sum(space.merged for space in spaces))
    stream = plan.spaces[found.stream]
    depths = 1 + sum(len(own) for own in found.branches)
    return Shapes(rows, _tokens(plan, found), depths, *size, sum(stream.sources), stream.merged)


def _tokens(plan: Plan, found: Outline) -> int:
    with torch.inference_mode():
        return embed(plan.skeleton(), found.blocks, plan.family.sample(plan.arch, 1, None)).shape[1]


def memory_of(plan: Plan, method: FSClosedForm, images: int, parameters: int, batch: int) -> int:
    """Bytes of solving `method` on so many images, beside the sources and these images; see `memory`."""
    rows = rows_of(method, plan, images)
    pixels = plan.family.sample(plan.arch, 1, None).nbytes // 4
    if selects_units(plan):
        return selected_cost.memory(plan, rows, parameters, pixels, batch, method.rows_per_unit)
    return memory(shapes(plan, rows), parameters, pixels, method.correct, batch)


def operations_of(plan: Plan, method: FSClosedForm, images: int, forward: float) -> float:
    """Operations of solving `method` on so many images. forward: of one image through the merged network."""
    rows = rows_of(method, plan, images)
    if selects_units(plan):
        return selected_cost.operations(plan, rows, forward, method.rows_per_unit)
    return operations(plan, shapes(plan, rows), forward, method.rows_per_unit)


def memory(s: Shapes, parameters: int, pixels: int, correct: bool, batch: int) -> int:
    """Bytes beside the sources and their images.

    parameters: of the merged network. pixels: values of an image. batch: largest number of images per pass.
    """
    widths = s.stream + s.merged_stream
    if s.depths:
        widths += s.merged_stream if correct else s.stream
    streams = 4 * s.rows * s.tokens * widths
    moments = 8 * (s.depths + 3) * s.stream**2 if s.depths else 0
    selection = 8 * s.candidates * (3 * s.candidates + s.merged_stream)
    one_pass = COPIES * min(MAX_BYTES, 8 * min(s.rows, batch) * s.tokens * (s.candidates + s.merged))
    return 4 * s.rows * pixels + 8 * parameters + max(moments, streams + selection + one_pass)


def operations(plan: Plan, s: Shapes, forward: float, rows_per_unit: float) -> float:
    """Operations, those in fp64 counted DOUBLE. forward: of one image through the merged network."""
    k = len(plan.tasks)
    total = s.rows * forward * (k + 2)  # the merged network to its writers' inputs, and again to their outputs
    rows = s.rows * s.tokens
    for role in plan.roles.values():
        if not isinstance(role, Mapped) or role.read is None:
            continue
        read, write = (plan.spaces[ports[0].space] for _, ports in (role.read, role.write))
        candidates, own = sum(read.sources), read.merged
        fitted = min(rows, rows_per_unit * own) if s.depths else rows
        if s.depths and write.merged == s.merged_stream and read.merged != s.merged_stream:
            chosen = min(rows, ROWS_PER_CANDIDATE * candidates)  # hidden units are selected, then regressed on
            pairs = 1.2 * chosen * candidates**2 + fitted * own * (1.2 * own + 2 * write.merged)
            pairs += 2.0 * own * candidates * (candidates / 2 + write.merged)
        else:
            pairs = fitted * own * (1.2 * own + 2 * candidates)
        total += DOUBLE * pairs
    return total
