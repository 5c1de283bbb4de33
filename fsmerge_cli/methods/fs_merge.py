"""FS-Merge (Foldable SuperNets, arXiv 2410.01483): train maps around frozen sources, then fold."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.alignment.matching import fit_matched, unmerging_start
from fsmerge_cli.common.options import FORBID, Flag, Positive, PositiveFloat, Share
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.methods.kd import Distillation, PlainStudent
from fsmerge_cli.models.plan import compile_plan
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import start_maps
from fsmerge_cli.supernet.maps import Structure
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.training.loop import Phase
from fsmerge_cli.training.problem import Problem, Solution, Stage
from fsmerge_cli.training.state import Trace


@dataclass(frozen=True, config=FORBID)
class FSMerge(Trained):
    """The maps M and U of every port, the norms and the projectors U_out are trained; the sources are frozen.

    maps: diagonal, low_rank (diagonal + rank-`rank` product), full, or heads (attention spaces: one block per
    head, then heads are mixed; other spaces low_rank). rank: at the width of the features; other spaces take it
    in proportion. start: first (the merged model is source 1), average (the mean), aligned (first, and what the
    other sources read is fitted by least squares to what source 1 gives), or matched (the mean of the sources with
    their units reordered to fit source 1's by activation matching; aligned where widths or heads differ). release:
    share of the steps, the last ones, in which the maps are gone and all weights of the folded network are
    trained, with the rates of kd; release_lr: with this one instead for what AdamW trains. sequential: merge two
    sources, then the result with the third, and so on, instead of all at once; the result counts as much as its
    tasks do on average, and is compared by its features alone.
    """

    name: Literal["fs_merge"] = "fs_merge"
    maps: Structure = "full"
    rank: Positive = 12
    start: Literal["matched", "average", "first", "aligned"] = "matched"
    finetune_share: Share = 0.95
    finetune_lr: PositiveFloat | None = None
    sequential: Flag = False

    def all_steps(self, k: int) -> int:
        """Steps of a whole run with `k` sources; one after the other, every stage has its own."""
        return self.total_steps * (k - 1 if self.sequential else 1)

    def fit(self, problem: Problem) -> Solution:
        """Train the SuperNet in its folded form and fold it once more at the end."""
        if self.sequential and len(problem.sources) > 2:
            return self._fit_one_by_one(problem)
        if self.start == "matched":
            return fit_matched(problem, lambda own, start: replace(self, start=start).fit(own))
        weights = problem.weights("cpu")  # the fold moves them, one at a time
        shares = self.weights_of_tasks(len(weights))
        unmerge = unmerging_start(problem) if self.start == "aligned" else None
        maps = start_maps(problem.plan, weights, self.maps, self.start, self.rank, problem.seed, shares, unmerge)
        supernet = SuperNet(problem.plan, maps.to(problem.device), weights, problem.hardware)
        finetuned = min(round(self.finetune_share * self.total_steps), self.total_steps - 1)
        prepared = self.prepare(problem)
        phase: Phase = "first" if finetuned else "whole"
        trace = self.train(problem, supernet, prepared, self.total_steps - finetuned, phase=phase)
        with torch.no_grad():
            folded = {n: t.detach().clone() for n, t in fold(problem.plan, maps, weights).items()}
            projectors = tuple(maps.read(problem.plan.features, i).dense() for i in range(len(weights)))
        if not finetuned:
            return Solution(folded, projectors, trace, maps)
        stage = Stage(problem.plan, maps, weights, folded)
        network = PlainStudent(problem, folded, projectors)
        like, seed = Distillation(lr=self.finetune_lr), derive(problem.seed, "release")
        second = self.train(problem, network, prepared, finetuned, like, seed, "second")
        solution = network.solution(trace.then(second, trace.start_error))
        return replace(solution, stages=(stage,), finetuned=True)

    def _fit_one_by_one(self, problem: Problem) -> Solution:
        """The merged model so far is the first source of every next pair; its projectors are chained."""
        k = len(problem.sources)
        weights = self.weights_of_tasks(k)
        so_far = problem.sources[0]
        projectors: list[Tensor] = []
        stages: list[Stage] = []
        trace = Trace()
        for i in range(1, k):
            pair = [so_far if i == 1 else replace(so_far, head=None), problem.sources[i]]  # of several heads: none
            groups = [0 if j < i else 1 if j == i else None for j in range(k)]
            plan = compile_plan(pair, self.width, self.heads)
            step = replace(problem, plan=plan, sources=pair, images=problem.images.regroup(groups))
            shares = (sum(weights[:i]) / i, weights[i])
            solution = replace(self, sequential=False, task_weights=shares).fit(step)
            stages += solution.stages
            if solution.maps is not None:
                folded_from = [source.weights for source in pair]
                stages.append(Stage(plan, solution.maps, folded_from, solution.weights))
            first, new = solution.projectors
            projectors = [U @ first for U in projectors or [torch.eye(first.shape[0], device=first.device)]] + [
                new
            ]
            so_far = replace(so_far, arch=plan.arch, weights=solution.weights)
            stage, before = solution.trace, trace
            # one error per task: of the stage in which it came in
            trace = before.then(stage, (before.start_error or stage.start_error[:1]) + stage.start_error[1:])
        return Solution(
            solution.weights, tuple(projectors), trace, stages=tuple(stages), finetuned=solution.finetuned
        )
