"""The joint decision: one label among those of all tasks, as one linear classifier can make it.

Every head's logits are divided by its temperature and get its shift; the largest one decides. Temperatures and
shifts can be folded into the weights of the heads, so that `classifier/` and `fsmerge predict` decide the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from fsmerge_cli.evaluation.metrics import LOG_T
from fsmerge_cli.models.head import Head, of_classes

SHIFT = (-20.0, 20.0)
"""Bounds of a shift, in logits."""

PENALTY = 1e-3
"""Of the squared log temperature and shift: bounds those of a head that is always correct."""

DIGITS = 6
"""Decimals that are kept, the same in every file."""


@dataclass(frozen=True)
class Decision:
    """temperatures, shifts: one per head, logits / temperature + shift."""

    temperatures: tuple[float, ...]
    shifts: tuple[float, ...]

    def logits(self, logits: Sequence[Tensor]) -> Tensor:
        """The logits of all labels [n, classes of all heads] from those of every head."""
        return torch.cat([a / t + s for a, t, s in zip(logits, self.temperatures, self.shifts)], 1)


def plain(heads: int) -> Decision:
    """The largest raw logit decides."""
    return Decision((1.0,) * heads, (0.0,) * heads)


def with_decision(heads: Mapping[str, Head], decision: Decision | None) -> dict[str, Head]:
    """The heads, each with its temperature and shift. decision: of these heads (None: the largest raw logit)."""
    classes = of_classes(heads)
    joint = decision or plain(len(classes))
    found = zip(classes.items(), joint.temperatures, joint.shifts)
    return {**heads, **{name: replace(head, temperature=t, shift=s) for (name, head), t, s in found}}


def best_decision(logits: Sequence[Tensor], target: Tensor, temperatures: Sequence[float]) -> Decision:
    """The decision that is right on most of these images: raw logits, `temperatures`, or a fit to these images.

    The fit is judged on the images that it was not made from: every half by the fit to the other one.
    logits: of every head, [m, classes]. target [m]: index of the expected label among those of all heads.
    """
    heads = len(logits)
    if heads < 2 or not len(target):
        return plain(heads)
    exact = [a.double() for a in logits]
    candidates = [plain(heads)]
    if len(temperatures) == heads:
        candidates.append(_rounded(temperatures, (0.0,) * heads))
    right = [_right(own, exact, target) for own in candidates]
    best = max(range(len(right)), key=lambda place: right[place])  # the first of equals
    return fitted(exact, target) if _right_of_fit(exact, target) > right[best] else candidates[best]


def _right(decision: Decision, logits: Sequence[Tensor], target: Tensor) -> int:
    return int((decision.logits(logits).argmax(1) == target).sum())


def _right_of_fit(logits: Sequence[Tensor], target: Tensor) -> int:
    """How many images are decided right by the fit to the other half; both halves have every label alike."""
    if len(target) < 2:
        return 0
    order = target.argsort(stable=True)
    halves = [([own[half] for own in logits], target[half]) for half in (order[::2], order[1::2])]
    return sum(_right(fitted(*halves[1 - i]), *halves[i]) for i in (0, 1))


def fitted(logits: Sequence[Tensor], target: Tensor) -> Decision:
    """Temperatures and shifts of the smallest cross-entropy over the labels of all heads."""
    heads = len(logits)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(values, dtype=torch.double, requires_grad=True)
        scaled = torch.cat([a / t + s for a, t, s in zip(logits, free[:heads].exp(), free[heads:])], 1)
        value = F.cross_entropy(scaled, target) + PENALTY * free.square().sum()
        (gradient,) = torch.autograd.grad(value, free)
        return value.item(), gradient.numpy()

    bounds = [LOG_T] * heads + [SHIFT] * heads
    found = minimize(loss, np.zeros(2 * heads), jac=True, method="L-BFGS-B", bounds=bounds)
    values = [float(value) for value in found.x]
    return _rounded([float(np.exp(value)) for value in values[:heads]], values[heads:])


def _rounded(temperatures: Sequence[float], shifts: Sequence[float]) -> Decision:
    return Decision(tuple(round(t, DIGITS) for t in temperatures), tuple(round(s, DIGITS) for s in shifts))


def expected_labels(reference: Sequence[Tensor], place: Tensor | None) -> Tensor:
    """Index among the labels of all heads that the sources predict, [m].

    reference: logits of every source's head, [m, classes]. place [m]: the head of the image's task; None where the
    tasks are not known: then the largest softmax probability of all sources decides.
    """
    if place is None:
        return torch.cat([a.softmax(1) for a in reference], 1).argmax(1)
    starts = torch.tensor([0, *(a.shape[1] for a in reference[:-1])]).cumsum(0)
    own = torch.stack([a.argmax(1) for a in reference], 1)[torch.arange(len(place)), place]
    return starts[place] + own
