"""PLeaS (arXiv 2407.02447): permute, merge the units that match best, and fit every layer by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.alignment.closed_form.options import ROWS_PER_UNIT
from fsmerge_cli.alignment.layer_fits import fitted_layers
from fsmerge_cli.alignment.matching import match_all, require_images, require_one_width, similarities
from fsmerge_cli.alignment.partial import gains, mismatch_of, partial_merge
from fsmerge_cli.alignment.space_maps import folded
from fsmerge_cli.alignment.widening import Widening, widening
from fsmerge_cli.common.errors import ConfigError
from fsmerge_cli.common.options import FORBID, NonNegativeFloat, PositiveFloat
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.methods.zipit import reestimated
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.training.problem import Problem, Solution


@dataclass(frozen=True, config=FORBID)
class PLeaS(Resets):
    """Permutations by activation matching, then W' by least squares of each layer on the matched units' means.

    With x_i the inputs of a layer in source i and M_i the maps that average matched units, W' and b' minimise
    |sum_i M_i (W_i x_i + b_i) - W' sum_i M_i x_i - b'|^2 over the images of all tasks (arXiv 2407.02447, section
    3).

    budget_flops: operations of the merged network relative to one source, from 1 (all units are merged) to 2.
    Above 1 the units, or whole heads, that match worst lie side by side, in the spaces where that gains most per
    operation; the network is a plain wider one. (The paper counts only the blocks that are not zero in its
    networks.) ridge: of every layer, relative to the mean variance of its inputs, towards sum_i M_i W_i U_i (null:
    chosen by cross-validation over the images). rows_per_unit: positions per regressor that a convolution is
    fitted to, sampled over all images where there are more.
    """

    uses_images: ClassVar[bool] = True
    one_width: ClassVar[bool] = True

    name: Literal["pleas"] = "pleas"
    budget_flops: Annotated[float, Field(ge=1, le=2)] = 1.0
    ridge: NonNegativeFloat | None = None
    rows_per_unit: PositiveFloat = ROWS_PER_UNIT

    def plan(self, sources: Sequence[Source]) -> Plan:
        """The plan with all spaces widened alike; `refined` chooses the widths.

        Raises ConfigError for a given width, or where no wider network is within the budget.
        """
        if self.width is not None or self.heads is not None:
            key = "width" if self.width is not None else "heads"
            raise ConfigError(
                f"method.{key}: method=pleas derives widths and heads from method.budget_flops. Leave "
                f"method.{key} at null."
            )
        plan = compile_plan(sources)
        if self.budget_flops == 1 or not plan.same_shape:
            return plan
        found = self._widening(sources)
        return found.plan(found.evenly(self.budget_flops))

    def _widening(self, sources: Sequence[Source]) -> Widening:
        """What can be widened. Raises ConfigError where no wider network is within the budget."""
        found = widening(sources, self.budget_flops)
        smallest = found.smallest()
        if smallest is None or smallest > self.budget_flops:
            raise ConfigError(_too_small(sources, self.budget_flops))
        return found

    def check(self, problem: Problem) -> None:
        """Raise UserError where the widths of the sources differ or there are no images."""
        require_one_width(compile_plan(problem.sources), self.name)
        require_images(problem, self.name)

    def refined(self, problem: Problem) -> Plan:
        """The widths, or numbers of heads, within the budget that separate most of what does not match."""
        if self.budget_flops == 1:
            return problem.plan
        found = self._widening(problem.sources)
        similar, orders = self._matched(problem, found.base)
        shares = {
            name: gains(mismatch_of(space, similar[name], [order[name] for order in orders]))
            for name, space in found.base.spaces.items()
        }

        def gain(name: str, size: int) -> float:
            space, own = found.base.spaces[name], shares[name]
            group = space.merged // space.heads[0] if space.heads else 1
            return float(own[(size - space.merged) // group])

        chosen = torch.tensor(found.best(gain, self.budget_flops))
        return found.plan(problem.world.broadcast(chosen).tolist())

    def fit(self, problem: Problem) -> Solution:
        """Match, merge partially, and fit the layers."""
        self.check(problem)
        base = compile_plan(problem.sources)
        similar, orders = self._matched(problem, base)
        pairs = partial_merge(base, problem.plan, similar, orders)
        merge = {name: pair[0] for name, pair in pairs.items()}
        unmerge = {name: pair[1] for name, pair in pairs.items()}
        plan, start = problem.plan, folded(problem, merge, unmerge)
        averaged = {name: t.detach() for name, t in start.weights.items()}
        fitted, ridges = fitted_layers(problem, merge, averaged, self.ridge, self.rows_per_unit)
        solved = reestimated(problem, {**averaged, **fitted})
        facts = {
            "separate_units": float(sum(s.merged - base.spaces[n].merged for n, s in plan.spaces.items())),
            **{f"ridge_{place}": value for place, value in enumerate(ridges.values())},
        }
        solution = Solution(solved, start.projectors, facts=facts, permutations=tuple(map(dict, orders)))
        return self.reset_of_clusters(problem, solution, merge)

    def _matched(self, problem: Problem, base: Plan) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Correlations of source 1's units with all units, by space; the permutations that maximise them."""
        similar = similarities(replace(problem, plan=base), first=True)
        orders = match_all(base, similar, len(problem.sources), problem.progress)
        return similar, orders


def _too_small(sources: Sequence[Source], budget: float) -> str:
    found = widening(sources, float("inf"))
    smallest, names = found.smallest(), found.fixed()
    if smallest is None:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return (
            f"method.budget_flops={budget:g}: no space of these networks can be widened ({listed}). Pass "
            "method.budget_flops=1."
        )
    return (
        f"method.budget_flops={budget:g}: the smallest network that is wider has {smallest:.2f} times the "
        "operations of one source. Pass 1, or at least that."
    )
