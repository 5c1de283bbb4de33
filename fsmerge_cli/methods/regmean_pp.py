"""RegMean++ (arXiv 2508.03121): RegMean on the inputs that the already merged layers produce."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli.alignment.least_squares import linear_modules, mean, solve
from fsmerge_cli.alignment.matching import aligned, require_images, require_one_width
from fsmerge_cli.alignment.statistics import grams
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.common.progress import Event
from fsmerge_cli.methods.regmean import Regression
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.teachers import network


@dataclass(frozen=True, config=FORBID)
class RegMeanPlusPlus(Regression):
    """W' = (sum_i w_i W_i G_i) (sum_i w_i G_i)^-1, one stage (layer or block) after the other.

    G_i is the Gram matrix of the inputs of source i's layer on the images of task i, with all earlier stages
    replaced by merged ones.
    """

    name: Literal["regmean_pp"] = "regmean_pp"

    def check(self, problem: Problem) -> None:
        """Raise UserError where widths differ or a task has no images."""
        require_one_width(problem.plan, self.name)
        require_images(problem, self.name)
        problem.require_task_images()

    def fit(self, problem: Problem) -> Solution:
        """Average the embeddings, then solve each stage on the outputs of the merged stages before it."""
        self.check(problem)
        matched = aligned(problem, self.align)
        problem = matched.problem
        weights, modules = problem.weights(), linear_modules(problem.plan)
        batch = problem.hardware.eval_batch
        shares = self.weights_of_tasks(len(weights))
        merged = {name: mean(weights, name, shares) for name in weights[0]}
        done: set[str] = set()
        worst = 0.0
        found = stages(problem.plan)
        for stage, names in enumerate(found):
            inside = [m for m in modules if f"{m}.weight" in names]
            if inside and (stage > 0 or re.search(r"\d", inside[0])):  # embeddings are averaged
                stats = []
                for i, source in enumerate(problem.sources):
                    hybrid = {n: merged[n] if n in done else t for n, t in weights[i].items()}
                    module = network(replace(source, weights=hybrid), problem.device)
                    stats.append(grams(module, inside, problem.task_images(i), batch, problem.device))
                for module_name in inside:
                    name = f"{module_name}.weight"
                    own = [s[module_name] for s in stats]
                    solved = solve(own, [w[name] for w in weights], self.scale, shares)
                    merged[name], worst = solved[0], max(worst, solved[1])
            done |= set(names)
            problem.progress(Event("solve", stage + 1, len(found)))
        facts = {"condition_number": worst}
        solution = Solution(merged, matched.back, facts=facts, permutations=matched.permutations)
        return self.reset(problem, solution, shares)


def stages(plan: Plan) -> list[list[str]]:
    """Tensor names in the order of the forward pass: before the layers, layer 0, layer 1, ..., after them.

    Layers are the blocks of the family; where it has none, what has the same first number in the same module.
    """
    found: dict[int, list[str]] = {}
    blocks = [f"{name}." for name in plan.family.blocks(plan.skeleton())]
    keys = {name: key for name in plan.roles if (key := _layer(name, blocks)) is not None}
    order = {key: place for place, key in enumerate(dict.fromkeys(keys.values()))}
    layers = {name: order[key] for name, key in keys.items()}
    last = max(layers.values(), default=0)
    inside = False
    for name in plan.roles:
        inside = inside or name in layers
        found.setdefault(layers.get(name, last + 1 if inside else -1), []).append(name)
    return [found[stage] for stage in sorted(found)]


def _layer(name: str, blocks: Sequence[str]) -> str | None:
    """The block of a tensor, or the path to the first part of its name with a number, and that number."""
    if blocks:
        return next((block for block in blocks if name.startswith(block)), None)
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if re.search(r"\d", part)), None)
    if place is None:
        return None
    return ".".join([*parts[:place], *re.findall(r"\d+", parts[place])[:1]])
