"""Straight-through estimation of permutations (Git Re-Basin, arXiv 2209.04836, section 3.3), without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.func import functional_call

from fsmerge_cli.alignment.matching import match_to_first, reorder_sources, require_one_width
from fsmerge_cli.alignment.permutation import permute
from fsmerge_cli.alignment.weight_matching import descend, match_weights
from fsmerge_cli.architectures.ports import Constant, Mapped
from fsmerge_cli.common.inputs import Inputs
from fsmerge_cli.common.options import FORBID, NonNegativeFloat, Positive
from fsmerge_cli.common.seeding import generator
from fsmerge_cli.methods.average import Average
from fsmerge_cli.methods.base import Trained
from fsmerge_cli.methods.resets import Resets
from fsmerge_cli.supernet.student import Student
from fsmerge_cli.training.problem import Problem, Solution
from fsmerge_cli.training.state import Trace


@dataclass(frozen=True, config=FORBID)
class StraightThrough(Trained, Resets):
    """W' = sum_i w_i P_i W_i Q_i^T / k, with the permutations that match W_i to trained weights V_i, V_1 = W_1.

    Every step permutes each source by weight matching to V_i, and takes the gradient of the loss of the mean W' as
    the gradient of V_i, past the permutation (a straight-through estimator). Attention heads stay whole. The loss
    is that of distillation, on unlabelled images, where the paper has the labels' cross-entropy. The best
    permutations on the validation share are kept, the first ones included.

    start: weights (V_i = W_1, so that the first permutations are those of weight_matching, as in the paper), or
    activations (V_i is the mean of W_1 and source i, permuted by activation matching).
    """

    one_width: ClassVar[bool] = True
    LR_UP_TO_WIDTH_96: ClassVar[float] = 3e-2

    name: Literal["straight_through"] = "straight_through"
    start: Literal["weights", "activations"] = "weights"
    restarts: Positive = 3
    steps: Positive = 300
    optimizer: Literal["muon", "adamw"] = "adamw"
    weight_decay: NonNegativeFloat = 0.0

    def check(self, problem: Problem) -> None:
        """Raise UserError where widths differ or there are no images."""
        super().check(problem)
        require_one_width(problem.plan, self.name)

    def fit(self, problem: Problem) -> Solution:
        """Train the matched weights, permute, average; the projectors undo the permutation of the features."""
        orders, trace = self.permutations(problem)
        found = reorder_sources(problem, orders)
        average = Average(task_weights=self.task_weights, reset_batchnorm=self.reset_batchnorm, repair=self.repair)
        merged = average.fit(found.problem).weights
        return Solution(merged, found.back, trace, permutations=found.permutations)

    def permutations(self, problem: Problem) -> tuple[list[dict[str, Tensor]], Trace]:
        """Train the matched weights; the permutations of every source, by space, and the record."""
        self.check(problem)
        weights = self.start == "weights"
        orders = match_weights(problem, self.restarts) if weights else match_to_first(problem)
        student = MidpointStudent(problem, orders, self.weights_of_tasks(len(orders)), towards_first=weights)
        trace = _without_start(self.train(problem, student, phase="second"))
        student.project_weights()
        return student.orders(), trace


class MidpointStudent(Student):
    """The mean of source 1 and the other sources, permuted to match trained weights V_i; V_i are its parameters.

    Tensors that no permutation orders, and running statistics, have no V_i.
    """

    def __init__(
        self,
        problem: Problem,
        orders: Sequence[Mapping[str, Tensor]],
        shares: Sequence[float],
        towards_first: bool = True,
    ) -> None:
        """orders: the first permutations. towards_first: V_i = W_1; else the mean with the permuted source."""
        super().__init__()
        self._plan, self._seed, self._shares = problem.plan, problem.seed, [s / len(shares) for s in shares]
        # In tuples, so that nn.Module does not register them.
        self._weights, self._skeleton = tuple(problem.weights("cpu")), (problem.plan.reader(),)
        roles = problem.plan.roles.items()
        self._names = [n for n, r in roles if not isinstance(r, Constant) and getattr(r, "trainable", True)]
        first = self._weights[0]
        for i, order in enumerate(orders):
            for space, own in order.items():
                self.register_buffer(_key("order", i, space), own.to(problem.device))
            permuted = permute(problem.plan, self._weights[i], order) if i and not towards_first else first
            for name in self._names if i else ():
                start = (first[name] + permuted[name]) / 2
                self.register_parameter(_key("weight", i, name), nn.Parameter(start.to(problem.device)))

    def orders(self) -> list[dict[str, Tensor]]:
        """The permutations of every source, by space."""
        sources = range(len(self._weights))
        return [{n: self.get_buffer(_key("order", i, n)).cpu() for n in self._plan.spaces} for i in sources]

    def matched(self, source: int) -> dict[str, Tensor]:
        """V_i of a source but the first, by tensor name."""
        return {name: self.get_parameter(_key("weight", source, name)) for name in self._names}

    @torch.no_grad()
    def project_weights(self) -> None:
        """Permute every source to match its V_i, by coordinate descent from its last permutation."""
        orders = self.orders()
        for i in range(1, len(self._weights)):
            own = self._weights[i]
            target = {**own, **{name: t.detach().cpu() for name, t in self.matched(i).items()}}
            random = generator(self._seed, "straight through", i)
            for space, order in descend(self._plan, target, own, orders[i], random).items():
                self.get_buffer(_key("order", i, space)).copy_(order)

    def merged(self) -> dict[str, Tensor]:
        """The mean of the permuted sources, with the gradient of V_i in place of that of the permuted source."""
        device = next(self.parameters()).device
        orders = self.orders()
        total: dict[str, Tensor] = {}
        for i, (weights, share) in enumerate(zip(self._weights, self._shares)):
            permuted = permute(self._plan, weights, orders[i]) if i else weights
            matched = self.matched(i) if i else {}
            for name, tensor in permuted.items():
                value = tensor.to(device)
                if name in matched:
                    value = value + (matched[name] - matched[name].detach())
                if value.is_floating_point():
                    total[name] = share * value + total[name] if i else share * value
                else:
                    total.setdefault(name, value)
        return total

    def matrices(self) -> list[nn.Parameter]:
        """All V_i that are matrices between hidden units, without convolutions."""
        mapped = {n for n, role in self._plan.roles.items() if isinstance(role, Mapped) and role.read}
        keys = [_key("weight", i, n) for i in range(1, len(self._weights)) for n in self._names if n in mapped]
        return [own for own in map(self.get_parameter, keys) if own.ndim == 2]

    def forward(self, images: Inputs) -> Tensor:
        """Features [n, d] of the mean, in the order of source 1."""
        self.project_weights()
        features: Tensor = functional_call(self._skeleton[0], self.merged(), (images,))
        return features

    def project(self, features: Tensor, source: int) -> Tensor:
        """The features in the order of the source, [n, d] -> [n, d]."""
        space = self._plan.features.space
        order = self._plan.feature_order({space: self.get_buffer(_key("order", source, space))})
        return features[:, order.argsort()]


def _without_start(trace: Trace) -> Trace:
    """The record without the validation before the first step."""
    validation = tuple((step, error) for step, error in trace.validation if step)
    return replace(trace, validation=validation, feature_part=tuple(own for own in trace.feature_part if own[0]))


def _key(kind: str, source: int, name: str) -> str:
    """The name of a parameter or buffer; module attributes may not contain dots."""
    return f"{kind}:{source}:{name.replace('.', '/')}"
