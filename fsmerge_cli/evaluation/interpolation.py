"""The straight line between the weights of two networks: what is measured at its points, and its barriers.

Frankle et al. (arXiv 1912.05671) measure the loss along the line; Entezari et al. (arXiv 2110.06296) define the
barrier, and permute the units of one end before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fsmerge_cli.evaluation.forward import Outputs
from fsmerge_cli.evaluation.metrics import FeatureSimilarity
from fsmerge_cli.evaluation.scoring import task_score
from fsmerge_cli.models.head import Head


@dataclass(frozen=True)
class CurvePoint:
    """The network (1 - alpha) W_1 + alpha W_2.

    loss: mean cross-entropy (nats), error: share of wrong predictions, both of labelled images of the sources' one
    task. disagreement: share of images on which its prediction is not that of source 1, and of source 2.
    feature_error: squared error of its features, relative to the variance of those of source 1, and of source 2.
    None: not measured.
    """

    alpha: float
    loss: float | None = None
    error: float | None = None
    disagreement: tuple[float | None, float | None] = (None, None)
    feature_error: tuple[float | None, float | None] = (None, None)

    def values(self) -> dict[str, float]:
        """All that was measured, lower is better; of both sources the mean."""
        found: dict[str, float] = {}
        for field in fields(self)[1:]:
            given = getattr(self, field.name)
            own = given if isinstance(given, tuple) else (given,)
            if None not in own:
                found[field.name] = sum(own) / len(own)
        return found


def barriers(points: Sequence[CurvePoint]) -> dict[str, float]:
    """By metric, the largest height above the line between the values at both ends (Entezari et al., section 2).

    max over alpha of L(alpha) - [(1 - alpha) L(0) + alpha L(1)], on points that begin with 0 and end with 1.
    """
    values = [point.values() for point in points]
    first, last = values[0], values[-1]
    return {
        metric: max(
            own[metric] - ((1 - point.alpha) * first[metric] + point.alpha * last[metric])
            for point, own in zip(points, values)
        )
        for metric in first
    }


def between(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) W_1 + alpha W_2, tensor by tensor; what is no float (counters) is that of W_1."""
    return {
        name: torch.lerp(one, second[name].to(one), alpha) if one.is_floating_point() else one.clone()
        for name, one in first.items()
    }


def share_a_task(first: Head | None, second: Head | None) -> bool:
    """Whether two heads predict the same classes in the same form, so that a head between them has a meaning."""
    if first is None or second is None:
        return False
    tensors = [(head.weight, head.bias, head.projector) for head in (first, second)]
    shapes = [[None if t is None else t.shape for t in own] for own in tensors]
    return first.stated == second.stated and shapes[0] == shapes[1]


def head_between(first: Head, second: Head, alpha: float) -> Head:
    """The head at a point of the line, of two heads that share a task."""

    def at(one: Tensor | None, two: Tensor | None) -> Tensor | None:
        return None if one is None or two is None else torch.lerp(one, two.to(one), alpha)

    weight = torch.lerp(first.weight, second.weight.to(first.weight), alpha)
    bias, projector = at(first.bias, second.bias), at(first.projector, second.projector)
    return replace(first, weight=weight, bias=bias, projector=projector)


def measured(
    alpha: float, outputs: Outputs, sources: Outputs, truth: tuple[Tensor, Tensor], heads: Sequence[int], one: bool
) -> CurvePoint:
    """What is measured at one point.

    outputs: of the network at this point, with features in the order of each source; sources: of the sources.
    truth: index of the source whose images these are, [n], and class, [n]. heads: the source of each entry of
    `sources.logits`. one: whether the sources share a task; then `outputs` has the logits of one head, and all
    images belong to the task. Otherwise each head is compared on the images of its own source.
    """
    task, label = truth
    known = (label >= 0) if one else torch.zeros_like(label, dtype=torch.bool)
    score = task_score(outputs.logits[0][known], label[known]) if bool(known.any()) else None
    disagreement: list[float | None] = [None, None]
    errors: list[float | None] = [None, None]
    for place, source in enumerate(heads):
        rows = torch.ones_like(task, dtype=torch.bool) if one else task == source
        if bool(rows.any()):
            own = outputs.logits[0 if one else place][rows].argmax(1)
            disagreement[source] = (own != sources.logits[place][rows].argmax(1)).double().mean().item()
    for source in (0, 1):
        rows = torch.ones_like(task, dtype=torch.bool) if one else task == source
        similarity = FeatureSimilarity()
        if bool(rows.any()):
            similarity.add(outputs.features[source][rows], sources.features[source][rows])
            errors[source] = similarity.values()["error"]
    return CurvePoint(
        alpha,
        None if score is None else score.loss,
        None if score is None else 1 - score.top1,
        (disagreement[0], disagreement[1]),
        (errors[0], errors[1]),
    )
