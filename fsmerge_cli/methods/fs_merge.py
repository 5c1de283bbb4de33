"""FS-Merge (Foldable SuperNets, arXiv 2410.01483): train maps around frozen sources, then fold."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from fsmerge_cli.fold import fold
from fsmerge_cli.maps import Start, Structure, start_maps
from fsmerge_cli.methods.base import Problem, Solution, Trained
from fsmerge_cli.options import FORBID, Positive
from fsmerge_cli.supernet import SuperNet


@dataclass(frozen=True, config=FORBID)
class FSMerge(Trained):
    """The maps M and U of every port, the norms and the readouts U_out are trained; the sources are frozen.

    maps: diagonal, low_rank (diagonal + rank-`rank` product), full, or heads (attention spaces: one block per
    head, then heads are mixed; other spaces low_rank). rank: at the width of the features;
    other spaces take it in proportion. start: first (the merged model is source 1) or average.
    """

    name: Literal["fs_merge"] = "fs_merge"
    maps: Structure = "full"
    rank: Positive = 12
    start: Start = "first"

    def fit(self, problem: Problem) -> Solution:
        """Train the SuperNet in its folded form and fold it once more at the end."""
        weights = problem.weights()
        maps = start_maps(problem.plan, weights, self.maps, self.start, self.rank, problem.seed)
        supernet = SuperNet(problem.plan, maps.to(problem.device), weights)
        trace = self.train(problem, supernet)
        with torch.no_grad():
            folded = {n: t.detach().clone() for n, t in fold(problem.plan, maps, weights).items()}
            readouts = tuple(maps.read(problem.plan.features, i).dense() for i in range(len(weights)))
        return Solution(folded, readouts, trace, maps)
