"""FS-Merge (Foldable SuperNets, arXiv 2410.01483): train maps around the frozen sources, then fold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fsmerge_cli.alignment.matching import fit_matched, unmerging_start
from fsmerge_cli.common.errors import ConfigError, UserError
from fsmerge_cli.common.options import FORBID, Flag, Positive, PositiveFloat, Share
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.methods.closed_form_solution import (
    check_closed_form,
    require_enough_units,
    started_maps,
    unsolved,
)
from fsmerge_cli.methods.kd import Distillation, PlainStudent
from fsmerge_cli.methods.starts import MAPPED, REORDERED, TrainingStart, check_start, merged_start_maps, orders_of
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.models.source_spec import Reads
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import Start, check_maps, start_maps
from fsmerge_cli.supernet.maps import Structure
from fsmerge_cli.supernet.network import SuperNet
from fsmerge_cli.training.loop import Phase
from fsmerge_cli.training.problem import Problem, Solution, Stage
from fsmerge_cli.training.state import Trace


@dataclass(frozen=True, config=FORBID)
class FSMerge(Trained):
    """W' = sum_i M_i W_i U_i: the maps M and U of every port, the norms and the projectors U_out are trained.

    The source weights W_i are frozen. maps: diagonal, low_rank (diagonal + rank-`rank` product), full, or heads
    (attention spaces: one block per head and mixing of whole heads; other spaces low_rank). rank: at the width of
    the features; scaled in proportion in other spaces. start: first (the merged model is source 1), average (the
    weighted mean), aligned (as first, with the maps U of the other sources fitted by least squares to source 1's
    activations), matched (the mean of the sources after permuting their units to match source 1 by activation
    matching; aligned where widths or heads differ), weight_matching or straight_through (the same mean with the
    permutations of these methods), ot_fusion, cca or orthogonal_matching (the maps of these methods), or
    closed_form (the maps of fs_closed_form with correct=false; the default learning rates are smaller). null:
    closed_form where the maps can hold it and the sources have one, else matched.
    finetune_share: last share of the steps, which is the fine-tuning of the folded weights without maps, at the
    learning rates of kd. finetune_lr: of AdamW in that fine-tuning, peak of the one-cycle schedule (null: that of
    kd). sequential: merge two sources, then the result with the third, and so on, instead of all at once; an
    intermediate result has the mean weight of its tasks, and only its features are distilled.
    """

    name: Literal["fs_merge"] = "fs_merge"
    maps: Structure = "full"
    rank: Positive = 12
    start: TrainingStart | None = None
    finetune_share: Share = 0.95
    finetune_lr: PositiveFloat | None = None
    sequential: Flag = False

    @property
    def solved_start(self) -> bool:
        """Whether the training starts from the closed form."""
        return self.start == "closed_form"

    def all_steps(self, k: int) -> int:
        """Training steps of a whole run with `k` sources; a sequential merge trains k - 1 stages."""
        return self.total_steps * (k - 1 if self.sequential else 1)

    def settled(self, sources: Sequence[Source]) -> tuple[FSMerge, tuple[str, ...]]:
        """With the start of `start: null`; a note where it is not the closed form."""
        if self.start is not None:
            return self, ()
        if (reason := self._against_closed_form(sources)) is None:
            return replace(self, start="closed_form"), ()
        matched = replace(self, start="matched")
        return matched, (f"method.start=matched with {matched.total_steps} steps: the closed form {reason}",)

    def _against_closed_form(self, sources: Sequence[Source]) -> str | None:
        """Why the training cannot start from the closed form, as the rest of a sentence."""
        if self.maps != "full":
            return f"needs full maps, and these are method.maps={self.maps}"
        if self.sequential and len(sources) > 2:
            return "solves for all sources at once, and method.sequential=true"
        try:
            plan = replace(self, start="closed_form").plan(sources)
            require_enough_units(plan)
        except UserError:  # the plan of the other start may have no such error
            return "has no network of this width and number of heads"
        return unsolved(plan)

    def plan(self, sources: Sequence[Source]) -> Plan:
        """As other methods, with the number of heads of the start."""
        return super().plan(sources) if self.start is not None else self.settled(sources)[0].plan(sources)

    def check(self, problem: Problem) -> None:
        """Raise UserError where there are no images, or where the maps do not fit the sources."""
        if self.start is None:
            return self.settled(problem.sources)[0].check(problem)
        super().check(problem)
        check_maps(problem.plan, self.maps, self.rank)
        check_start(problem, "fs_merge", self.start, "maps=full" if self.maps != "full" else None)
        if not self.solved_start:
            return
        check_closed_form(problem, "fs_merge method.start=closed_form")
        if self.maps != "full":
            raise ConfigError(
                f"method.start=closed_form needs full maps: method.maps={self.maps} cannot hold the solution. "
                "Pass method.maps=full, or take another method.start."
            )
        if self.sequential and len(problem.sources) > 2:
            raise ConfigError(
                "method.start=closed_form solves for all sources at once. Pass method.sequential=false, or take "
                "another method.start."
            )

    def fit(self, problem: Problem) -> Solution:
        """Train the SuperNet in its folded form, fold it, and fine-tune the folded weights."""
        if self.start is None:
            return self.settled(problem.sources)[0].fit(problem)
        self.check(problem)
        if self.sequential and len(problem.sources) > 2:
            return self._fit_sequentially(problem)
        if self.start in REORDERED:
            matcher = None if self.start == "matched" else orders_of(self, self.start)
            return fit_matched(problem, lambda matched, start: replace(self, start=start).fit(matched), matcher)
        weights = problem.weights("cpu")  # the fold moves one source at a time to the device
        shares = self.weights_of_tasks(len(weights))
        facts: Mapping[str, float] = {}
        if self.start == "closed_form":
            maps, facts = started_maps(problem)
        elif self.start in MAPPED:
            maps = merged_start_maps(problem, self, self.start)
        else:
            unmerge = unmerging_start(problem) if self.start == "aligned" else None
            plain: Start = (
                "aligned" if self.start == "aligned" else "first" if self.start == "first" else "average"
            )
            maps = start_maps(problem.plan, weights, self.maps, plain, self.rank, problem.seed, shares, unmerge)
        supernet = SuperNet(problem.plan, maps.to(problem.device), weights, problem.hardware)
        finetuned = min(round(self.finetune_share * self.total_steps), self.total_steps - 1)
        prepared = self.prepare(problem)
        phase: Phase = "first" if finetuned else "whole"
        trace = self.train(problem, supernet, prepared, self.total_steps - finetuned, phase=phase)
        with torch.no_grad():
            folded = {n: t.detach().clone() for n, t in fold(problem.plan, maps, weights).items()}
            projectors = tuple(maps.projector(problem.plan, i) for i in range(len(weights)))
        if not finetuned:
            return Solution(folded, projectors, trace, maps, facts=facts)
        stage = Stage(problem.plan, maps, weights, folded)
        network = PlainStudent(problem, folded, projectors)
        rates = Distillation(lr=self.finetune_lr, start="closed_form" if self.solved_start else "first")
        seed = derive(problem.seed, "release")
        second = self.train(problem, network, prepared, finetuned, rates, seed, "second")
        solution = network.solution(trace.then(second, trace.start_error))
        return replace(solution, stages=(stage,), finetuned=True, facts=facts)

    def _fit_sequentially(self, problem: Problem) -> Solution:
        """Merge the model so far with the next source, stage by stage; the projectors are multiplied."""
        k = len(problem.sources)
        weights = self.weights_of_tasks(k)
        so_far = problem.sources[0]
        projectors: list[Tensor] = []
        stages: list[Stage] = []
        trace = Trace()
        for i in range(1, k):
            pair = [
                so_far if i == 1 else replace(so_far, head=None),
                problem.sources[i],
            ]  # a merged model has no single head
            groups = [0 if j < i else 1 if j == i else None for j in range(k)]
            plan = self.plan(pair)
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
            reads: Reads = "both" if plan.reads_tokens else "pooled"
            so_far = replace(so_far, arch=plan.arch, weights=solution.weights, reads=reads)
            stage, before = solution.trace, trace
            # one error per task: that of the first stage with the task
            trace = before.then(stage, (before.start_error or stage.start_error[:1]) + stage.start_error[1:])
        return Solution(
            solution.weights, tuple(projectors), trace, stages=tuple(stages), finetuned=solution.finetuned
        )
