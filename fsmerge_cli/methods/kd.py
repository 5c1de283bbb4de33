"""Feature distillation (FitNets, arXiv 1412.6550) from several teachers: the main baseline of FS-Merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fsmerge_cli.alignment.feature_projectors import fitted_projectors
from fsmerge_cli.alignment.matching import fit_matched, unmerging_start
from fsmerge_cli.common.errors import ConfigError, MismatchError
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.options import FORBID
from fsmerge_cli.common.seeding import derive
from fsmerge_cli.methods.base import Method, Trained, Weighted
from fsmerge_cli.methods.closed_form_solution import check_closed_form, started
from fsmerge_cli.methods.starts import MAPPED, REORDERED, TrainingStart, check_start, merged_start, orders_of
from fsmerge_cli.models.distilled import distilled_plan
from fsmerge_cli.models.head_count import merged_heads
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Source
from fsmerge_cli.supernet.fold import fold
from fsmerge_cli.supernet.map_set import Start, start_maps
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.optimizers import matrices_of
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.state import Trace

KDStart = Literal["first", "average", "aligned", "random"]


@dataclass(frozen=True, config=FORBID)
class Distillation(Trained):
    """Minimises sum_i w_i |U_out,i z(x) - f_i(x)|^2 over all weights of one student z and its projectors U_out,i.

    The f_i are the features of the sources; the further terms of the loss are those of the shared options. Running
    statistics stay those of the initial weights. start: first (source 1), aligned (as first, with projectors
    fitted to the other sources' features by least squares), average (the weighted mean), matched (the mean of the
    sources after permuting their units to match source 1 by activation matching; aligned where widths or heads
    differ), weight_matching, straight_through, ot_fusion, cca or orthogonal_matching (the results of these
    methods, before BatchNorm is reset), closed_form (the solution of fs_closed_form; the default learning rates
    are smaller), or random (a new initialisation). From first and random, networks for images of one
    family and of unlike architectures (of vision transformers: patch sizes, depths, norms) are distilled into one
    like source 1. projector: linear is one
    linear map per task, folded into its head, as in FS-Merge; identity is none, and features are compared as they
    are (permuted where the sources are).
    """

    LR_UP_TO_WIDTH_96: ClassVar[float] = 3e-3
    MATRIX_LR: ClassVar[float] = 1e-2

    name: Literal["kd"] = "kd"
    start: Literal[TrainingStart, "random"] = "matched"
    projector: Literal["linear", "identity"] = "linear"

    @property
    def solved_start(self) -> bool:
        """Whether the training starts from the closed form."""
        return self.start == "closed_form"

    def plan(self, sources: Sequence[Source]) -> Plan:
        """As other methods; from `first` and `random` the architectures may differ. Raises MismatchError."""
        try:
            return super().plan(sources)
        except MismatchError as error:
            if len(sources) < 2 or sources[0].family.kind != "image":
                raise
            try:
                found = distilled_plan(
                    sources, self.width, merged_heads(sources, self.width, self.heads or "same")
                )
            except MismatchError:
                raise error from None
            if self.start in ("first", "random"):
                return found
            more = (
                f"; method=kd method.start=first trains a network like '{sources[0].name}' on the features of all"
            )
            raise MismatchError([*error.reasons[:-1], error.reasons[-1] + more]) from None

    def check(self, problem: Problem) -> None:
        """Raise UserError where there are no images, or where projector=identity does not fit the widths."""
        super().check(problem)
        if problem.plan.distilled and self.start == "first" and problem.plan.arch != problem.sources[0].arch:
            raise ConfigError(
                "the architectures of the sources differ, and method.start=first takes the weights of source 1 as "
                "they are. Pass method.width=null and method.heads=null, or method.start=random."
            )
        check_start(problem, "kd", self.start, "projector=linear" if self.projector != "linear" else None)
        if self.solved_start:
            check_closed_form(problem, "kd method.start=closed_form")
            if self.projector == "identity":
                raise ConfigError(
                    "method.start=closed_form has a projector for every task. Pass method.projector=linear, or "
                    "take another method.start."
                )
        width = problem.plan.arch.features
        different = [source.name for source in problem.sources if source.arch.features != width]
        if self.projector == "identity" and different:
            raise ConfigError(
                f"method.projector=identity needs features of one width, but {', '.join(different)} differ "
                "from the merged model. Pass method.projector=linear."
            )

    def fit(self, problem: Problem) -> Solution:
        """Train the student and return its weights."""
        self.check(problem)
        if self.start in REORDERED:
            matcher = None if self.start == "matched" else orders_of(self, self.start)
            return fit_matched(problem, lambda matched, start: replace(self, start=start).fit(matched), matcher)
        if self.start == "closed_form" or self.start in MAPPED:
            found = started(problem) if self.solved_start else merged_start(problem, self, self.start)
            solved = PlainStudent(problem, found.weights, found.projectors)
            return replace(solved.solution(self.train(problem, solved)), facts=found.facts)
        if problem.plan.distilled:
            made = distilled_student(problem, self.start == "random", self.projector == "identity")
            return made.solution(self.train(problem, made))
        weights = self.weights_of_tasks(len(problem.sources))
        student = StudentNetwork(problem, cast(KDStart, self.start), self.projector, weights)
        return student.solution(self.train(problem, student))


def at_equal_budget(method: Method, k: int) -> Distillation:
    """Distillation with the training budget of `method` for `k` sources.

    Steps, batches, views, losses and task weights are the method's, and its start where that is the closed form;
    learning rates, projector and other starts are distillation's defaults. From a method without training only the
    sizes and task weights are taken.
    """
    if isinstance(method, Distillation):
        return method
    kind = next(kind for kind in (Trained, Weighted, Method) if isinstance(method, kind))
    shared = {f.name: getattr(method, f.name) for f in fields(kind) if f.name != "name"}
    if isinstance(method, Trained):
        shared |= {"steps": method.all_steps(k), "budget": "default", "lr": None, "matrix_lr": None}
        shared |= {"start": "closed_form"} if method.solved_start else {}
    return Distillation(**shared)


class PlainStudent(Student):
    """A student: a network of the merged size, and one projector [d_i, d'] per source.

    weights, projectors: the initial values. fixed: the projectors are not trained.
    """

    def __init__(
        self,
        problem: Problem,
        weights: Mapping[str, Tensor],
        projectors: Sequence[Tensor],
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self.network = problem.plan.reader()
        self.network.load_state_dict({n: t.detach().clone() for n, t in weights.items()}, assign=True)
        self.network.requires_grad_(True)
        if problem.hardware.checkpointing:
            for name in problem.plan.family.blocks(self.network):
                _checkpointed(self.network.get_submodule(name))
        self._run = problem.hardware.compiled(lambda images: self.network(images))
        self._fixed = list(projectors) if fixed else []
        self.projectors = None if fixed else nn.ParameterList(m.detach().clone() for m in projectors)

    def matrix(self, source: int) -> Tensor:
        """The projector of one source, [d_i, d']."""
        return self._fixed[source] if self.projectors is None else self.projectors[source]

    def matrices(self) -> list[nn.Parameter]:
        """All matrices of the network, without convolutions and projectors."""
        return matrices_of(self.network)

    def forward(self, images: Inputs) -> Tensor:
        """Features [n, d']."""
        features: Tensor = self._run(images)
        return features

    def project(self, features: Tensor, source: int) -> Tensor:
        """[n, d'] -> [n, d_i]."""
        return features if self.projectors is None else features @ self.projectors[source].T

    def solution(self, trace: Trace) -> Solution:
        """The trained weights and projectors."""
        with torch.no_grad():
            found = {name: t.clone() for name, t in self.network.state_dict().items()}
            k = len(self._fixed if self.projectors is None else self.projectors)
            return Solution(found, tuple(self.matrix(i).clone() for i in range(k)), trace)


class StudentNetwork(PlainStudent):
    """The student of distillation with the initial weights and projectors of `start`."""

    def __init__(
        self,
        problem: Problem,
        start: KDStart,
        projector: str,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        plan, weights = problem.plan, problem.weights("cpu")
        initial_maps: Start = "average" if start == "average" else "first"
        maps = start_maps(plan, weights, "diagonal", initial_maps, task_weights=task_weights).to(problem.device)
        maps.requires_grad_(False)
        initial = _random_weights(problem) if start == "random" else fold(plan, maps, weights)
        matrices = [maps.projector(plan, i) for i in range(len(weights))]
        if start == "aligned" and projector != "identity":
            fitted = unmerging_start(problem, features_only=True)
            ports = plan.feature_ports
            parts = {i: [fitted[p, i] for p in ports] for i in range(len(weights)) if (ports[0], i) in fitted}
            own = {i: plan.projector(found) for i, found in parts.items()}
            matrices = [own.get(i, matrix).to(problem.device) for i, matrix in enumerate(matrices)]
        super().__init__(problem, initial, matrices, fixed=projector == "identity")


def distilled_student(problem: Problem, random: bool, fixed: bool) -> PlainStudent:
    """A student like source 1, with projectors that are fitted to the features of all by least squares.

    fixed: there are none, and features are compared as they are.
    """
    first = problem.sources[0]
    initial = _random_weights(problem) if random else {n: t.to(problem.device) for n, t in first.weights.items()}
    if fixed:
        size = problem.plan.arch.features
        matrices = [torch.eye(size, device=problem.device) for _ in problem.sources]
    else:
        matrices = fitted_projectors(problem, initial)
    return PlainStudent(problem, initial, matrices, fixed=fixed)


def _random_weights(problem: Problem) -> dict[str, Tensor]:
    """The weights of a newly initialised network; torch samples them from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(problem.seed, "kd", "start"))
        family, arch = problem.plan.family, problem.plan.arch
        state = family.from_file(arch, family.build(arch).state_dict())
    return {name: t.to(problem.device) for name, t in state.items()}


def _checkpointed(block: nn.Module) -> None:
    """Recompute the block's activations in the backward pass; its tensors keep their names."""
    forward = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    block.forward = run
