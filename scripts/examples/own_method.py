"""A custom method: a frozen dataclass with `fit(problem) -> Solution`.

    python scripts/examples/own_method.py

An instance can be passed to `merge` without registration. `fsmerge_cli.register` makes it known by name in this
process, an entry point of a package also on the command line (docs/write-a-method.md).
"""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fsmerge_cli import merge
from fsmerge_cli.methods import Method, Problem, Solution
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import start_maps


@dataclass(frozen=True)
class Shrunk(Method):
    """The mean of the weights, times `scale`: W' = scale * sum_i W_i / k in every layer but the last."""

    uses_images: ClassVar[bool] = False

    name: Literal["shrunk"] = "shrunk"
    scale: float = 0.9

    def fit(self, problem: Problem) -> Solution:
        """Fold the maps of the average, then scale; independent of the architecture."""
        weights = problem.weights("cpu")
        maps = start_maps(problem.plan, weights, "diagonal", "average")
        maps.requires_grad_(False)
        merged = {n: t * self.scale for n, t in fold(problem.plan, maps, weights).items()}
        projectors = tuple(maps.projector(problem.plan, i) for i in range(len(weights)))
        return Solution(merged, projectors)


for scale in (1.0, 1.5):
    result = merge("digits_mlp_pair", method=Shrunk(scale=scale))
    print(scale, result.scores["merged"].mean)
