"""The widths of a merged network under a budget of operations.

Operations are the products of all weights, summed over layers: positions x outputs x inputs. With widths w
relative to a source they are sum_l c_l w_out(l) w_in(l), which is bilinear: of few widths all combinations are
tried, more are raised greedily, by gain per operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor, nn

from fsmerge_cli.alignment.least_squares import linear_modules
from fsmerge_cli.architectures.ports import Mapped
from fsmerge_cli.common.errors import ConfigError, MismatchError
from fsmerge_cli.models.plan import Plan, compile_plan
from fsmerge_cli.models.source import Source

LEVELS = 8
"""Steps from a width to twice that width."""

TRIED = 10_000
"""Most combinations of widths that are all tried."""

Sizes = Mapping[str, int]
"""Units of the merged model by space."""


@dataclass(frozen=True)
class Level:
    """One value of an entry of `method.width`: the width, the number of heads, and the spaces that it sizes."""

    width: int
    heads: int | None
    sizes: Sizes


@dataclass(frozen=True)
class Layer:
    """One weight: multiplications in a source for one input, and the spaces that it writes and reads."""

    operations: int
    spaces: tuple[str, ...]


@dataclass(frozen=True)
class Widening:
    """What can be widened.

    base: the plan at a source's widths. entries: of `method.width`, the levels of each; the first is the present
    one. layers: all weights.
    """

    base: Plan
    sources: Sequence[Source]
    entries: tuple[tuple[Level, ...], ...]
    layers: tuple[Layer, ...]

    def operations(self, chosen: Sequence[int]) -> float:
        """Operations at the levels `chosen`, relative to one source."""
        sizes = {name: n for own, at in zip(self.entries, chosen) for name, n in own[at].sizes.items()}
        ratio = {name: sizes.get(name, space.merged) / space.merged for name, space in self.base.spaces.items()}
        total = sum(layer.operations for layer in self.layers)
        return sum(layer.operations * prod(ratio[name] for name in layer.spaces) for layer in self.layers) / total

    def plan(self, chosen: Sequence[int]) -> Plan:
        """The plan at the levels `chosen`."""
        if not any(chosen):
            return self.base
        levels = [own[at] for own, at in zip(self.entries, chosen)]
        if self.base.family.widths(self.base.arch) is None:
            return compile_plan(self.sources, levels[0].width, levels[0].heads)
        return compile_plan(self.sources, tuple(level.width for level in levels))

    def evenly(self, budget: float) -> list[int]:
        """The same level for all entries, as far as each has it: the largest within the budget."""
        best = [0] * len(self.entries)
        for at in range(max(map(len, self.entries), default=1)):
            chosen = [min(at, len(own) - 1) for own in self.entries]
            if self.operations(chosen) <= budget:
                best = chosen
        return best

    def best(self, gain: Callable[[str, int], float], budget: float) -> list[int]:
        """The levels of the largest gain within the budget; of equal ones those of fewer operations.

        gain: of a space with so many units.
        """
        gains = [
            [sum(gain(name, size) for name, size in level.sizes.items()) for level in own] for own in self.entries
        ]

        def value(chosen: Sequence[int]) -> tuple[float, float]:
            return sum(own[at] for own, at in zip(gains, chosen)), -self.operations(chosen)

        if prod(map(len, self.entries)) <= TRIED:
            every: Iterable[tuple[int, ...]] = product(*(range(len(own)) for own in self.entries))
            within = [list(own) for own in every if self.operations(own) <= budget]
            return max(within, key=value)
        chosen = [0] * len(self.entries)
        while steps := [own for own in self._raised(chosen) if self.operations(own) <= budget]:
            now = value(chosen)
            chosen = max(steps, key=lambda own: (value(own)[0] - now[0]) / max(now[1] - value(own)[1], 1e-12))
        return chosen

    def smallest(self) -> float | None:
        """Operations of the cheapest network that is wider; None where there is none."""
        found = [self.operations(own) for own in self._raised([0] * len(self.entries))]
        return min(found, default=None)

    def _raised(self, chosen: Sequence[int]) -> list[list[int]]:
        """All choices with one entry a level higher."""
        places = [place for place, own in enumerate(self.entries) if chosen[place] + 1 < len(own)]
        return [[at + (place == own) for place, at in enumerate(chosen)] for own in places]

    def fixed(self) -> list[str]:
        """The spaces that cannot be widened."""
        sized = {name for own in self.entries for level in own[1:] for name in level.sizes}
        return [name for name in self.base.spaces if name not in sized]


def widening(sources: Sequence[Source], budget: float) -> Widening:
    """What of sources of one shape can be widened, at least as far as `budget` allows for one entry alone."""
    base = compile_plan(sources)
    layers = _layers(base)
    entries: list[tuple[Level, ...]] = []
    found = Widening(base, sources, (), layers)
    for candidates in _candidates(base, len(sources)):
        levels: list[Level] = []
        for width, heads, given in candidates:
            sizes = _sizes(base, sources, given, heads)
            if sizes is None:
                continue
            levels.append(Level(width, heads, sizes))
            if Widening(base, sources, (tuple(levels),), layers).operations([len(levels) - 1]) > budget:
                levels.pop()
                break
        entries.append(tuple(levels))
    return Widening(found.base, sources, tuple(entries), layers)


Candidate = tuple[int, int | None, int | tuple[int, ...] | None]
"""Width, heads, and `method.width` with this entry at that width (None: as it is)."""


def _candidates(base: Plan, k: int) -> list[list[Candidate]]:
    """For every entry of `method.width`, the widths in order; the first is the present one."""
    family, arch = base.family, base.arch
    full = base.width
    now = family.widths(arch)
    if now is None:
        heads = family.heads(arch)
        if heads is not None and full % heads == 0:
            size = full // heads
            counts = range(heads + 1, k * heads + 1)
            return [[(full, heads, None), *((size * n, n, size * n) for n in counts)]]
        wider = dict.fromkeys(_steps(full, k))
        return [[(full, None, None), *((w, None, w) for w in wider)]]
    found: list[list[Candidate]] = []
    for place, width in enumerate(now):
        own: list[Candidate] = [(width, None, None)]
        own += [(w, None, (*now[:place], w, *now[place + 1 :])) for w in dict.fromkeys(_steps(width, k))]
        found.append(own)
    return found


def _steps(width: int, k: int) -> list[int]:
    widths = [round(width * (1 + step / LEVELS)) for step in range(1, LEVELS * (k - 1) + 1)]
    return [own for own in widths if own > width]


def _sizes(
    base: Plan, sources: Sequence[Source], width: int | tuple[int, ...] | None, heads: int | None
) -> Sizes | None:
    """The sizes of the spaces that `width` changes; None where the family does not have such a network."""
    if width is None:
        return {}
    try:
        plan = compile_plan(sources, width, heads)
    except (ConfigError, MismatchError):
        return None
    sizes = {name: own.merged for name, own in plan.spaces.items() if own.merged != base.spaces[name].merged}
    possible = all(base.spaces[name].merged < n <= sum(plan.spaces[name].sources) for name, n in sizes.items())
    return sizes if possible and sizes else None


def _layers(plan: Plan) -> tuple[Layer, ...]:
    """All weights of a network of source 1's size."""
    network = plan.skeleton()
    outputs: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[name] = output.numel()

        return hook

    names = linear_modules(plan)
    handles = [network.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.inference_mode():
        network(plan.family.sample(plan.arch, 1, None))
    for handle in handles:
        handle.remove()
    found = []
    for name in names:
        role = plan.roles[f"{name}.weight"]
        weight = network.get_submodule(name).weight
        if not isinstance(role, Mapped) or not isinstance(weight, Tensor):
            continue
        spaces = [ports[0].space for _, ports in filter(None, (role.write, role.read))]
        found.append(Layer(outputs.get(name, 0) * weight[0].numel(), tuple(spaces)))
    return tuple(found)
