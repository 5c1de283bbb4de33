"""Whether a network is the parent of the sources: the pretrained weights that all of them were fine-tuned from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsmerge_cli.architectures.ports import Mapped
from fsmerge_cli.models.misfits import MAX_LISTED
from fsmerge_cli.models.plan import Plan
from fsmerge_cli.models.source import Pixels, Source

ALIKE = 0.5
"""Cosine between two task vectors from which the sources may share a later parent than the stated one.

Task vectors from a sibling of the same parent, t_i - s and t_j - s with independent t_i, t_j, s of equal length,
have the cosine 1/2; those from the parent itself have a smaller one unless the tasks are alike.
"""

TURNED = 0.8
"""Cosine of Gram matrices from which a matrix is one of the parent with the units of one side turned or reordered.

W^T W is the same for Q W with any orthogonal Q, W W^T for W Q. Without its part along the identity, which all
large random matrices share, it has a cosine near zero for independent matrices.
"""

NO_PARENT = "warning: models.base does not seem to be what"
"""Start of the note for a source that was not fine-tuned from the stated parent."""


def base_reasons(first: Source, base: Source) -> list[str]:
    """Every reason why `base` cannot be the pretrained weights of `first`; tensors may be on the `meta` device."""
    if base.family is not first.family:
        return [f"it is a {base.family.name}, '{first.name}' a {first.family.name}"]
    found = list(base.family.refuse(base.arch))
    found += first.preprocessing.refusals(base.preprocessing)
    if not found:
        mine, own = first.family.signature(first.arch), base.family.signature(base.arch)
        found += [
            f"{what}: it has {own[what]}, '{first.name}' has {mine[what]}"
            for what in mine
            if mine[what] != own[what]
        ]
    if lacking := sorted(first.weights.keys() - base.weights.keys()):
        found.append(f"it lacks tensors that '{first.name}' has: {_few(lacking)}")
    if further := sorted(base.weights.keys() - first.weights.keys()):
        found.append(f"it has tensors that '{first.name}' lacks: {_few(further)}")
    both = sorted(first.weights.keys() & base.weights.keys())
    other = [n for n in both if base.weights[n].shape != first.weights[n].shape]
    if other:
        shapes = [f"{n} is {list(base.weights[n].shape)}, not {list(first.weights[n].shape)}" for n in other]
        found.append(f"its tensors have other shapes than those of '{first.name}': {_few(shapes)}")
    return found


@dataclass(frozen=True)
class Parentage:
    """How a source lies to the stated parent, over the matrices of the backbone.

    distance: |W_i - W_0| / |W_0| of all of them together. cosine: of W_i with W_0, likewise. longer: names of the
    matrices whose task vector is as long as the weights themselves, |W_i - W_0| >= |W_i|, the farthest first.
    matrices: their number. turned: names of matrices that are those of the parent but for the order, or an
    orthogonal map, of the units of one side.
    """

    name: str
    distance: float
    cosine: float
    longer: tuple[str, ...]
    matrices: int
    turned: tuple[str, ...] = ()

    @property
    def unrelated(self) -> bool:
        """Whether more than half of the matrices have such a task vector.

        Subtracting the parent of a network leaves what the fine-tuning changed, which is shorter than the network.
        Subtracting an unrelated one makes it longer: two independent directions of one length are sqrt(2) apart,
        and |W_i - W_0| >= |W_i| means that zero would be the better parent (at equal lengths: a cosine up to 1/2).
        """
        return 2 * len(self.longer) > self.matrices


def parentage(plan: Plan, sources: Sequence[Source], base: Source) -> tuple[list[Parentage], list[float]]:
    """One `Parentage` per source; and the cosine between the task vectors of every pair of sources.

    One tensor at a time, in fp64. Biases and norms, which start from the same values everywhere, are left out.
    """
    names = [n for n, role in plan.roles.items() if isinstance(role, Mapped) and base.weights[n].ndim > 1]
    k = len(sources)
    grams: dict[str, Tensor] = {}
    for name in names:  # rows: W_0, then every task vector
        parent = base.weights[name].double().flatten()
        rows = [parent, *(s.weights[name].double().flatten() - parent for s in sources)]
        grams[name] = torch.stack([torch.stack([a @ b for b in rows]) for a in rows])
    whole = torch.stack(list(grams.values())).sum(0)
    found = [_of_source(i, source.name, grams, whole) for i, source in enumerate(sources, 1)]
    found = [
        replace(own, turned=_turned(plan, own.longer, source, base)) if own.unrelated else own
        for own, source in zip(found, sources)
    ]
    lengths = whole.diagonal().sqrt()
    pairs = [(i, j) for i in range(1, k + 1) for j in range(i + 1, k + 1)]
    return found, [_ratio(whole[i, j], lengths[i] * lengths[j]) for i, j in pairs]


def _of_source(i: int, name: str, grams: Mapping[str, Tensor], whole: Tensor) -> Parentage:
    # |W_i|^2 = |W_0|^2 + 2 W_0.t + |t|^2, so |t| >= |W_i| where |W_0|^2 + 2 W_0.t <= 0.
    excess = {n: float(g[0, 0] + 2 * g[0, i]) / float(g[i, i]) for n, g in grams.items() if g[i, i] > 0}
    longer = sorted((n for n, value in excess.items() if value <= 0), key=lambda n: excess[n])
    own = whole[0, 0] + 2 * whole[0, i] + whole[i, i]
    cosine = _ratio(whole[0, 0] + whole[0, i], whole[0, 0].sqrt() * own.sqrt())
    far = whole[i, i] > 0 and not whole[0, 0] > 0  # from a parent of zeros
    distance = math.inf if far else _ratio(whole[i, i].sqrt(), whole[0, 0].sqrt())
    return Parentage(name, distance, cosine, tuple(longer), len(grams))


def _turned(plan: Plan, names: Sequence[str], source: Source, base: Source) -> tuple[str, ...]:
    """The matrices between hidden units among `names` whose units of one side were turned or reordered."""
    found = []
    for name in names:
        role = plan.roles[name]
        if not isinstance(role, Mapped) or role.read is None:
            continue  # pixels have one basis, in which unrelated networks are alike
        own, parent = (weights[name].double().flatten(1) for weights in (source.weights, base.weights))
        sides = [(_gram(own), _gram(parent)), (_gram(own.T), _gram(parent.T))]
        if max(_ratio((a * b).sum(), a.norm() * b.norm()) for a, b in sides) >= TURNED:
            found.append(name)
    return tuple(found)


def _gram(W: Tensor) -> Tensor:
    """W^T W without its part along the identity."""
    product = W.T @ W
    return product - torch.eye(len(product), dtype=W.dtype, device=W.device) * product.diagonal().mean()


def parent_notes(plan: Plan, sources: Sequence[Source], base: Source) -> Iterator[str]:
    """What the user should know: the distances, and a warning for a network that is not the parent."""
    for source in sources:
        if source.folded != base.folded:
            yield (
                f"models.base has {_pixels(base.folded)}, '{source.name}' {_pixels(source.folded)}: their first "
                "layers differ by this factor. If both were trained with the same, pass models.base.mean=[...] "
                "and models.base.std=[...]"
            )
    found, pairs = parentage(plan, sources, base)
    for own in found:
        figures = f"relative distance {own.distance:.2f}, cosine {own.cosine:.2f}"
        if own.unrelated:
            yield (
                f"{NO_PARENT} '{own.name}' was fine-tuned from ({figures}): in "
                f"{len(own.longer)} of {own.matrices} matrices the difference from it is as long as the weights "
                f"themselves ({_few(own.longer)}). {_advice(own)}"
            )
        elif not own.distance:
            yield f"'{own.name}' has the weights of models.base, so its task vector is zero"
        else:
            far = f"; as far from it as from zero: {_few(own.longer)}" if own.longer else ""
            yield f"'{own.name}' compared with models.base: {figures}{far}"
    if not any(own.unrelated for own in found) and pairs and min(pairs) >= ALIKE:
        yield (
            f"the task vectors of the sources have a cosine of at least {min(pairs):.2f}: the tasks are alike, or "
            "the sources share a later parent than models.base"
        )


def _advice(own: Parentage) -> str:
    """What to do about a source that does not seem to come from the stated parent."""
    if 2 * len(own.turned) <= len(own.longer):
        return "Pass the pretrained weights of the sources"
    return (
        f"But {len(own.turned)} of these are those of models.base with units reordered or turned: the source was "
        "scrambled after its fine-tuning (as MergeLock does), and a task vector of it has no meaning. Take a "
        "method that aligns the sources, such as method=orthogonal_matching or method=fs_closed_form"
    )


def _pixels(folded: Pixels | None) -> str:
    mean, std = folded or ((0.0,), (1.0,))
    return f"mean {list(mean)} and std {list(std)}"


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 0.0


def _few(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return f"{', '.join(items[:MAX_LISTED])}{more}"
