"""The closed form of FS-Merge: all networks side by side, pruned by least squares from first layer to last.

Every layer is solved on the inputs that the already merged layers produce, from sums that are streamed in fp64; no
gradient step is taken. Residual streams: one orthogonal projection (SliceGPT, arXiv 2401.15024, takes one per
block of a single network), or of convolutional networks a forward selection of its units; heads: the
best approximation of their logits at a smaller size; hidden units: forward selection; what writes into the stream:
regression on what is missing there (RegMean++, arXiv 2508.03121, solves layers in this order; PLeaS, arXiv
2407.02447, fits them to the sources' outputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fsmerge_cli.alignment.closed_form.assembly import Assembly, Maps
from fsmerge_cli.alignment.closed_form.finished import Finished
from fsmerge_cli.alignment.closed_form.folds import folds_of
from fsmerge_cli.alignment.closed_form.layered import LayeredSolver, layers
from fsmerge_cli.alignment.closed_form.options import ClosedFormOptions
from fsmerge_cli.alignment.closed_form.outline import outline
from fsmerge_cli.alignment.closed_form.residual import ResidualSolver
from fsmerge_cli.alignment.closed_form.selected import SelectedSolver
from fsmerge_cli.alignment.closed_form.steps import selects_units, steps
from fsmerge_cli.common.inputs import Inputs, pixels_of
from fsmerge_cli.data.draw import NO_TASK, Images
from fsmerge_cli.training.problem import Problem
from fsmerge_cli.training.teachers import network

MAX_GRADIENT_IMAGES = 256
"""Images per source from which the row weights are estimated."""


@dataclass(frozen=True)
class ClosedForm:
    """A solved problem.

    weights: of the merged network, fp32. projectors: U_out [d_i, d']. merge, unmerge: the maps; without `correct`
    they fold the sources to these weights (with it a continued run lacks those of earlier stages). facts: by name,
    one value or list per layer.
    """

    weights: Mapping[str, Tensor]
    projectors: tuple[Tensor, ...]
    merge: Maps
    unmerge: Maps
    facts: Mapping[str, list[list[float]]]


def closed_form(problem: Problem, rows: Images, options: ClosedFormOptions) -> ClosedForm:
    """Solve the problem on `rows`, the images with their views; those of `problem` come first.

    The architecture is blocks on a residual stream (`outline`), a chain of layers (`layers`), or layers whose
    units can only be selected (`steps`). Continues behind the last stage that the problem's snapshots have, and
    saves further ones there.
    """
    plan, device = problem.plan, problem.device
    assembly = Assembly(plan, problem.weights(), device)
    networks = [network(source, device).float() for source in problem.sources]
    finished = Finished(assembly, not options.correct, problem.snapshots.next_training(), problem.progress)
    inputs = rows.images.float()
    original = inputs[: len(problem.images)]
    solver: ResidualSolver | LayeredSolver | SelectedSolver
    folds = folds_of(len(original), len(rows))
    if selects_units(plan):
        order = steps(plan) or ()
        solver = SelectedSolver(assembly, networks, order, pixels_of(inputs), folds, options, finished)
    elif found := outline(plan):
        own = [_own(original, problem.images.task, i)[:MAX_GRADIENT_IMAGES] for i in assembly.sources]
        given = inputs, original, own, options, finished, problem.sources
        solver = ResidualSolver(assembly, networks, found, *given)
    else:
        chain = layers(plan) or ()
        solver = LayeredSolver(assembly, networks, chain, pixels_of(inputs), folds, options, finished)
    projectors = solver.solve()
    weights = {name: t.detach().clone() for name, t in assembly.network.state_dict().items()}
    return ClosedForm(weights, projectors, assembly.merge, assembly.unmerge, finished.facts)


def _own(images: Inputs, task: Tensor, source: int) -> Inputs:
    """The images of one source's task and the auxiliary images; all images where there are none of them."""
    selected = (task == source) | (task == NO_TASK)
    return images[selected] if bool(selected.any()) else images
